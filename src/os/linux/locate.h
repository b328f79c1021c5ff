// Finding a Linux kernel in a target's memory, with nothing known beforehand.
#pragma once

#include "lararium/os/linux/kernel.h"
#include "lararium/vm/target.h"

#include <vector>

namespace lararium::linux_guest {

// Kernels that could be the running one, likeliest first, at most 16: from the vCPUs' CR3, then the VMCOREINFO that a
// dump carries, then each VMCOREINFO found in memory. Several differ when a former kernel's remains are still there
// (after a kexec or a reset) or somebody forged one; the caller takes the first that holds a profile. `search_memory`
// false leaves out the search through all of memory.
[[nodiscard]] std::vector<KernelLocation>
locate_kernels(const Target &target, const std::vector<VcpuRegisters> &registers, bool search_memory);

} // namespace lararium::linux_guest
