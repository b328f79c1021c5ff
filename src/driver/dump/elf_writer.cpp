#include "elf_writer.h"

#include "notes.h"

#include "lararium/base/mapping.h"

#include <algorithm>
#include <fmt/format.h>

namespace lararium {
namespace dump {
namespace {

constexpr std::uint64_t report_interval = std::uint64_t{16} << 20;
constexpr std::size_t chunk_size = std::size_t{1} << 20;

// Equal to itself moved by one byte, and the first byte is zero: memcmp is the fastest loop there is for this, and it
// ends at the first difference.
bool is_zero(Bytes bytes) {
  return bytes[0] == std::byte{0} && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
}

void append(std::vector<std::byte> &out, Bytes bytes) { out.insert(out.end(), bytes.begin(), bytes.end()); }

std::uint64_t round_up(std::uint64_t value) { return (value + page_mask) & ~page_mask; }

} // namespace

std::uint64_t core_headers_size(std::size_t segments) {
  return segments * sizeof(Elf64_Phdr) + (segments >= PN_XNUM ? sizeof(Elf64_Shdr) : 0);
}

CoreHeaders make_core_headers(const std::vector<Elf64_Phdr> &segments, std::uint64_t offset) {
  CoreHeaders headers;
  Elf64_Ehdr &file = headers.file;
  std::copy_n(ELFMAG, SELFMAG, file.e_ident);
  file.e_ident[EI_CLASS] = ELFCLASS64;
  file.e_ident[EI_DATA] = ELFDATA2LSB;
  file.e_ident[EI_VERSION] = EV_CURRENT;
  file.e_type = ET_CORE;
  file.e_machine = EM_X86_64;
  file.e_version = EV_CURRENT;
  file.e_ehsize = sizeof(Elf64_Ehdr);
  file.e_phentsize = sizeof(Elf64_Phdr);
  file.e_phoff = offset;
  file.e_phnum = static_cast<Elf64_Half>(std::min<std::size_t>(segments.size(), PN_XNUM));
  append(headers.segments, std::as_bytes(std::span(segments)));
  if (segments.size() >= PN_XNUM) {
    Elf64_Shdr section{};
    section.sh_info = static_cast<Elf64_Word>(segments.size());
    file.e_shoff = offset + headers.segments.size();
    file.e_shentsize = sizeof(section);
    file.e_shnum = 1;
    append(headers.segments, std::as_bytes(std::span(&section, 1)));
  }
  return headers;
}

Result<void> Copier::copy(Bytes bytes) {
  const std::size_t size = bytes.size();
  while (!bytes.empty()) {
    // As many pages as are alike go in one system call.
    std::size_t length = 0;
    bool zero = false;
    while (length < bytes.size()) {
      const std::size_t page = std::min<std::size_t>(page_size, bytes.size() - length);
      const bool page_is_zero = is_zero(bytes.subspan(length, page));
      if (length != 0 && page_is_zero != zero)
        break;
      zero = page_is_zero;
      length += page;
    }
    if (zero) {
      TRY(output_.skip(length));
    } else {
      if (options_.stored_limit - stored_ < length)
        return fail(ErrorCode::corrupt,
                    fmt::format("it claims to hold more than the {} MiB that can be", options_.stored_limit >> 20));
      TRY(output_.write(bytes.first(length)));
      stored_ += length;
    }
    bytes = bytes.subspan(length);
  }
  return advance(size);
}

Result<void> Copier::skip(std::uint64_t size) {
  TRY(output_.skip(size));
  return advance(size);
}

Result<void> Copier::advance(std::uint64_t size) {
  progress_.done += size;
  return progress_.done - reported_ < report_interval ? Result<void>() : report();
}

Result<void> Copier::report() {
  reported_ = progress_.done;
  if (options_.progress && !options_.progress(progress_))
    return fail(ErrorCode::usage, "the writing was cancelled");
  return {};
}

Result<void> Copier::finish() {
  progress_.done = progress_.total;
  return report();
}

namespace {

std::vector<std::byte> machine_notes(const MachineCore &core) {
  std::vector<std::byte> notes;
  std::int32_t id = 0;
  for (const VcpuRegisters &registers : core.vcpus) {
    Prstatus status = make_prstatus(registers);
    status.pid = ++id; // QEMU: the number of the vCPU plus one
    append_note(notes, "CORE", note_prstatus, std::as_bytes(std::span(&status, 1)));
  }
  for (const VcpuRegisters &registers : core.vcpus) {
    const QemuCpuState state = make_qemu_cpu_state(registers);
    append_note(notes, "QEMU", 0, std::as_bytes(std::span(&state, 1)));
  }
  if (!core.vmcoreinfo.empty())
    append_note(notes, "VMCOREINFO", 0, bytes_of(core.vmcoreinfo));
  return notes;
}

Elf64_Phdr load_segment(Gva virtual_base, Gpa physical_base, std::uint64_t offset, std::uint64_t size) {
  Elf64_Phdr segment{};
  segment.p_type = PT_LOAD;
  segment.p_flags = PF_R | PF_W | PF_X;
  segment.p_offset = offset;
  segment.p_vaddr = virtual_base.value;
  segment.p_paddr = physical_base.value;
  segment.p_filesz = segment.p_memsz = size;
  segment.p_align = 0; // as QEMU; a value would demand that p_offset and p_vaddr agree
  return segment;
}

// The note, one segment for each range of RAM, then the views, which share those segments' bytes.
std::vector<Elf64_Phdr> machine_segments(const PhysicalMemory &memory, const MachineCore &core,
                                         std::uint64_t notes_size) {
  const auto &ranges = memory.ranges();
  const auto physical = [&](const VirtualRun &view) {
    return std::ranges::find_if(ranges, [&](const RamRange &range) {
      return view.physical_base - range.base < range.size &&
             view.size <= range.size - (view.physical_base - range.base);
    });
  };
  std::size_t count = 1 + ranges.size();
  for (const VirtualRun &view : core.views)
    count += physical(view) != ranges.end();

  std::vector<Elf64_Phdr> segments(1);
  segments[0].p_type = PT_NOTE;
  segments[0].p_offset = sizeof(Elf64_Ehdr) + core_headers_size(count);
  segments[0].p_filesz = segments[0].p_memsz = notes_size;
  std::uint64_t offset = round_up(segments[0].p_offset + notes_size);
  const std::uint64_t direct_map = core.direct_map ? core.direct_map->value : 0;
  for (const RamRange &range : ranges) {
    segments.push_back(load_segment(Gva{direct_map + range.base.value}, range.base, offset, range.size));
    offset = round_up(offset + range.size);
  }
  for (const VirtualRun &view : core.views) {
    const auto range = physical(view);
    if (range == ranges.end())
      continue;
    const std::uint64_t skip = view.physical_base - range->base;
    const Elf64_Phdr &of_range = segments[1 + std::size_t(range - ranges.begin())];
    segments.push_back(load_segment(view.virtual_base, view.physical_base, of_range.p_offset + skip, view.size));
  }
  return segments;
}

Result<void> copy_part(const PhysicalMemory &memory, Gpa base, std::uint64_t size, std::vector<std::byte> &buffer,
                       Copier &copier) {
  while (size != 0) {
    const std::size_t length = std::min<std::uint64_t>(size, chunk_size);
    Bytes bytes = memory.view(base);
    if (!bytes.empty()) {
      bytes = bytes.first(std::min(bytes.size(), length));
    } else {
      buffer.resize(chunk_size);
      const std::span<std::byte> out = std::span(buffer).first(length);
      if (!memory.read(base, out))
        return std::unexpected(Error{ErrorCode::memory_fault, Space::guest_physical, base.value,
                                     "memory became unreadable while it was written; the VM may have ended"});
      bytes = out;
    }
    TRY(copier.copy(bytes));
    base += bytes.size();
    size -= bytes.size();
  }
  return {};
}

Result<void> copy_range(const PhysicalMemory &memory, const RamRange &range, std::vector<std::byte> &buffer,
                        Copier &copier) {
  // A driver tells of a fragmented backend page by page; not of more than this at once.
  constexpr std::uint64_t window_size = std::uint64_t{1} << 30;
  for (std::uint64_t done = 0; done < range.size;) {
    const Gpa base = range.base + done;
    const std::uint64_t size = std::min(window_size, range.size - done);
    Gpa position = base;
    for (const RamRange &part : memory.populated(base, size)) {
      TRY(copier.skip(part.base - position));
      TRY(copy_part(memory, part.base, part.size, buffer, copier));
      position = part.base + part.size;
    }
    TRY(copier.skip(base + size - position));
    done += size;
  }
  return {};
}

Result<WriteSummary> write_machine(const PhysicalMemory &memory, const MachineCore &core, Output &output,
                                   const WriteOptions &options) {
  if (memory.ranges().empty())
    return fail(ErrorCode::usage, "there is no memory to write");
  const std::uint64_t lost_before = Mapping::lost_pages();
  const std::vector<std::byte> notes = machine_notes(core);
  const std::vector<Elf64_Phdr> segments = machine_segments(memory, core, notes.size());
  const CoreHeaders headers = make_core_headers(segments, sizeof(Elf64_Ehdr));
  TRY(output.write(std::as_bytes(std::span(&headers.file, 1))));
  TRY(output.write(headers.segments));
  TRY(output.write(notes));

  Copier copier(output, options, memory.total_size());
  std::vector<std::byte> buffer;
  for (std::size_t i = 0; i < memory.ranges().size(); ++i) {
    const RamRange &range = memory.ranges()[i];
    TRY(output.skip(segments[1 + i].p_offset - output.position()));
    TRY(copy_range(memory, range, buffer, copier));
  }
  if (Mapping::lost_pages() != lost_before)
    return fail(ErrorCode::gone, "pages of the memory vanished while it was written");
  TRY(copier.finish());
  TRY(output.commit());
  return WriteSummary{memory.total_size(), copier.stored(), 0};
}

} // namespace
} // namespace dump

Result<WriteSummary> write_elf_core(const PhysicalMemory &memory, const MachineCore &core, const std::string &path,
                                    const WriteOptions &options) {
  TRY_ASSIGN(dump::Output output, dump::Output::create(path, options.overwrite));
  return dump::write_machine(memory, core, output, options);
}

Result<WriteSummary> write_elf_core(const PhysicalMemory &memory, const MachineCore &core, int descriptor,
                                    const WriteOptions &options) {
  dump::Output output = dump::Output::to_descriptor(descriptor);
  return dump::write_machine(memory, core, output, options);
}

} // namespace lararium
