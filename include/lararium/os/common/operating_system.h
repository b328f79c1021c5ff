// The interface to a guest's operating system, whichever it is. `os/linux` implements it; commands and tools use only
// this.
#pragma once

#include "lararium/base/bytes.h"
#include "lararium/base/result.h"
#include "lararium/os/common/views.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lararium {

// What of a process is rebuilt. Less is cheaper; the rest stays empty.
struct ProcessQuery {
  bool threads = false;  // one entry per thread instead of one per process
  bool paths = true;     // exe, tty, cgroup, container
  bool arguments = true; // argv, from the process' own memory
  bool memory = true;    // rss, virtual size
  bool current_directory = false;
  std::vector<std::int32_t> only_pids; // of processes; empty: all
};

// What of a process changes when something happens to it that is worth a record: its start, program, name, parent,
// credentials, namespaces, end. Two marks differ when one of these does; `mark` means nothing else.
struct ProcessMark {
  std::int32_t pid = 0;
  std::uint64_t mark = 0;
  bool operator==(const ProcessMark &) const = default;
};

struct ProcessImage { // what procmem writes
  Process process;
  std::vector<MemoryRegion> regions;
  std::vector<std::byte> auxiliary_vector;
  struct Thread {
    std::int32_t tid = 0;
    // user registers in the order of the kernel's struct user_regs_struct (27 values); empty: the thread ran in user
    // mode while we looked, its registers were not in memory
    std::vector<std::uint64_t> user_registers;
  };
  std::vector<Thread> threads;
  ViewStatus status;
};

// Reads see the guest as it is now; nothing here changes it. Call refresh() to drop cached reads before a new look. Not
// thread-safe. Every list and text is bounded, whatever guest memory says.
class OperatingSystem {
public:
  virtual ~OperatingSystem() = default;

  virtual void refresh() = 0;

  [[nodiscard]] virtual Result<SystemInfo> info() = 0;
  // An error: the kernel that was attached to is not there any more.
  [[nodiscard]] virtual Result<Pulse> pulse() = 0;
  // The pids of [begin, end) that the allocator has given out, those of threads, groups and sessions too, in order.
  [[nodiscard]] virtual Result<View<std::uint32_t>> allocated_pids(std::uint32_t begin, std::uint32_t end) = 0;
  // When the process began that has this number in the table of pids, in ns since boot; nothing: none has it. A look
  // past the list of processes, for one of them. An error: the table cannot be looked into.
  [[nodiscard]] virtual Result<std::optional<std::uint64_t>> start_of_pid(std::int32_t pid) = 0;
  [[nodiscard]] virtual Result<View<Process>> processes(const ProcessQuery &query) = 0;
  // One for each process, in the order of processes(): a look at what changed costs a fraction of a look at all.
  [[nodiscard]] virtual Result<View<ProcessMark>> process_marks() = 0;
  [[nodiscard]] virtual Result<View<MemoryRegion>> memory_regions(std::int32_t pid) = 0;
  [[nodiscard]] virtual Result<View<OpenFile>> open_files(std::optional<std::int32_t> pid) = 0;
  [[nodiscard]] virtual Result<View<std::string>> environment(std::int32_t pid) = 0; // "NAME=value"
  [[nodiscard]] virtual Result<View<KernelModule>> modules() = 0;
  [[nodiscard]] virtual Result<View<Socket>> sockets() = 0; // of all network namespaces
  [[nodiscard]] virtual Result<View<Mount>>
  mounts(std::optional<std::int32_t> pid) = 0;                           // nothing: of the first process
  [[nodiscard]] virtual Result<View<NetworkInterface>> interfaces() = 0; // of all network namespaces
  [[nodiscard]] virtual Result<View<LogRecord>> kernel_log() = 0;
  [[nodiscard]] virtual Result<BpfView> bpf() = 0;

  // Kernel symbols, modules' included. The visitor returns false to stop.
  virtual ViewStatus for_each_symbol(const std::function<bool(const KernelSymbol &)> &visitor) = 0;
  [[nodiscard]] virtual std::optional<KernelSymbol> find_symbol(std::string_view name) = 0;
  // The symbol that holds the address, and the distance from it.
  [[nodiscard]] virtual std::optional<std::pair<KernelSymbol, std::uint64_t>> symbolize(Gva address) = 0;

  // As many bytes from `address` as can be read, in the kernel's or in a process' address space.
  [[nodiscard]] virtual std::size_t read_kernel(Gva address, std::span<std::byte> out) = 0;
  [[nodiscard]] virtual Result<std::size_t> read_process(std::int32_t pid, Gva address, std::span<std::byte> out) = 0;

  [[nodiscard]] virtual Result<ProcessImage> process_image(std::int32_t pid) = 0;

  // Gives the file's cached pages to `sink` (offset, bytes) in order of offset. The path is as the first process sees
  // it; or "fd:PID:NUMBER"; or "inode:NUMBER", with the device where a number alone is ambiguous ("inode:8:1:1234").
  [[nodiscard]] virtual Result<CachedFile>
  recover_file(std::string_view path, const std::function<Result<void>(std::uint64_t, Bytes)> &sink) = 0;

  // What a dump should carry so that other tools read it: the VMCOREINFO text; empty where the kernel has none.
  [[nodiscard]] virtual std::string crash_information() = 0;
};

} // namespace lararium
