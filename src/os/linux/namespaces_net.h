// Network namespaces, and the names of the interfaces in them.
#pragma once

#include "lararium/os/linux/kernel.h"
#include "lararium/os/linux/list.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

namespace lararium::linux_guest {

struct NetNamespace {
  Gva net;                // its struct net
  std::uint32_t inum = 0; // as in /proc/PID/ns/net
};

// The initial namespace, those of the kernel's list, and those that processes are in although the list does not hold
// them (which is worth a warning). At most 65536, and none that lies over another.
[[nodiscard]] Result<std::vector<NetNamespace>> list_net_namespaces(const Kernel &kernel, ViewStatus &status);

// How many network devices there can be, in all namespaces together: crafted namespaces share one long list.
class NetDeviceBudget {
public:
  explicit NetDeviceBudget(const Kernel &kernel);
  [[nodiscard]] std::size_t left() const { return left_; }
  void take(std::size_t devices) { left_ -= std::min(devices, left_); }

private:
  std::size_t left_;
};

// Every network device of a namespace (struct net_device), of its list and of its table by index: a device that is in
// only one of them is given too, and warned of.
[[nodiscard]] Result<void> for_each_net_device(const Kernel &kernel, const NetNamespace &space, NetDeviceBudget &budget,
                                               ViewStatus &status, const std::function<bool(Gva device)> &visit);

// Names of interfaces by namespace and index.
class InterfaceNames {
public:
  [[nodiscard]] static Result<InterfaceNames> create(const Kernel &kernel, const std::vector<NetNamespace> &spaces,
                                                     ViewStatus &status);
  // Empty when there is none.
  [[nodiscard]] std::string find(Gva net, std::uint32_t index) const;

private:
  struct Key {
    Gva net;
    std::uint32_t index = 0;
    bool operator==(const Key &) const = default;
  };
  struct Hash {
    std::size_t operator()(const Key &key) const { return std::hash<std::uint64_t>{}(key.net.value ^ key.index); }
  };
  std::unordered_map<Key, std::string, Hash> names_;
};

// `size` bytes of text at `address`, up to the first NUL.
[[nodiscard]] std::string read_text(const Kernel &kernel, Gva address, std::size_t size);

} // namespace lararium::linux_guest
