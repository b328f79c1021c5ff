#include "vcpu_state.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>

namespace lararium::qemu {
namespace {

// SegmentCache: a selector of 4 bytes, 4 of padding, a base of 8, a limit and flags of 4 each. Then cr[5].
constexpr std::size_t tr_base = 8, gdt_base = 32, gdt_limit = 40, idt_base = 56, idt_limit = 64, cr0 = 72, cr4 = 104;
static_assert(cr4 + 8 == state_header_size);

// Kernels change these from task to task, and when they flush translations: between two readings they may differ.
constexpr std::uint64_t fleeting_cr0 = 1 << 3;                   // TS
constexpr std::uint64_t fleeting_cr4 = 1 << 2 | 1 << 7 | 1 << 8; // TSD, PGE, PCE

template <class T> T at(Bytes bytes, std::size_t offset) { return load<T>(bytes, offset).value_or(T{}); }

// An empty list's head, whose second word is the address of its first (QTAILQ_INIT, QSIMPLEQ_INIT).
bool knows_itself(Bytes memory, Hva base, std::size_t offset) {
  const std::size_t begin = offset - std::min(offset, state_context);
  for (std::size_t i = begin; i + 16 <= offset; i += 8)
    if (at<std::uint64_t>(memory, i + 8) == base.value + i && at<std::uint64_t>(memory, i) == 0)
      return true;
  return false;
}

bool is_canonical(std::uint64_t address) { // with five levels
  const auto top = static_cast<std::int64_t>(address) >> 56;
  return top == 0 || top == -1;
}

// SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP, STAR, VM_HSAVE_PA, LSTAR, CSTAR, FMASK, KERNEL_GS_BASE
bool may_be_msr_run(Bytes bytes, const VcpuRegisters &vcpu) {
  std::array<std::uint64_t, msr_run_size / 8> run{};
  for (std::size_t i = 0; i < run.size(); i++)
    run[i] = at<std::uint64_t>(bytes, i * 8);
  const auto &[sysenter_cs, sysenter_esp, sysenter_eip, star, hsave, lstar, cstar, fmask, gs_base] = run;
  const std::uint64_t kernel_selector = star >> 32 & 0xffff, user_selector = star >> 48;
  constexpr std::uint64_t max_physical = std::uint64_t{1} << 52;
  return sysenter_cs <= 0xffff && is_canonical(sysenter_esp) && is_canonical(sysenter_eip) && kernel_selector != 0 &&
         (kernel_selector & 7) == 0 && kernel_selector < vcpu.gdt_limit && user_selector < vcpu.gdt_limit &&
         hsave % page_size == 0 && hsave < max_physical && lstar >> 63 != 0 && is_canonical(lstar) &&
         is_canonical(cstar) && fmask != 0 && fmask <= UINT32_MAX && is_canonical(gs_base);
}

} // namespace

bool is_state_of(Bytes state, const VcpuRegisters &vcpu) {
  return state.size() >= state_header_size && at<std::uint64_t>(state, tr_base) == vcpu.tr_base.value &&
         at<std::uint64_t>(state, gdt_base) == vcpu.gdt_base.value &&
         at<std::uint32_t>(state, gdt_limit) == vcpu.gdt_limit &&
         at<std::uint64_t>(state, idt_base) == vcpu.idt_base.value &&
         at<std::uint32_t>(state, idt_limit) == vcpu.idt_limit &&
         ((at<std::uint64_t>(state, cr0) ^ vcpu.cr0) & ~fleeting_cr0) == 0 &&
         ((at<std::uint64_t>(state, cr4) ^ vcpu.cr4) & ~fleeting_cr4) == 0;
}

bool has_paging(Bytes state) { return (at<std::uint64_t>(state, cr0) >> 31 & 1) != 0; }

std::vector<StatePlace> find_vcpu_states(Bytes memory, Hva base, std::size_t from,
                                         std::span<const VcpuRegisters> vcpus) {
  // Linux has one table of interrupts for all CPUs: each word is compared with that one address.
  std::vector<std::uint64_t> tables;
  for (const auto &vcpu : vcpus)
    if (vcpu.gdt_base && vcpu.idt_base)
      tables.push_back(vcpu.idt_base.value);
  std::ranges::sort(tables);
  tables.erase(std::ranges::unique(tables).begin(), tables.end());
  std::vector<StatePlace> result;
  if (tables.empty())
    return result;

  constexpr std::size_t most_places = 1024;
  const std::size_t misaligned = (base.value + from) % 8;
  std::size_t offset = from + (misaligned == 0 ? 0 : 8 - misaligned);
  for (; offset < memory.size() && memory.size() - offset >= state_header_size; offset += 8) {
    const auto word = at<std::uint64_t>(memory, offset + idt_base);
    if (word != tables.front() && (tables.size() == 1 || !std::ranges::binary_search(tables, word)))
      continue;
    for (std::size_t i = 0; i < vcpus.size(); i++)
      if (vcpus[i].gdt_base && is_state_of(memory.subspan(offset), vcpus[i]) && knows_itself(memory, base, offset)) {
        result.push_back({i, base + offset});
        if (result.size() == most_places)
          return result;
      }
  }
  return result;
}

Result<std::size_t> find_msr_run(std::span<const Bytes> states, std::span<const VcpuRegisters> vcpus) {
  std::vector<std::size_t> found;
  bool any = false;
  for (std::size_t i = 0; i < std::min(states.size(), vcpus.size()); i++) {
    const auto &vcpu = vcpus[i];
    const Bytes state = states[i].first(std::min(states[i].size(), state_size));
    if (!vcpu.runs_64_bit_kernel())
      continue;
    const auto fits = [&](std::size_t offset) {
      return state.size() >= msr_run_size && offset <= state.size() - msr_run_size &&
             may_be_msr_run(state.subspan(offset), vcpu);
    };
    if (any) {
      std::erase_if(found, [&](std::size_t offset) { return !fits(offset); });
      continue;
    }
    any = true;
    bool after_efer = false;
    for (std::size_t offset = state_header_size; offset < state.size(); offset += 8) {
      if (after_efer && fits(offset))
        found.push_back(offset);
      after_efer = after_efer || at<std::uint64_t>(state, offset) == vcpu.efer;
    }
  }
  if (!any)
    return fail(ErrorCode::not_found, "no vCPU runs a 64-bit kernel");
  if (found.empty())
    return fail(ErrorCode::not_found,
                "QEMU's memory does not have the registers for system calls where they should be");
  if (found.size() > 1)
    return fail(ErrorCode::ambiguous,
                fmt::format("the registers for system calls could be at {} places of QEMU's state", found.size()));
  return found.front();
}

std::optional<SystemCallMsrs> read_msr_run(Bytes run) {
  if (run.size() < msr_run_size)
    return std::nullopt;
  SystemCallMsrs msrs;
  msrs.sysenter_cs = at<std::uint32_t>(run, 0);
  msrs.sysenter_esp = Gva{at<std::uint64_t>(run, 8)};
  msrs.sysenter_eip = Gva{at<std::uint64_t>(run, 16)};
  msrs.star = at<std::uint64_t>(run, 24);
  msrs.lstar = Gva{at<std::uint64_t>(run, 40)};
  msrs.cstar = Gva{at<std::uint64_t>(run, 48)};
  msrs.fmask = at<std::uint64_t>(run, 56);
  msrs.kernel_gs_base = Gva{at<std::uint64_t>(run, 64)};
  return msrs;
}

} // namespace lararium::qemu
