// Changes that no write to memory shows, found by polling: another entry for system calls (LSTAR), other tables of
// interrupts and segments (IDTR, GDTR), protections of the processor that are off (CR0.WP; CR4.SMEP, SMAP, PKE and what
// else the kernel pins), and page tables that are no process's (CR3). Pure but for what it reads of the guest's memory:
// who has the registers gives them.
//
// A look at registers is one moment of each vCPU, and the guest's lists are read a moment later. So what was seen once
// is looked at again soon; what is told was seen at each of several looks. What lasts less than that goes unseen.
#pragma once

#include "lararium/os/common/operating_system.h"
#include "lararium/os/linux/cpu_registers.h"
#include "lararium/os/linux/kernel.h"
#include "lararium/record/record.h"
#include "lararium/vm/vcpu.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace lararium::gate {

struct RegisterTiming {
  std::chrono::milliseconds interval{1000}; // between looks
  std::chrono::milliseconds again{50};      // after something was seen
};

struct RegisterCounts {
  std::uint64_t looks = 0;
  std::uint64_t deviations = 0; // told of
};

class RegisterGuard {
public:
  using Clock = std::chrono::steady_clock;

  // Both must outlive it.
  RegisterGuard(OperatingSystem &system, const linux_guest::Kernel &kernel, RegisterTiming timing = {})
      : system_(system), kernel_(kernel), timing_(timing) {}

  // When registers are wanted next.
  [[nodiscard]] Clock::time_point due() const { return due_; }
  // One look, at registers that were read just now.
  void look(std::span<const VcpuRegisters> vcpus, Clock::time_point now, std::vector<Record> &out);
  // Between looks: whether the page tables that are suspected are a process's after all. Cheap when none is.
  void look_between(Clock::time_point now);
  [[nodiscard]] bool suspects_tables() const {
    return std::ranges::any_of(tables_, [](const auto &entry) { return !entry.second.told; });
  }

  [[nodiscard]] const RegisterCounts &counts() const { return counts_; }

private:
  struct Suspicion { // of one register of one vCPU
    linux_guest::RegisterDeviation deviation;
    unsigned looks = 0;
    bool told = false;
  };
  struct StrangeTable { // in CR3, and in no mm
    std::uint32_t vcpu = 0;
    std::uint64_t cr3 = 0;
    Gva rip;
    unsigned seen = 0, reads = 0; // in a register; how often the lists were read meanwhile and did not have it
    bool told = false;
    Clock::time_point last_seen;
  };
  using Place = std::pair<std::uint32_t, std::string_view>; // vCPU, register

  void look_at_tables(std::span<const VcpuRegisters> vcpus, Clock::time_point now, std::vector<Record> &out);
  [[nodiscard]] bool runs_virtual_machines();
  [[nodiscard]] bool maps_the_kernel(const x86_64::PageTableRoot &root) const;
  void tell(std::uint32_t vcpu, std::string_view name, bool lawful, std::uint64_t found, std::uint64_t expected,
            std::string what, std::vector<RecordField> more, std::vector<Record> &out);

  OperatingSystem &system_;
  const linux_guest::Kernel &kernel_;
  RegisterTiming timing_;
  std::map<Place, Suspicion> suspicions_;
  std::map<Gpa, StrangeTable> tables_;
  Clock::time_point due_{}, between_{};
  RegisterCounts counts_;
};

} // namespace lararium::gate
