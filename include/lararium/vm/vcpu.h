// Port: the registers of a target's virtual CPUs.
#pragma once

#include "lararium/base/result.h"

#include <cstdint>
#include <optional>
#include <vector>

namespace lararium {

// The model-specific registers by which a program gets into the kernel (Intel SDM volume 3, 5.8.7 and 5.8.8). EFER is
// among the others.
struct SystemCallMsrs {
  std::uint64_t star = 0;  // the selectors of SYSCALL in bits 32 to 47, of SYSRET in 48 to 63
  Gva lstar, cstar;        // where SYSCALL leads to from 64-bit code, and from 32-bit code
  std::uint64_t fmask = 0; // the flags that SYSCALL clears
  Gva kernel_gs_base;      // what SWAPGS exchanges for the base of GS
  std::uint32_t sysenter_cs = 0;
  Gva sysenter_esp, sysenter_eip;

  bool operator==(const SystemCallMsrs &) const = default;
};

// x86-64 state that locating and reading an operating system needs. Zero where a source does not tell a register (a
// core's PRSTATUS has no control registers).
struct VcpuRegisters {
  std::uint32_t index = 0;
  bool halted = false;
  Gva rip, rsp;
  std::uint64_t rflags = 0;
  std::uint64_t general[16] = {}; // rax rcx rdx rbx rsp rbp rsi rdi r8..r15, the order of the instruction encoding
  std::uint64_t cr0 = 0, cr2 = 0, cr3 = 0, cr4 = 0, efer = 0;
  Gva fs_base, gs_base, kernel_gs_base;
  Gva idt_base, gdt_base, tr_base;
  std::uint16_t idt_limit = 0, gdt_limit = 0;
  std::uint16_t cs = 0, ss = 0;
  std::optional<SystemCallMsrs> msrs; // only of registers_with_msrs()

  [[nodiscard]] bool in_user_mode() const { return (cs & 3) == 3; }
  [[nodiscard]] bool paging() const { return (cr0 >> 31 & 1) != 0; }
  [[nodiscard]] bool five_level_paging() const { return (cr4 >> 12 & 1) != 0; }
  // In 64-bit mode with tables in the upper half of the address space, where kernels are: neither firmware nor a CPU
  // that nobody started.
  [[nodiscard]] bool runs_64_bit_kernel() const {
    return paging() && (efer >> 10 & 1) != 0 && gdt_base.value >> 63 != 0 && idt_base.value >> 63 != 0;
  }
};

class Vcpus {
public:
  virtual ~Vcpus() = default;
  // Each running vCPU is looked at in its own moment; pause the guest for one consistent set.
  [[nodiscard]] virtual Result<std::vector<VcpuRegisters>> registers() = 0;
  // The same, with `msrs` for those that run a 64-bit kernel. An error is about the MSRs: registers() may still answer.
  // `unsupported`: this source has no such registers.
  [[nodiscard]] virtual Result<std::vector<VcpuRegisters>> registers_with_msrs() {
    return fail(ErrorCode::unsupported, "the registers for system calls (LSTAR and its kin) are not told here");
  }
  // Whether the VM was not reset since registers_with_msrs() last succeeded: known at once, without asking the VM.
  // Nothing: not known. May be called while another thread waits for registers().
  [[nodiscard]] virtual std::optional<bool> not_reset_since() { return std::nullopt; }
};

} // namespace lararium
