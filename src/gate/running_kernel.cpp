#include "running_kernel.h"

#include <algorithm>
#include <array>

namespace lararium::gate {

namespace {

constexpr int believed_readings = 3;

bool some_vcpu_maps(const linux_guest::Kernel &kernel, std::span<const VcpuRegisters> vcpus) {
  const auto &location = kernel.location();
  return std::ranges::any_of(vcpus, [&](const VcpuRegisters &vcpu) {
    if (!vcpu.paging())
      return false;
    const auto root = x86_64::PageTableRoot::from_registers(vcpu.cr3, vcpu.five_level_paging());
    // With page table isolation the table of user mode maps the entry code alone; the kernel's is the page before it.
    return std::ranges::any_of(std::array{root, root.kernel_half()}, [&](const x86_64::PageTableRoot &each) {
      const auto base = AddressSpace(kernel.memory(), each).translate(location.base);
      return base && base->address == location.physical_base;
    });
  });
}

} // namespace

Sight look_for(const linux_guest::Kernel &kernel, std::span<const VcpuRegisters> vcpus, int &without) {
  without = some_vcpu_maps(kernel, vcpus) ? 0 : without + 1;
  if (without == 0)
    return Sight::running;
  return without < believed_readings ? Sight::unclear : Sight::gone;
}

} // namespace lararium::gate
