// A module file as compilers make it: sections, symbols, relocations.
#pragma once

#include "elf_bytes.h"
#include "lararium/base/bytes.h"

#include <array>
#include <cstring>
#include <elf.h>
#include <string>
#include <string_view>
#include <vector>

namespace lararium {

class ModuleBuilder {
public:
  // The first is number 1, as in a file.
  std::uint16_t section(std::string_view name, std::uint64_t flags, std::vector<std::byte> content,
                        std::uint32_t type = SHT_PROGBITS) {
    Elf64_Shdr header{};
    header.sh_name = add_name(name);
    header.sh_type = type;
    header.sh_flags = flags;
    sections_.push_back({header, std::move(content)});
    return static_cast<std::uint16_t>(sections_.size());
  }
  std::uint32_t symbol(std::string_view name, std::uint16_t section, std::uint64_t value) {
    Elf64_Sym entry{};
    entry.st_name = add_name(name);
    entry.st_shndx = section;
    entry.st_value = value;
    symbols_.push_back(entry);
    return static_cast<std::uint32_t>(symbols_.size() - 1);
  }
  // All those of one section are one after the other.
  void relocation(std::uint16_t section, std::uint64_t offset, std::uint32_t type, std::uint32_t symbol,
                  std::int64_t addend) {
    const Elf64_Rela entry{offset, ELF64_R_INFO(std::uint64_t{symbol}, type), addend};
    if (relocated_.empty() || relocated_.back().first != section)
      relocated_.push_back({section, {}});
    append(relocated_.back().second, entry);
  }

  // The texts of .modinfo.
  static std::vector<std::byte> texts(std::initializer_list<std::string_view> all) {
    std::vector<std::byte> content;
    for (const std::string_view text : all) {
      const Bytes bytes = bytes_of(text);
      content.insert(content.end(), bytes.begin(), bytes.end());
      content.push_back(std::byte{});
    }
    return content;
  }
  static std::vector<std::byte> build_id_note(std::uint8_t first) {
    std::vector<std::byte> content;
    append(content, std::array<std::uint32_t, 3>{4, 20, NT_GNU_BUILD_ID});
    append(content, std::array<char, 4>{'G', 'N', 'U', 0});
    std::array<std::uint8_t, 20> id{};
    id[0] = first;
    append(content, id);
    return content;
  }

  [[nodiscard]] std::vector<std::byte> build() const {
    std::vector<Part> parts = sections_;
    const auto symbols_at = static_cast<std::uint32_t>(parts.size() + 1), names_at = symbols_at + 1;
    Part symbols, names;
    symbols.header.sh_type = SHT_SYMTAB;
    symbols.header.sh_link = names_at;
    for (const Elf64_Sym &entry : symbols_)
      append(symbols.content, entry);
    names.header.sh_type = SHT_STRTAB;
    const Bytes text = bytes_of(names_);
    names.content.assign(text.begin(), text.end());
    parts.push_back(symbols);
    parts.push_back(names);
    for (const auto &[section, entries] : relocated_) {
      Part part;
      part.header.sh_type = SHT_RELA;
      part.header.sh_info = section;
      part.header.sh_link = symbols_at;
      part.content = entries;
      parts.push_back(part);
    }
    Elf64_Ehdr header = elf_header();
    header.e_type = ET_REL;
    header.e_shnum = static_cast<std::uint16_t>(parts.size() + 1);
    header.e_shstrndx = static_cast<std::uint16_t>(names_at);
    std::vector<std::byte> file(sizeof header), table;
    append(table, Elf64_Shdr{});
    for (const Part &part : parts) {
      Elf64_Shdr entry = part.header;
      entry.sh_offset = file.size();
      if (entry.sh_size == 0)
        entry.sh_size = part.content.size();
      file.insert(file.end(), part.content.begin(), part.content.end());
      append(table, entry);
    }
    header.e_shoff = file.size();
    file.insert(file.end(), table.begin(), table.end());
    std::memcpy(file.data(), &header, sizeof header);
    return file;
  }

private:
  struct Part {
    Elf64_Shdr header{};
    std::vector<std::byte> content;
  };
  template <class T> static void append(std::vector<std::byte> &out, const T &value) {
    const auto *const bytes = reinterpret_cast<const std::byte *>(&value);
    out.insert(out.end(), bytes, bytes + sizeof value);
  }
  std::uint32_t add_name(std::string_view name) {
    const auto at = static_cast<std::uint32_t>(names_.size());
    names_ += name;
    names_ += '\0';
    return at;
  }

  std::vector<Part> sections_;
  std::vector<Elf64_Sym> symbols_ = std::vector<Elf64_Sym>(1);
  std::vector<std::pair<std::uint16_t, std::vector<std::byte>>> relocated_;
  std::string names_ = std::string(1, '\0');
};

} // namespace lararium
