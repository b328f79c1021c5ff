// Port: the registers of a target's virtual CPUs.
#pragma once

#include "lararium/base/result.h"

#include <cstdint>
#include <vector>

namespace lararium {

// x86-64 state that locating and reading an operating system needs. Zero where a source does not tell a register
// (QEMU's `info registers` does not print LSTAR, a core's PRSTATUS no control registers).
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

  [[nodiscard]] bool in_user_mode() const { return (cs & 3) == 3; }
  [[nodiscard]] bool paging() const { return (cr0 >> 31 & 1) != 0; }
  [[nodiscard]] bool five_level_paging() const { return (cr4 >> 12 & 1) != 0; }
};

class Vcpus {
public:
  virtual ~Vcpus() = default;
  // Each running vCPU is looked at in its own moment; pause the guest for one consistent set.
  [[nodiscard]] virtual Result<std::vector<VcpuRegisters>> registers() = 0;
};

} // namespace lararium
