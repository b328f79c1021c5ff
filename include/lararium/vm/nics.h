// Port: the network interfaces of a running VM, as the VMM that plays them sees them, whatever the guest says.
#pragma once

#include "lararium/base/result.h"

#include <chrono>
#include <optional>
#include <string>
#include <vector>

namespace lararium {

struct Nic {
  std::string name;           // the VMM's: "net0", "virtio-net-pci.0"
  std::string mac;            // as the guest has set it, "52:54:00:12:34:56"; empty: not told
  std::string configured_mac; // as the VM was given it; empty: not told
  // Takes packets that are for others. Nothing: the device does not tell, or no driver of the guest's controls it.
  std::optional<bool> promiscuous;
};

// Not thread-safe.
class Nics {
public:
  virtual ~Nics() = default;
  [[nodiscard]] virtual Result<std::vector<Nic>> list() = 0;
  // Pulls a NIC's cable, or plugs it in.
  [[nodiscard]] virtual Result<void> set_link(const std::string &name, bool up) = 0;
  // Waits until the VMM says that a NIC's filter or address may have changed since list(), at most that long; whether
  // it did. It keeps a monitor of the VM's for itself from the first call on. `unsupported`: nobody would say so.
  [[nodiscard]] virtual Result<bool> wait_for_change(std::chrono::milliseconds limit) = 0;
};

} // namespace lararium
