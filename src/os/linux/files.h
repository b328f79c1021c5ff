// Open files: what `lsof` shows.
#pragma once

#include "lararium/os/common/views.h"
#include "lararium/os/linux/kernel.h"

#include <cstdint>
#include <optional>

namespace lararium::linux_guest {

// The descriptors of every process, or of one; as /proc/PID/fd and fdinfo tell them.
[[nodiscard]] Result<View<OpenFile>> read_open_files(const Kernel &kernel, std::optional<std::int32_t> pid);

} // namespace lararium::linux_guest
