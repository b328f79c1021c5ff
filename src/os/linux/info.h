// What the system as a whole says of itself.
#pragma once

#include "kernel.h"
#include "lararium/os/common/views.h"

namespace lararium::linux_guest {

[[nodiscard]] Result<SystemInfo> read_info(const Kernel &kernel);

} // namespace lararium::linux_guest
