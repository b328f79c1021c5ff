// The notes of a core: registers of the vCPUs, and the kernel's VMCOREINFO.
#pragma once

#include "lararium/base/bytes.h"
#include "lararium/vm/vcpu.h"

#include <string>
#include <string_view>
#include <vector>

namespace lararium::dump {

inline constexpr std::size_t notes_limit = std::size_t{16} << 20; // bytes of notes that are looked at
inline constexpr std::size_t vcpu_limit = 4096;                   // as QEMU's own
inline constexpr std::size_t vmcoreinfo_limit = std::size_t{1} << 20;

inline constexpr std::uint32_t note_prstatus = 1, note_prpsinfo = 3, note_auxv = 6;
inline constexpr std::uint32_t note_file = 0x46494c45; // "FILE"

// struct elf_prstatus of x86-64: what precedes the registers is of no use here but pr_cursig and pr_pid.
struct Prstatus {
  std::uint32_t signal_info[3] = {};
  std::uint16_t current_signal = 0, padding1 = 0;
  std::uint64_t pending_signals = 0, held_signals = 0;
  std::int32_t pid = 0, parent = 0, process_group = 0, session = 0;
  std::uint64_t times[8] = {};
  std::uint64_t r15 = 0, r14 = 0, r13 = 0, r12 = 0, rbp = 0, rbx = 0, r11 = 0, r10 = 0, r9 = 0, r8 = 0, rax = 0,
                rcx = 0, rdx = 0, rsi = 0, rdi = 0, orig_rax = 0, rip = 0, cs = 0, rflags = 0, rsp = 0, ss = 0,
                fs_base = 0, gs_base = 0, ds = 0, es = 0, fs = 0, gs = 0;
  std::int32_t fp_valid = 0;
  std::uint32_t padding2 = 0;
};
static_assert(sizeof(Prstatus) == 336);

// QEMUCPUState of QEMU's target/i386/arch_dump.c. Fields are added at its end without a new version; `size` tells.
struct QemuSegment {
  std::uint32_t selector = 0, limit = 0, flags = 0, padding = 0;
  std::uint64_t base = 0;
};
struct QemuCpuState {
  std::uint32_t version = 1, size = 0;
  std::uint64_t rax = 0, rbx = 0, rcx = 0, rdx = 0, rsi = 0, rdi = 0, rsp = 0, rbp = 0;
  std::uint64_t r8_to_r15[8] = {};
  std::uint64_t rip = 0, rflags = 0;
  QemuSegment cs, ds, es, fs, gs, ss, ldt, tr, gdt, idt;
  std::uint64_t cr[5] = {};
  std::uint64_t kernel_gs_base = 0; // since QEMU 3.0
};
inline constexpr std::size_t qemu_cpu_state_without_kernel_gs = 432;
static_assert(sizeof(QemuCpuState) == qemu_cpu_state_without_kernel_gs + 8);

struct Notes {
  std::vector<VcpuRegisters> vcpus; // QEMU's account where there is one, else that of NT_PRSTATUS
  std::string vmcoreinfo;
  bool of_qemu = false;    // a QEMU note was there
  bool of_process = false; // notes were there that only the core of a process has
};

// `x86_64` tells whether register notes are of this architecture; others are passed over. Never fails: what is broken
// is left out, and a note whose size leaves the span ends the walk.
[[nodiscard]] Notes parse_notes(Bytes notes, bool x86_64);

[[nodiscard]] Prstatus make_prstatus(const VcpuRegisters &registers);
[[nodiscard]] QemuCpuState make_qemu_cpu_state(const VcpuRegisters &registers);
// Appends one note, padded to 4 bytes.
void append_note(std::vector<std::byte> &notes, std::string_view name, std::uint32_t type, Bytes content);

} // namespace lararium::dump
