#include "notes.h"

#include <algorithm>
#include <cstddef>

namespace lararium::dump {
namespace {

enum Register : std::size_t { rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15 };

VcpuRegisters from_prstatus(const Prstatus &status) {
  VcpuRegisters registers;
  registers.rip = Gva{status.rip};
  registers.rsp = Gva{status.rsp};
  registers.rflags = status.rflags;
  const std::uint64_t general[16] = {status.rax, status.rcx, status.rdx, status.rbx, status.rsp, status.rbp,
                                     status.rsi, status.rdi, status.r8,  status.r9,  status.r10, status.r11,
                                     status.r12, status.r13, status.r14, status.r15};
  std::ranges::copy(general, registers.general);
  registers.fs_base = Gva{status.fs_base};
  registers.gs_base = Gva{status.gs_base};
  registers.cs = static_cast<std::uint16_t>(status.cs);
  registers.ss = static_cast<std::uint16_t>(status.ss);
  return registers;
}

VcpuRegisters from_qemu(const QemuCpuState &state) {
  VcpuRegisters registers;
  registers.rip = Gva{state.rip};
  registers.rsp = Gva{state.rsp};
  registers.rflags = state.rflags;
  const std::uint64_t low[8] = {state.rax, state.rcx, state.rdx, state.rbx, state.rsp, state.rbp, state.rsi, state.rdi};
  std::ranges::copy(low, registers.general);
  std::ranges::copy(state.r8_to_r15, registers.general + r8);
  registers.cr0 = state.cr[0];
  registers.cr2 = state.cr[2];
  registers.cr3 = state.cr[3];
  registers.cr4 = state.cr[4];
  registers.fs_base = Gva{state.fs.base};
  registers.gs_base = Gva{state.gs.base};
  registers.kernel_gs_base = Gva{state.kernel_gs_base};
  registers.idt_base = Gva{state.idt.base};
  registers.gdt_base = Gva{state.gdt.base};
  registers.tr_base = Gva{state.tr.base};
  registers.idt_limit = static_cast<std::uint16_t>(state.idt.limit);
  registers.gdt_limit = static_cast<std::uint16_t>(state.gdt.limit);
  registers.cs = static_cast<std::uint16_t>(state.cs.selector);
  registers.ss = static_cast<std::uint16_t>(state.ss.selector);
  return registers;
}

} // namespace

Notes parse_notes(Bytes notes, bool x86_64) {
  Notes result;
  std::vector<VcpuRegisters> of_prstatus, of_qemu;
  std::size_t position = 0;
  while (const auto header = load<std::array<std::uint32_t, 3>>(notes, position)) {
    const auto [name_size, content_size, type] = *header;
    position += sizeof(*header);
    const std::uint64_t content_at = position + (std::uint64_t{name_size} + 3) / 4 * 4;
    if (content_at > notes.size() || notes.size() - content_at < content_size)
      break;
    const std::string_view name = c_string(notes, position, name_size);
    const Bytes content = notes.subspan(content_at, content_size);
    if (name == "VMCOREINFO") {
      if (result.vmcoreinfo.empty())
        result.vmcoreinfo = c_string(content, 0, vmcoreinfo_limit);
    } else if (name == "QEMU" && type == 0) {
      result.of_qemu = true;
      QemuCpuState state;
      if (x86_64 && content.size() >= qemu_cpu_state_without_kernel_gs && of_qemu.size() < vcpu_limit) {
        std::memcpy(&state, content.data(), std::min(content.size(), sizeof(state)));
        of_qemu.push_back(from_qemu(state));
      }
    } else if (name == "CORE" && type == note_prstatus) {
      if (const auto status = load<Prstatus>(content, 0);
          x86_64 && status && content.size() == sizeof(Prstatus) && of_prstatus.size() < vcpu_limit)
        of_prstatus.push_back(from_prstatus(*status));
    } else if (name == "CORE" && (type == note_prpsinfo || type == note_auxv || type == note_file)) {
      result.of_process = true;
    }
    const std::uint64_t next = content_at + (std::uint64_t{content_size} + 3) / 4 * 4;
    if (next >= notes.size())
      break;
    position = next;
  }
  result.vcpus = of_qemu.empty() ? std::move(of_prstatus) : std::move(of_qemu);
  for (std::uint32_t i = 0; i < result.vcpus.size(); ++i)
    result.vcpus[i].index = i;
  return result;
}

Prstatus make_prstatus(const VcpuRegisters &registers) {
  Prstatus status;
  const auto &general = registers.general;
  status.r15 = general[r15];
  status.r14 = general[r14];
  status.r13 = general[r13];
  status.r12 = general[r12];
  status.r11 = general[r11];
  status.r10 = general[r10];
  status.r9 = general[r9];
  status.r8 = general[r8];
  status.rax = general[rax];
  status.rbx = general[rbx];
  status.rcx = general[rcx];
  status.rdx = general[rdx];
  status.rsi = general[rsi];
  status.rdi = general[rdi];
  status.rbp = general[rbp];
  status.rsp = registers.rsp.value;
  status.rip = registers.rip.value;
  status.rflags = registers.rflags;
  status.cs = registers.cs;
  status.ss = registers.ss;
  status.fs_base = registers.fs_base.value;
  status.gs_base = registers.gs_base.value;
  return status;
}

QemuCpuState make_qemu_cpu_state(const VcpuRegisters &registers) {
  QemuCpuState state;
  const auto &general = registers.general;
  state.size = sizeof(state);
  state.rax = general[rax];
  state.rbx = general[rbx];
  state.rcx = general[rcx];
  state.rdx = general[rdx];
  state.rsi = general[rsi];
  state.rdi = general[rdi];
  state.rbp = general[rbp];
  state.rsp = registers.rsp.value;
  std::copy_n(general + r8, 8, state.r8_to_r15);
  state.rip = registers.rip.value;
  state.rflags = registers.rflags;
  state.cs.selector = registers.cs;
  state.ss.selector = registers.ss;
  state.fs.base = registers.fs_base.value;
  state.gs.base = registers.gs_base.value;
  state.tr.base = registers.tr_base.value;
  state.gdt.base = registers.gdt_base.value;
  state.gdt.limit = registers.gdt_limit;
  state.idt.base = registers.idt_base.value;
  state.idt.limit = registers.idt_limit;
  state.cr[0] = registers.cr0;
  state.cr[2] = registers.cr2;
  state.cr[3] = registers.cr3;
  state.cr[4] = registers.cr4;
  state.kernel_gs_base = registers.kernel_gs_base.value;
  return state;
}

void append_note(std::vector<std::byte> &notes, std::string_view name, std::uint32_t type, Bytes content) {
  const auto append = [&](Bytes bytes) { notes.insert(notes.end(), bytes.begin(), bytes.end()); };
  const auto pad = [&] { notes.resize((notes.size() + 3) / 4 * 4); };
  const std::uint32_t header[3] = {static_cast<std::uint32_t>(name.size() + 1),
                                   static_cast<std::uint32_t>(content.size()), type};
  append(std::as_bytes(std::span(header)));
  append(bytes_of(name));
  notes.push_back(std::byte{0});
  pad();
  append(content);
  pad();
}

} // namespace lararium::dump
