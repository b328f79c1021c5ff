// What the system as a whole says of itself.
#pragma once

#include "lararium/os/common/views.h"
#include "lararium/os/linux/kernel.h"

namespace lararium::linux_guest {

[[nodiscard]] Result<SystemInfo> read_info(const Kernel &kernel);

} // namespace lararium::linux_guest
