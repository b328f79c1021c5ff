#include "elf_image.h"

#include <elf.h>

#include <cstring>

namespace lararium::linux_guest {
namespace {

constexpr std::size_t segment_limit = 64;

} // namespace

std::optional<ElfImage> parse_elf_image(Bytes bytes) {
  const auto header = load<Elf64_Ehdr>(bytes, 0);
  if (!header || std::memcmp(header->e_ident, ELFMAG, SELFMAG) != 0 || header->e_ident[EI_CLASS] != ELFCLASS64 ||
      header->e_ident[EI_DATA] != ELFDATA2LSB || header->e_machine != EM_X86_64 ||
      (header->e_type != ET_EXEC && header->e_type != ET_DYN) || header->e_phentsize != sizeof(Elf64_Phdr) ||
      header->e_phnum == 0 || header->e_phnum > segment_limit || header->e_phoff > bytes.size())
    return std::nullopt;
  ElfImage image;
  image.entry = header->e_entry;
  for (std::size_t i = 0; i < header->e_phnum; ++i) {
    const auto segment = load<Elf64_Phdr>(bytes, header->e_phoff + i * sizeof(Elf64_Phdr));
    if (!segment)
      return std::nullopt;
    // Neither end may wrap around.
    if (segment->p_type != PT_LOAD)
      continue;
    if (segment->p_filesz > segment->p_memsz || segment->p_vaddr + segment->p_memsz < segment->p_vaddr ||
        segment->p_offset + segment->p_filesz < segment->p_offset)
      return std::nullopt;
    image.segments.push_back(
        {segment->p_vaddr, segment->p_memsz, segment->p_offset, segment->p_filesz, (segment->p_flags & PF_X) != 0});
  }
  return image;
}

} // namespace lararium::linux_guest
