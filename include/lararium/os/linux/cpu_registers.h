// What a running Linux kernel keeps in the registers of its CPUs: where system calls and interrupts lead to, which of
// the processor's protections are on, and whose page table is in use.
#pragma once

#include "lararium/os/linux/kernel.h"
#include "lararium/vm/vcpu.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lararium::linux_guest {

// A register that does not hold what the kernel put there.
struct RegisterDeviation {
  std::string_view name; // "LSTAR", "IDTR", "GDTR", "CR0", "CR4"
  std::uint64_t found = 0, expected = 0;
  std::string what; // with the CPU in front a sentence: "takes interrupts by a table at ... that is not the kernel's"
};

// Of one CPU; nothing where it runs no 64-bit kernel (its firmware, or it was not started), or where another kernel's
// registers may stand there. What this kernel has no symbol for is not judged.
//
// LSTAR (where the MSRs are known): the kernel's entry for system calls. IDTR, GDTR: its tables, whichever view of
// them. CR0.WP: on. CR4: what the kernel pins (SMEP, SMAP, UMIP and others; 873d50d58f67, 5.3), and PKE where it uses
// it.
[[nodiscard]] std::vector<RegisterDeviation> judge_registers(const Kernel &kernel, const VcpuRegisters &vcpu);

// The top page tables that a CPU may have in CR3: those of all tasks, of tasks that are gone but whose table a CPU has
// borrowed, and the kernel's own (for itself, for patching code, for calls into the firmware, for starting CPUs).
class PageTables {
public:
  [[nodiscard]] static Result<PageTables> read(const Kernel &kernel);
  [[nodiscard]] bool hold(const x86_64::PageTableRoot &root) const;
  // Whether the list of tasks was read to its end: else there may be more.
  [[nodiscard]] bool complete() const { return complete_; }

private:
  std::vector<Gpa> tables_; // sorted
  bool complete_ = false;
  bool isolated_ = false; // page table isolation: each table's user half is the page behind it
};

} // namespace lararium::linux_guest
