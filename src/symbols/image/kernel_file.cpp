#include "lararium/symbols/kernel_file.h"

#include "elf_sections.h"
#include "lararium/symbols/elf_note.h"
#include "unpack_kernel.h"

namespace lararium {
namespace {

// The packed kernel in a bzImage: behind the real mode code, as the header of the boot protocol 2.08 says.
Result<Bytes> payload_of(Bytes file) {
  constexpr std::size_t sectors_at = 0x1f1, magic_at = 0x202, version_at = 0x206, payload_at = 0x248, length_at = 0x24c;
  constexpr std::uint32_t magic = 0x53726448; // "HdrS"
  if (load<std::uint32_t>(file, magic_at) != magic)
    return fail(ErrorCode::unsupported, "the file is neither a vmlinuz (bzImage) nor a vmlinux (ELF) of x86-64");
  const auto sectors = load<std::uint8_t>(file, sectors_at);
  const auto version = load<std::uint16_t>(file, version_at);
  const auto offset = load<std::uint32_t>(file, payload_at), length = load<std::uint32_t>(file, length_at);
  if (!sectors || !version || !offset || !length || *version < 0x208)
    return fail(ErrorCode::unsupported,
                "the file is a kernel from before 2.6.26, which does not say where it is packed");
  const std::size_t begin = (*sectors == 0 ? 4 : *sectors) * std::size_t{512} + 512 + *offset;
  if (begin > file.size() || *length > file.size() - begin)
    return fail(ErrorCode::corrupt, "the kernel file is cut short");
  return file.subspan(begin, *length);
}

} // namespace

Result<KernelFile> KernelFile::parse(Bytes file) {
  KernelFile kernel;
  if (!is_elf(file)) {
    TRY_ASSIGN(const Bytes payload, payload_of(file));
    TRY_ASSIGN(kernel.unpacked_, kernel_file::unpack(payload));
  }
  TRY_ASSIGN(const ElfSections elf,
             read_elf_sections(is_elf(file) ? file : Bytes(kernel.unpacked_), "the kernel in the file"));
  for (const Elf64_Shdr &entry : elf.table)
    if ((entry.sh_flags & SHF_ALLOC) != 0)
      kernel.sections_.push_back({elf.name_of(entry), entry.sh_addr, elf.content_of(entry),
                                  (entry.sh_flags & SHF_EXECINSTR) != 0, (entry.sh_flags & SHF_WRITE) != 0});
  if (const LinkedSection *notes = kernel.section(".notes")) {
    const auto ids = find_build_ids(notes->content);
    if (const auto *own = choose_build_id(ids))
      kernel.build_id_ = own->id;
  }
  return kernel;
}

Result<KernelFile> KernelFile::open(const std::string &path) {
  TRY_ASSIGN(Mapping file, map_whole_file(path));
  TRY_ASSIGN(KernelFile kernel, parse(file.bytes()));
  kernel.file_ = std::move(file);
  return kernel;
}

} // namespace lararium
