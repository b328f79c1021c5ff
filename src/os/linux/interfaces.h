// Network interfaces of all namespaces.
#pragma once

#include "lararium/os/common/views.h"
#include "lararium/os/linux/kernel.h"

namespace lararium::linux_guest {

// Flags are what `ip link` shows, save that IFF_PROMISC and IFF_ALLMULTI tell what the device does: a socket that
// asked for promiscuous mode does not show in the guest's own flags. Counters are those of dev_get_stats() for devices
// that count in net_device or in one of the kernel's per-CPU structures, for veth (without the packets of XDP) and,
// where modules carry their types (5.11 and later), for virtio_net, else with a warning; other drivers with counters of
// their own show what they last copied into net_device.
[[nodiscard]] Result<View<NetworkInterface>> read_interfaces(const Kernel &kernel);

} // namespace lararium::linux_guest
