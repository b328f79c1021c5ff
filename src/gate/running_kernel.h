// Whether the kernel that is guarded is the one that runs. After a reset, memory still holds what it held before.
#pragma once

#include "lararium/os/linux/kernel.h"
#include "lararium/vm/vcpu.h"

#include <span>

namespace lararium::gate {

enum class Sight { running, unclear, gone };

// Running: some vCPU's page tables map the kernel's image where it was found. A process that ends takes its tables with
// it, between the reading of the registers and ours of the tables, so gone is what is not there in a few readings in a
// row; WITHOUT counts them, for one guard.
[[nodiscard]] Sight look_for(const linux_guest::Kernel &kernel, std::span<const VcpuRegisters> vcpus, int &without);

} // namespace lararium::gate
