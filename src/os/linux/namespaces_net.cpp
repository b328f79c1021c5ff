#include "namespaces_net.h"

#include "lararium/os/linux/tasks.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <set>
#include <span>
#include <unordered_set>

namespace lararium::linux_guest {
namespace {

constexpr int walk_attempts = 4;
constexpr std::size_t namespace_limit = 65536;
constexpr std::size_t device_limit = 1 << 20; // in all of them
constexpr std::uint64_t hash_entries = 256;   // NETDEV_HASHENTRIES, unchanged since 2.6.31

struct DeviceLayout {
  FieldLocation list_head, list, index_head, index_link;

  static Result<DeviceLayout> resolve(const Kernel &kernel) {
    LayoutResolver layout(kernel.types());
    DeviceLayout f;
    f.list_head = layout.require("net", "dev_base_head");
    f.list = layout.require("net_device", "dev_list");
    f.index_head = layout.require("net", "dev_index_head");
    f.index_link = layout.require("net_device", "index_hlist");
    TRY(layout.check());
    return f;
  }
};

} // namespace

std::string read_text(const Kernel &kernel, Gva address, std::size_t size) {
  std::array<std::byte, 256> buffer{};
  const auto part = std::span(buffer).first(std::min(size, buffer.size()));
  return kernel.space().read(address, part) ? std::string(c_string(part, 0)) : std::string();
}

Result<std::vector<NetNamespace>> list_net_namespaces(const Kernel &kernel, ViewStatus &status) {
  const auto initial = kernel.symbol("init_net");
  const auto head = kernel.symbol("net_namespace_list");
  if (!initial || !head)
    return fail(ErrorCode::not_found, "the kernel has no symbol init_net or net_namespace_list");
  LayoutResolver layout(kernel.types());
  const auto list = layout.require("net", "list");
  const auto inum = layout.require("net", "ns.inum");
  const auto nsproxy = layout.require("task_struct", "nsproxy");
  const auto net_ns = layout.require("nsproxy", "net_ns");
  TRY(layout.check());
  const auto namespace_of = [&](Gva task) {
    const auto proxy = kernel.read_pointer(task, nsproxy);
    return proxy && *proxy ? kernel.read_pointer(*proxy, net_ns).value_or(Gva{}) : Gva{};
  };

  // Tasks first: what one of them is in was there before the list is walked.
  std::vector<std::pair<Gva, Gva>> in_use; // namespace, a task in it
  std::unordered_set<std::uint64_t> seen;
  TRY_ASSIGN(const auto tasks, list_tasks(kernel, false, status));
  for (const auto &entry : tasks)
    if (const Gva net = namespace_of(entry.task); net && seen.insert(net.value).second)
      in_use.emplace_back(net, entry.task);

  std::vector<NetNamespace> spaces;
  std::set<Gva> places;
  const std::uint64_t size = kernel.types().size_of("net").value_or(1);
  const auto add = [&](Gva net) {
    const auto after = places.lower_bound(net);
    const bool is_over_another =
        (after != places.end() && *after - net < size) || (after != places.begin() && net - *std::prev(after) < size);
    const auto number = kernel.read_field(net, inum);
    if (!number || is_over_another || spaces.size() >= namespace_limit)
      return false;
    places.insert(net);
    seen.insert(net.value);
    spaces.push_back({net, static_cast<std::uint32_t>(*number)});
    return true;
  };
  WalkResult walk;
  for (int attempt = 0; attempt < walk_attempts; ++attempt) {
    spaces.clear();
    seen.clear();
    places.clear();
    add(*initial);
    walk = walk_list(kernel, *head, namespace_limit, [&](Gva node) {
      add(node - list.offset);
      return true;
    });
    if (walk.consistent())
      break;
    ++status.retries;
  }
  if (!walk.consistent()) {
    status.raced = true;
    status.warn("the list of network namespaces cannot be walked to its end");
  }
  for (const auto &[net, task] : in_use) {
    if (seen.contains(net.value) || namespace_of(task) != net || !add(net))
      continue;
    status.warn("process " + task_comm(kernel, task) +
                " is in a network namespace that is not in the kernel's list of them");
  }
  return spaces;
}

NetDeviceBudget::NetDeviceBudget(const Kernel &kernel) {
  const std::uint64_t size = std::max<std::uint64_t>(kernel.types().size_of("net_device").value_or(1024), 1024);
  left_ = std::min<std::size_t>(device_limit, kernel.memory().total_size() / size);
}

Result<void> for_each_net_device(const Kernel &kernel, const NetNamespace &space, NetDeviceBudget &budget,
                                 ViewStatus &status, const std::function<bool(Gva device)> &visit) {
  TRY_ASSIGN(const auto *layout, kernel.layout<DeviceLayout>());
  const DeviceLayout &f = *layout;
  std::vector<Gva> devices;
  std::unordered_set<std::uint64_t> listed, indexed;
  WalkResult walk;
  bool too_many = false; // which is no race
  const auto look = [&] {
    devices.clear();
    listed.clear();
    indexed.clear();
    walk = walk_list(kernel, space.net + f.list_head.offset, budget.left(), [&](Gva node) {
      devices.push_back(node - f.list.offset);
      listed.insert(devices.back().value);
      return true;
    });
    const auto table = kernel.read_pointer(space.net, f.index_head);
    if (!table || !*table)
      return walk.consistent();
    std::array<std::uint64_t, hash_entries> heads;
    if (!kernel.space().read(*table, std::as_writable_bytes(std::span(heads))))
      return false;
    for (const std::uint64_t first : heads) {
      const auto chain =
          walk_chain(kernel, Gva{first}, 0, budget.left() - std::min(indexed.size(), budget.left()), [&](Gva node) {
            indexed.insert((node - f.index_link.offset).value);
            return true;
          });
      too_many = too_many || chain.end == WalkEnd::limit;
      if (!chain.consistent())
        return false;
    }
    return walk.consistent() && listed == indexed;
  };
  bool agreed = look();
  for (int attempt = 1; attempt < walk_attempts && !agreed && walk.end != WalkEnd::limit && !too_many; ++attempt) {
    ++status.retries;
    agreed = look();
  }
  budget.take(std::max(listed.size(), indexed.size()));
  if (!agreed) {
    status.truncated |= budget.left() == 0;
    if (!walk.consistent()) {
      status.raced = true;
      status.warn("the list of network devices of namespace " + std::to_string(space.inum) + " is not consistent");
    }
    std::size_t unlisted = 0, unindexed = 0;
    for (const auto device : indexed)
      if (!listed.contains(device)) {
        devices.push_back(Gva{device});
        ++unlisted;
      }
    for (const auto device : listed)
      unindexed += !indexed.contains(device);
    if (unlisted != 0)
      status.warn(std::to_string(unlisted) + " network devices of namespace " + std::to_string(space.inum) +
                  " are missing in its list");
    if (unindexed != 0 && !indexed.empty())
      status.warn(std::to_string(unindexed) + " network devices of namespace " + std::to_string(space.inum) +
                  " are missing in its table by index");
  }
  for (const Gva device : devices)
    if (!visit(device))
      break;
  return {};
}

Result<InterfaceNames> InterfaceNames::create(const Kernel &kernel, const std::vector<NetNamespace> &spaces,
                                              ViewStatus &status) {
  LayoutResolver layout(kernel.types());
  const auto name = layout.require("net_device", "name");
  const auto index = layout.require("net_device", "ifindex");
  TRY(layout.check());
  InterfaceNames names;
  NetDeviceBudget budget(kernel);
  for (const auto &space : spaces)
    TRY(for_each_net_device(kernel, space, budget, status, [&](Gva device) {
      if (const auto number = kernel.read_field(device, index))
        names.names_[{space.net, static_cast<std::uint32_t>(*number)}] =
            read_text(kernel, device + name.offset, name.size);
      return names.names_.size() < device_limit;
    }));
  return names;
}

std::string InterfaceNames::find(Gva net, std::uint32_t index) const {
  const auto found = names_.find({net, index});
  return found == names_.end() ? std::string() : found->second;
}

} // namespace lararium::linux_guest
