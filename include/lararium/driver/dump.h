// Dumps of memory: opens those of other programs, and writes our own.
#pragma once

#include "lararium/base/result.h"
#include "lararium/vm/target.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace lararium {

// Opens a dump of a machine's physical memory. The content decides what it is, never the name: ELF cores (QEMU's
// dump-guest-memory, /proc/vmcore, makedumpfile -E, our own), kdump-compressed files (zlib, lzo, snappy, zstd; plain or
// flattened), LiME, AVML, and flat images. The file is mapped, not copied; it may be larger than memory. What is
// missing from it fails to read, and the target's limitations say so.
[[nodiscard]] Result<Target> open_dump(const std::string &path);

// The same for a dump that is already in memory; `image` must outlive the target.
[[nodiscard]] Result<Target> open_dump_image(Bytes image, const std::string &name);

// ---------------------------------------------------------------------------------------------------------------------

struct WriteProgress {
  std::uint64_t done = 0, total = 0; // bytes of the source that were dealt with
};

struct WriteOptions {
  bool overwrite = false; // replace a file that exists
  // Called about every 16 MiB and at the end; false stops the writing with an error.
  std::function<bool(const WriteProgress &)> progress;
  // More to store than this is an error: a hostile guest can show a process that is larger than any disk.
  std::uint64_t stored_limit = UINT64_MAX;
};

struct WriteSummary {
  std::uint64_t source_bytes = 0;     // what the file describes
  std::uint64_t stored_bytes = 0;     // what was written; the rest are zeros, kept as holes of the file
  std::uint64_t unreadable_bytes = 0; // of a process: pages that are not in memory; they have no bytes in the file
};

// A run of guest-virtual addresses that is contiguous in guest-physical memory.
struct VirtualRun {
  Gva virtual_base;
  Gpa physical_base;
  std::uint64_t size = 0;
};

// What goes into a core of a machine beside its memory.
struct MachineCore {
  std::vector<VcpuRegisters> vcpus;
  std::string vmcoreinfo; // without it, drgn refuses the core, and crash must guess where the kernel is
  // Where the kernel maps all of physical memory (Linux: page_offset_base). It becomes p_vaddr, as in /proc/vmcore, so
  // that gdb can follow pointers into the direct map. Without it p_vaddr is the physical address, as QEMU has it.
  std::optional<Gva> direct_map;
  // More views of the same bytes, such as the kernel's image, so that gdb finds its symbols' values.
  std::vector<VirtualRun> views;
};

// Writes an ELF core that drgn, crash, gdb, makedumpfile and Volatility read. Pages of zeros, and what the host never
// gave the guest, become holes. Memory use is bounded. A live guest goes on changing while it is read: pause it for one
// moment of it. A page that cannot be read ends the writing.
//
// The file appears under `path` only when it is whole: it is written as "<path>.partial-XXXXXX", readable by its owner
// alone, and renamed; on failure nothing is left (unless this process is killed). It is not forced to the disk.
[[nodiscard]] Result<WriteSummary> write_elf_core(const PhysicalMemory &memory, const MachineCore &core,
                                                  const std::string &path, const WriteOptions &options = {});
// Writes to a descriptor from its current position on; to a pipe too, then with all zeros written out.
[[nodiscard]] Result<WriteSummary> write_elf_core(const PhysicalMemory &memory, const MachineCore &core, int descriptor,
                                                  const WriteOptions &options = {});

// ---------------------------------------------------------------------------------------------------------------------

// One thread of a process, as it would return to user space.
struct ThreadState {
  std::int32_t thread_id = 0;
  std::int16_t signal = 0;    // what stopped it; 0: nothing
  VcpuRegisters registers;    // general, rip, rsp, rflags, cs, ss and the bases of fs and gs are used
  std::int64_t orig_rax = -1; // the number of the system call it is in; -1: none
};

struct ProcessSegment {
  Gva base;
  std::uint64_t size = 0; // a multiple of the page size
  bool readable = false, writable = false, executable = false;
};

// A piece of a file that the process has mapped, for the NT_FILE note.
struct ProcessFile {
  Gva base;
  std::uint64_t size = 0;
  std::uint64_t file_offset = 0; // in bytes, a multiple of the page size
  std::string path;
};

// A process as plain data; whoever knows the guest's operating system fills it.
struct ProcessCore {
  std::int32_t pid = 0, parent = 0, process_group = 0, session = 0;
  std::uint32_t uid = 0, gid = 0;
  char state = 'S'; // R, S, D, Z, T as in ps
  std::int8_t nice = 0;
  std::string command;              // at most 15 bytes are kept
  std::string arguments;            // at most 79 bytes are kept
  std::vector<ThreadState> threads; // the first is the one that debuggers show first
  std::vector<std::byte> auxiliary_vector;
  std::vector<ProcessSegment> segments; // sorted, without overlap
  std::vector<ProcessFile> files;
};

struct ProcessPage {
  bool present = false;
  // Where it is not present: how many bytes from the address on are surely not present either, as when a page table of
  // a higher level is missing. 0: only this page is known.
  std::uint64_t absent = 0;
};
// Fills `out`, one page of the process, or tells that the page is not in the guest's memory.
using ProcessReader = std::function<ProcessPage(Gva page, std::span<std::byte> out)>;

// Writes a core of one process, as the kernel would, for gdb and its like. Pages that are not in the guest's memory
// (swapped out, never touched) are left out: gdb takes those of a mapped file from that file, and says of others that
// it cannot access them.
[[nodiscard]] Result<WriteSummary> write_process_core(const ProcessCore &process, const ProcessReader &reader,
                                                      const std::string &path, const WriteOptions &options = {});

} // namespace lararium
