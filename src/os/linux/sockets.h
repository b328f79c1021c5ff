// Sockets of all network namespaces.
#pragma once

#include "lararium/os/common/views.h"
#include "lararium/os/linux/kernel.h"

namespace lararium::linux_guest {

// The union of what the kernel's tables hold (TCP, UDP, UDP-Lite, raw, ping, packet, unix, netlink) and of what
// processes hold open, by address: a socket that is in a table only is the kernel's own, orphaned or in flight; one
// that is open only is not bound, of another family, or was taken out of its table (which is worth a warning).
[[nodiscard]] Result<View<Socket>> read_sockets(const Kernel &kernel);

} // namespace lararium::linux_guest
