// ELF cores of machines. QEMU's dump/dump.c, Linux' fs/proc/vmcore.c and makedumpfile write them; all put the
// guest-physical address into p_paddr.
#include "formats.h"
#include "memory.h"
#include "notes.h"

#include <algorithm>
#include <elf.h>
#include <fmt/format.h>

namespace lararium::dump {
namespace {

constexpr std::uint32_t header_limit = std::uint32_t{1} << 20; // program headers
constexpr std::uint64_t not_physical = UINT64_MAX;             // p_paddr of a virtual-only segment (/proc/kcore)
constexpr std::uint64_t not_stored = UINT64_MAX;               // p_offset of what QEMU's filter left out
constexpr std::uint32_t makedumpfile_incomplete = 1;           // in e_flags: the disk was full

struct Segments {
  std::vector<Extent> zeros, stored; // zeros must not hide what another segment stores
  std::vector<RamRange> ranges;
  Bytes::size_type count = 0;
  bool physical = false; // some segment has a physical address other than 0
  std::uint64_t missing = 0, zero_filled = 0;
  std::vector<std::byte> notes;
  bool notes_cut = false;
};

Result<std::uint32_t> program_header_count(const DumpFile &file, const Elf64_Ehdr &header) {
  if (header.e_phnum != PN_XNUM)
    return header.e_phnum;
  // Too many for the field: the first section header has the number.
  Elf64_Shdr section{};
  if (header.e_shoff == 0 || !file.read_object(header.e_shoff, section))
    return fail(ErrorCode::corrupt, "an ELF core whose number of segments is missing");
  if (section.sh_info > header_limit)
    return fail(ErrorCode::unsupported, fmt::format("an ELF core of more than {} segments", header_limit));
  return section.sh_info;
}

void add_notes(const DumpFile &file, const Elf64_Phdr &segment, Segments &out) {
  if (segment.p_filesz > notes_limit - out.notes.size()) {
    out.notes_cut = true;
    return;
  }
  const std::size_t old_size = out.notes.size();
  out.notes.resize(old_size + segment.p_filesz);
  if (!file.read(segment.p_offset, std::span(out.notes).subspan(old_size))) {
    out.notes.resize(old_size);
    out.notes_cut = true;
  }
}

void add_load(const DumpFile &file, const Elf64_Phdr &segment, Segments &out) {
  ++out.count;
  if (segment.p_paddr == not_physical || segment.p_paddr >= physical_limit)
    return;
  out.physical |= segment.p_paddr != 0;
  const std::uint64_t stored = std::min(segment.p_filesz, physical_limit - segment.p_paddr);
  const std::uint64_t size = std::min(std::max(segment.p_memsz, segment.p_filesz), physical_limit - segment.p_paddr);
  if (size == 0)
    return;
  out.ranges.push_back({Gpa{segment.p_paddr}, size, {}});
  if (segment.p_offset == not_stored) {
    out.missing += size;
    return;
  }
  out.missing += stored - file.locate(segment.p_offset, stored, segment.p_paddr, out.stored);
  out.zero_filled += size - stored;
  out.zeros.push_back({segment.p_paddr + stored, size - stored, Extent::zeros});
}

Result<Segments> read_segments(const DumpFile &file, const Elf64_Ehdr &header) {
  if (header.e_phentsize != sizeof(Elf64_Phdr))
    return fail(ErrorCode::corrupt, "an ELF core with an impossible size of its program headers");
  TRY_ASSIGN(const std::uint32_t count, program_header_count(file, header));
  Segments out;
  for (std::uint32_t i = 0; i < count; ++i) {
    Elf64_Phdr segment{};
    if (header.e_phoff > UINT64_MAX / 2 || !file.read_object(header.e_phoff + i * sizeof(segment), segment))
      return fail(ErrorCode::corrupt, fmt::format("an ELF core that ends inside its {} program headers", count));
    if (segment.p_type == PT_NOTE)
      add_notes(file, segment, out);
    else if (segment.p_type == PT_LOAD)
      add_load(file, segment, out);
  }
  return out;
}

} // namespace

bool is_elf(const DumpFile &file) {
  char magic[SELFMAG];
  return file.read(0, std::as_writable_bytes(std::span(magic))) && std::equal(magic, magic + SELFMAG, ELFMAG);
}

Result<Target> open_elf(std::shared_ptr<const DumpFile> file) {
  unsigned char identity[EI_NIDENT];
  if (!file->read(0, std::as_writable_bytes(std::span(identity))))
    return fail(ErrorCode::corrupt, "an ELF file that ends inside its header");
  if (identity[EI_CLASS] == ELFCLASS32)
    return fail(ErrorCode::unsupported, "a 32-bit ELF core: the guest was not in 64-bit mode");
  if (identity[EI_CLASS] != ELFCLASS64 || identity[EI_DATA] != ELFDATA2LSB)
    return fail(ErrorCode::unsupported, "an ELF core that is not 64-bit little-endian");
  Elf64_Ehdr header{};
  if (!file->read_object(0, header))
    return fail(ErrorCode::corrupt, "an ELF file that ends inside its header");
  if (header.e_type != ET_CORE)
    return fail(ErrorCode::usage, "an ELF file, but not a core");

  TRY_ASSIGN(Segments segments, read_segments(*file, header));
  Notes notes = parse_notes(segments.notes, header.e_machine == EM_X86_64);
  if (notes.of_process || (!segments.physical && segments.count > 1))
    return fail(ErrorCode::usage, "the core of a process, not of a machine: its segments have no physical addresses");
  if (segments.ranges.empty())
    return fail(ErrorCode::corrupt, "an ELF core without memory");

  Target target;
  auto &limits = target.limitations;
  target.identity.kind = TargetKind::dump;
  switch (header.e_machine) {
  case EM_X86_64: target.identity.architecture = Architecture::x86_64; break;
  case EM_AARCH64: target.identity.architecture = Architecture::aarch64; break;
  default: target.identity.architecture = Architecture::other;
  }
  target.identity.memory_access = file->flattened() ? "ELF core (flattened)" : "ELF core";
  if (segments.missing != 0)
    limits.push_back(fmt::format("{} of memory are missing from the dump: it was cut short, or made with a filter",
                                 human_size(segments.missing)));
  if ((header.e_flags & makedumpfile_incomplete) != 0)
    limits.push_back("makedumpfile marked this dump as incomplete");
  if (segments.zero_filled != 0)
    limits.push_back(fmt::format("{} of memory are not stored in the dump (zeros, or left out by makedumpfile) and "
                                 "read as zeros",
                                 human_size(segments.zero_filled)));
  if (segments.notes_cut)
    limits.push_back("some notes of the dump are missing or too large");
  target.hints.vmcoreinfo = std::move(notes.vmcoreinfo);
  set_vcpus(target, std::move(notes.vcpus));

  auto extents = std::move(segments.zeros);
  extents.insert(extents.end(), segments.stored.begin(), segments.stored.end());
  target.memory =
      std::make_unique<ExtentMemory>(std::move(file), ExtentMap(std::move(extents)), unite(std::move(segments.ranges)));
  return target;
}

} // namespace lararium::dump
