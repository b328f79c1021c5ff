// The environment of a process, from its own memory: /proc/PID/environ.
#pragma once

#include "lararium/os/common/views.h"
#include "lararium/os/linux/kernel.h"

#include <cstdint>
#include <string>

namespace lararium::linux_guest {

// "NAME=value", as it stands on the process' stack now; empty for kernel threads. A process may have overwritten it.
[[nodiscard]] Result<View<std::string>> read_environment(const Kernel &kernel, std::int32_t pid);

} // namespace lararium::linux_guest
