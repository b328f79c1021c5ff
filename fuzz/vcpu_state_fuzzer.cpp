// QEMU's memory, searched for the state of vCPUs whose registers are the first bytes of the input.
#include "vcpu_state.h"

#include <cstdlib>

using namespace lararium;
using namespace lararium::qemu;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  const Bytes input = std::as_bytes(std::span(data, size));
  constexpr std::size_t registers = 32;
  if (size < 1 + 2 * registers)
    return 0;
  const Hva base{std::uint64_t{data[0]} << 12};
  std::array<VcpuRegisters, 2> vcpus;
  for (std::size_t i = 0; i < vcpus.size(); i++) {
    const Bytes part = input.subspan(1 + i * registers, registers);
    vcpus[i].gdt_base = Gva{load<std::uint64_t>(part, 0).value_or(0)};
    vcpus[i].idt_base = Gva{load<std::uint64_t>(part, 8).value_or(0)};
    vcpus[i].tr_base = Gva{load<std::uint64_t>(part, 16).value_or(0)};
    vcpus[i].gdt_limit = load<std::uint16_t>(part, 24).value_or(0);
    vcpus[i].idt_limit = load<std::uint16_t>(part, 26).value_or(0);
    vcpus[i].efer = load<std::uint16_t>(part, 28).value_or(0);
    vcpus[i].cr0 = std::uint64_t{load<std::uint8_t>(part, 30).value_or(0)} << 24;
    vcpus[i].cr4 = load<std::uint8_t>(part, 31).value_or(0);
  }
  const Bytes memory = input.subspan(1 + 2 * registers);
  const std::size_t from = data[0] % 64;
  std::array<Bytes, 2> states{memory, memory.subspan(memory.size() / 2)};
  for (const auto &place : find_vcpu_states(memory, base, from, vcpus)) {
    // What is told must be there.
    const std::uint64_t offset = place.address - base;
    if (place.vcpu >= vcpus.size() || offset < from || offset > memory.size() ||
        !is_state_of(memory.subspan(offset), vcpus[place.vcpu]))
      std::abort();
    states[place.vcpu] = memory.subspan(offset);
  }
  if (const auto run = find_msr_run(states, vcpus))
    for (std::size_t i = 0; i < vcpus.size(); i++)
      if (vcpus[i].runs_64_bit_kernel() && !read_msr_run(states[i].subspan(*run)))
        std::abort();
  return 0;
}
