// What a core file of a process needs, beside its memory.
#pragma once

#include "lararium/os/common/operating_system.h"
#include "lararium/os/linux/kernel.h"
#include "lararium/vm/vcpu.h"

#include <cstdint>
#include <span>

namespace lararium::linux_guest {

// Threads that do not run have their user registers at the top of their kernel stacks. Those of a thread that runs are
// in its vCPU: pass `vcpus`, taken with the guest paused; without, such a thread has no registers.
[[nodiscard]] Result<ProcessImage> read_process_image(const Kernel &kernel, std::int32_t pid,
                                                      std::span<const VcpuRegisters> vcpus = {});

} // namespace lararium::linux_guest
