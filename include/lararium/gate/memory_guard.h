// Livewire's memory access enforcer: sees each write to guarded pages when it happens, says who wrote what, and whether
// a kernel may; puts back what it may not.
//
// A page that somebody writes to is opened, so that the write can be done, and closed again when it is: what it holds
// then is compared with what it held before. Nothing that is still there when the page is closed goes unseen. What is
// written and put back while the page is open does, and so does who wrote second: that is the blind window, which is
// counted.
//
// Nobody waits longer than it takes to copy a page and to read a few words of the guest: nothing here asks the VM's
// monitor, writes to a file or waits for anything but faults.
#pragma once

#include "lararium/gate/guarded_pages.h"
#include "lararium/os/common/operating_system.h"
#include "lararium/os/linux/kernel.h"
#include "lararium/os/linux/tasks.h"
#include "lararium/record/record.h"
#include "lararium/vm/protection.h"
#include "lararium/vm/vcpu.h"

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace lararium::gate {

struct GuardTiming {
  std::chrono::microseconds quiet{100};     // without a change, after one: the write is done
  std::chrono::microseconds patience{2000}; // without any change: whoever was let go did not get to it yet
  std::chrono::microseconds longest{20000}; // that a page stays open
  std::chrono::milliseconds poll{100};      // between looks at what is compared, at modules, at the kernel itself
};

struct GuardOptions {
  GuardTiming timing;
  bool revert = false; // put back what is not lawful
  bool lawful = false; // give lawful writes, too
  // The vCPUs' registers, by a thread of its own: they say whether the kernel that is guarded still runs, before
  // anything is put back. Empty: they cannot be had.
  std::function<std::future<Result<std::vector<VcpuRegisters>>>()> registers{};
};

struct GuardCounts {
  std::uint64_t pages = 0, compared_pages = 0; // guarded now; of them compared only
  std::uint64_t faults = 0;
  std::uint64_t lawful = 0, unlawful = 0, reverted = 0; // writes
  std::uint64_t restored = 0;                           // unlawful ones that were put back by whoever
  std::uint64_t unchanged = 0;                          // openings in which nothing changed
  std::uint64_t left_out = 0;                           // unlawful writes of which no more is told
  std::chrono::nanoseconds open{}, longest_open{};      // blind windows: together, and the longest
};

class MemoryGuard {
public:
  using Clock = std::chrono::steady_clock;

  // Whether the guest is far enough to be guarded; else why not.
  [[nodiscard]] static Result<void> check_ready(const OperatingSystem &system);
  // Of a system that attach() gave; started.
  [[nodiscard]] static Result<std::unique_ptr<MemoryGuard>> create(OperatingSystem &system, PhysicalMemory &memory,
                                                                   WriteProtection &protection, GuardOptions options);
  // All must outlive the guard. `memory` is that of `kernel`.
  MemoryGuard(OperatingSystem &system, const linux_guest::Kernel &kernel, PhysicalMemory &memory,
              WriteProtection &protection, GuardOptions options);
  MemoryGuard(const MemoryGuard &) = delete;
  MemoryGuard &operator=(const MemoryGuard &) = delete;
  ~MemoryGuard();

  // Protects all that there is to protect. An error: nothing is protected.
  [[nodiscard]] Result<void> start();
  // Waits for writes, at most that long, and gives what is known by now. `gone`: the VM ended; `unknown_os`: the kernel
  // that was guarded runs no more (a reset). Then nothing is protected any more.
  [[nodiscard]] Result<void> step(std::chrono::milliseconds timeout, std::vector<Record> &out);

  // When step() has something to do although nobody writes.
  [[nodiscard]] Clock::time_point due(Clock::time_point now) const;

  [[nodiscard]] GuardCounts counts() const;
  [[nodiscard]] const std::vector<std::string> &limitations() const { return limitations_; }

private:
  struct Unit {                     // what the host protects at once: a page, or a huge page of the host's
    std::vector<GuardedPage> pages; // by frame
    std::uint64_t size = page_size;
    bool compared = false; // not protected
    bool open = false, changed = false;
    std::vector<std::byte> before, last;
    Clock::time_point opened, check, deadline;
    std::uint64_t host_time_ns = 0;
    std::chrono::microseconds patience{};
    WriteFault writer;
    std::optional<linux_guest::TaskBrief> task;
    unsigned faults = 0;
  };
  struct Unlawful { // found, waiting to be verified
    GuardedPage page;
    Gva address;
    std::vector<std::byte> before, after;
    std::string reason;
    WriteFault writer;
    bool has_writer = false;
    std::optional<linux_guest::TaskBrief> task;
    std::uint64_t host_time_ns = 0;
    std::chrono::microseconds open{};
    Clock::time_point found;
  };

  [[nodiscard]] Result<void> add_pages(std::vector<GuardedPage> pages);
  void take_fault(const WriteFault &fault, Clock::time_point now);
  void look_at_open(Clock::time_point now, std::vector<Record> &out);
  void close(Gpa base, Unit &unit, Clock::time_point now, std::vector<Record> &out);
  void judge(const Unit &unit, const GuardedPage &page, Bytes before, Bytes after, std::vector<Record> &out);
  void judge_run(const Unit &unit, const GuardedPage &page, std::size_t begin, Bytes before, Bytes after,
                 std::string_view reason, bool lawful, std::vector<Record> &out);
  void verify(std::vector<Record> &out);
  [[nodiscard]] bool kernel_is_there();
  [[nodiscard]] bool puts_back(Gva address, Bytes after);
  void find_tampered_again(const Unit &unit, const GuardedPage &page, Bytes now_there);
  [[nodiscard]] Record record_of(const Unlawful &write, std::string_view action, const VcpuRegisters *registers);
  void look_at_the_rest(Clock::time_point now, std::vector<Record> &out);
  void look_at_modules();
  void look_at_compared(std::vector<Record> &out);
  void look_at_passing(Clock::time_point now);
  [[nodiscard]] bool is_gone(const GuardedPage &page);
  void expect_again(const Unlawful &write);
  void forget(Gpa base);
  void forget_pages(const std::function<bool(const GuardedPage &)> &is_gone);
  void release_all();
  [[nodiscard]] std::string describe(Gva address, const GuardedPage &page);

  struct ModuleText {
    Gva module, base;
    std::uint64_t frames = 0; // a mixture of where its pages lie, and whether they are read-only
    bool operator==(const ModuleText &) const = default;
  };
  struct Passing {
    Gpa frame;
    Gva address;
    std::byte before;
    Unlawful write;
    Clock::time_point due, latest;
  };

  OperatingSystem &system_;
  const linux_guest::Kernel &kernel_;
  PhysicalMemory &memory_;
  WriteProtection &protection_;
  GuardOptions options_;
  std::unique_ptr<class LawfulWrites> lawful_;
  std::map<Gpa, Unit> units_; // by base
  std::vector<Gpa> open_;
  std::vector<std::string> limitations_;
  std::deque<Unlawful> unverified_;
  std::vector<Passing> passing_;
  std::map<Gva, std::byte> tampered_; // what stood where something unlawful stands now
  std::future<Result<std::vector<VcpuRegisters>>> registers_;
  int readings_without_kernel_ = 0;
  std::vector<std::byte> banner_;   // of the kernel that is guarded
  std::vector<ModuleText> modules_; // as last seen
  Clock::time_point next_poll_;
  GuardCounts counts_;
  bool lost_ = false;
};

} // namespace lararium::gate
