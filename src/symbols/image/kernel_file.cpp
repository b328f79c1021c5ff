#include "lararium/symbols/kernel_file.h"

#include "lararium/symbols/elf_note.h"
#include "unpack_kernel.h"

#include <algorithm>
#include <cstring>
#include <elf.h>

namespace lararium {
namespace {

constexpr std::size_t section_limit = 65536; // vmlinux has some fifty, or hundreds with debug information
constexpr std::size_t name_limit = 64;

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

std::string name_at(Bytes names, std::uint64_t offset) {
  if (offset >= names.size())
    return {};
  const Bytes rest = names.subspan(offset, std::min<std::size_t>(names.size() - offset, name_limit));
  const auto end = std::ranges::find(rest, std::byte{});
  return {reinterpret_cast<const char *>(rest.data()), static_cast<std::size_t>(end - rest.begin())};
}

} // namespace

Result<KernelFile> KernelFile::parse(Bytes file) {
  KernelFile kernel;
  const auto is_elf = [](Bytes bytes) {
    return bytes.size() >= SELFMAG && std::memcmp(bytes.data(), ELFMAG, SELFMAG) == 0;
  };
  if (!is_elf(file)) {
    TRY_ASSIGN(const Bytes payload, payload_of(file));
    TRY_ASSIGN(kernel.unpacked_, kernel_file::unpack(payload));
  }
  const Bytes elf = is_elf(file) ? file : Bytes(kernel.unpacked_);
  const auto header = load<Elf64_Ehdr>(elf, 0);
  if (!header || !is_elf(elf))
    return fail(ErrorCode::corrupt, "what the kernel file holds is no ELF file");
  if (header->e_ident[EI_CLASS] != ELFCLASS64 || header->e_ident[EI_DATA] != ELFDATA2LSB ||
      header->e_machine != EM_X86_64)
    return fail(ErrorCode::unsupported, "the kernel in the file is not one of x86-64");
  if (header->e_shentsize != sizeof(Elf64_Shdr) || header->e_shoff > elf.size() || header->e_shnum == 0)
    return fail(ErrorCode::corrupt, "the kernel in the file has no sections");
  const std::size_t count = std::min<std::size_t>(header->e_shnum, section_limit);
  std::vector<Elf64_Shdr> table;
  for (std::size_t i = 0; i < count; ++i) {
    const auto entry = load<Elf64_Shdr>(elf, header->e_shoff + i * sizeof(Elf64_Shdr));
    if (!entry)
      return fail(ErrorCode::corrupt, "the kernel in the file is cut short");
    table.push_back(*entry);
  }
  const auto content_of = [&](const Elf64_Shdr &entry) -> Bytes {
    if (entry.sh_type == SHT_NOBITS || entry.sh_offset > elf.size() || entry.sh_size > elf.size() - entry.sh_offset)
      return {};
    return elf.subspan(entry.sh_offset, entry.sh_size);
  };
  const Bytes names = header->e_shstrndx < table.size() ? content_of(table[header->e_shstrndx]) : Bytes();
  for (const Elf64_Shdr &entry : table)
    if ((entry.sh_flags & SHF_ALLOC) != 0)
      kernel.sections_.push_back({name_at(names, entry.sh_name), entry.sh_addr, content_of(entry)});
  if (const Section *notes = kernel.section(".notes")) {
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

const KernelFile::Section *KernelFile::section(std::string_view name) const {
  const auto found = std::ranges::find(sections_, name, &Section::name);
  return found == sections_.end() ? nullptr : &*found;
}

Bytes KernelFile::at(std::uint64_t address, std::uint64_t size) const {
  for (const Section &section : sections_)
    if (address >= section.address && address - section.address <= section.content.size() &&
        size <= section.content.size() - (address - section.address) && size != 0)
      return section.content.subspan(address - section.address, size);
  return {};
}

} // namespace lararium
