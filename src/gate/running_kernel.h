// Whether the kernel that is guarded is the one that runs. After a reset, memory still holds what it held before.
#pragma once

#include "lararium/os/linux/kernel.h"
#include "lararium/vm/vcpu.h"

#include <span>

namespace lararium::gate {

// Some vCPU's page tables map the kernel's image where it was found.
[[nodiscard]] bool some_vcpu_maps(const linux_guest::Kernel &kernel, std::span<const VcpuRegisters> vcpus);

} // namespace lararium::gate
