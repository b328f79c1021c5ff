#include "lararium/symbols/module_file.h"

#include "elf_sections.h"
#include "lararium/symbols/elf_note.h"
#include "unpack_kernel.h"

namespace lararium {
namespace {

constexpr std::size_t version_limit = 64;

// "srcversion=..." among texts that end with NUL (scripts/mod/modpost.c).
std::string source_version_in(Bytes information) {
  constexpr std::string_view key = "srcversion=";
  for (std::size_t at = 0; at < information.size();) {
    const std::string_view text = c_string(information, at);
    if (text.starts_with(key))
      return std::string(text.substr(key.size(), version_limit));
    at += text.size() + 1;
  }
  return {};
}

} // namespace

std::size_t ModuleFile::Relocations::count() const { return entries.size() / sizeof(Elf64_Rela); }

ModuleFile::Relocation ModuleFile::Relocations::at(std::size_t number) const {
  const auto entry = load<Elf64_Rela>(entries, number * sizeof(Elf64_Rela)).value_or(Elf64_Rela{});
  return {entry.r_offset, static_cast<std::uint32_t>(ELF64_R_TYPE(entry.r_info)),
          static_cast<std::uint32_t>(ELF64_R_SYM(entry.r_info)), entry.r_addend};
}

std::size_t ModuleFile::symbol_count() const { return symbols_.size() / sizeof(Elf64_Sym); }

std::optional<ModuleFile::Symbol> ModuleFile::symbol(std::size_t number) const {
  if (number >= symbol_count())
    return std::nullopt;
  const auto entry = *load<Elf64_Sym>(symbols_, number * sizeof(Elf64_Sym));
  return Symbol{c_string(symbol_names_, entry.st_name), entry.st_value, entry.st_shndx};
}

Result<ModuleFile> ModuleFile::parse(Bytes file) {
  ModuleFile module;
  if (!is_elf(file)) {
    TRY_ASSIGN(module.unpacked_, kernel_file::unpack(file));
  }
  const Bytes bytes = is_elf(file) ? file : Bytes(module.unpacked_);
  TRY_ASSIGN(const ElfSections elf, read_elf_sections(bytes, "the module in the file"));
  if (load<Elf64_Ehdr>(bytes, 0)->e_type != ET_REL)
    return fail(ErrorCode::unsupported, "the file is no kernel module");
  for (const Elf64_Shdr &entry : elf.table) {
    const Bytes content = elf.content_of(entry);
    module.sections_.push_back({elf.name_of(entry), entry.sh_size, content, (entry.sh_flags & SHF_ALLOC) != 0,
                                (entry.sh_flags & SHF_EXECINSTR) != 0, (entry.sh_flags & SHF_WRITE) != 0});
    if (entry.sh_type == SHT_RELA && entry.sh_info < elf.table.size())
      module.relocations_.push_back({entry.sh_info, content});
    if (entry.sh_type == SHT_SYMTAB && entry.sh_link < elf.table.size()) {
      module.symbols_ = content;
      module.symbol_names_ = elf.content_of(elf.table[entry.sh_link]);
    }
    const std::string &name = module.sections_.back().name;
    if (name == ".modinfo")
      module.source_version_ = source_version_in(content);
    if (name == ".note.gnu.build-id")
      if (const auto ids = find_build_ids(content, 1); !ids.empty())
        module.build_id_ = ids.front().id;
  }
  return module;
}

Result<ModuleFile> ModuleFile::open(const std::string &path) {
  TRY_ASSIGN(Mapping file, map_whole_file(path));
  TRY_ASSIGN(ModuleFile module, parse(file.bytes()));
  module.file_ = std::move(file);
  return module;
}

} // namespace lararium
