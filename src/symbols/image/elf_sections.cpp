#include "elf_sections.h"

#include <algorithm>
#include <cstring>
#include <fmt/format.h>

namespace lararium {
namespace {

constexpr std::size_t section_limit = 65536; // vmlinux has some fifty, or hundreds with debug information
constexpr std::size_t name_limit = 64;

} // namespace

bool is_elf(Bytes file) { return file.size() >= SELFMAG && std::memcmp(file.data(), ELFMAG, SELFMAG) == 0; }

Bytes ElfSections::content_of(const Elf64_Shdr &entry) const {
  if (entry.sh_type == SHT_NOBITS || entry.sh_offset > file.size() || entry.sh_size > file.size() - entry.sh_offset)
    return {};
  return file.subspan(entry.sh_offset, entry.sh_size);
}

std::string ElfSections::name_of(const Elf64_Shdr &entry) const {
  return std::string(c_string(names, entry.sh_name, name_limit));
}

Result<ElfSections> read_elf_sections(Bytes file, std::string_view what) {
  const auto header = load<Elf64_Ehdr>(file, 0);
  if (!header || !is_elf(file))
    return fail(ErrorCode::corrupt, fmt::format("{} is no ELF file", what));
  if (header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_ident[EI_DATA] != ELFDATA2LSB ||
      header->e_machine != EM_X86_64)
    return fail(ErrorCode::unsupported, fmt::format("{} is not one of x86-64", what));
  if (header->e_shentsize != sizeof(Elf64_Shdr) || header->e_shoff > file.size() || header->e_shnum == 0)
    return fail(ErrorCode::corrupt, fmt::format("{} has no sections", what));
  ElfSections sections{file, {}, {}};
  const std::size_t count = std::min<std::size_t>(header->e_shnum, section_limit);
  for (std::size_t i = 0; i < count; ++i) {
    const auto entry = load<Elf64_Shdr>(file, header->e_shoff + i * sizeof(Elf64_Shdr));
    if (!entry)
      return fail(ErrorCode::corrupt, fmt::format("{} is cut short", what));
    sections.table.push_back(*entry);
  }
  if (header->e_shstrndx < sections.table.size())
    sections.names = sections.content_of(sections.table[header->e_shstrndx]);
  return sections;
}

} // namespace lararium
