#include "interfaces.h"

#include "lararium/symbols/btf.h"
#include "namespaces_net.h"

#include <algorithm>
#include <arpa/inet.h>
#include <array>
#include <string_view>

namespace lararium::linux_guest {
namespace {

constexpr std::size_t address_limit = 4096; // of one device and family
constexpr std::size_t mac_limit = 32;       // MAX_ADDR_LEN

// include/uapi/linux/if.h, if_arp.h
constexpr std::uint32_t iff_up = 0x1, iff_running = 0x40, iff_promisc = 0x100, iff_lower_up = 0x10000,
                        iff_dormant = 0x20000;
constexpr std::uint64_t operstate_unknown = 0, operstate_up = 6;

std::string kind_of_type(std::uint64_t type) {
  constexpr std::array<std::pair<std::uint16_t, std::string_view>, 20> names{{
      {0, "netrom"},       {1, "ether"},     {32, "infiniband"}, {280, "can"},          {512, "ppp"},
      {768, "ipip"},       {769, "tunnel6"}, {772, "loopback"},  {776, "sit"},          {778, "gre"},
      {801, "ieee802.11"}, {802, "prism"},   {803, "radiotap"},  {804, "ieee802.15.4"}, {820, "phonet"},
      {823, "gre6"},       {824, "netlink"}, {825, "6lowpan"},   {826, "vsockmon"},     {65534, "none"},
  }};
  for (const auto &[number, name] : names)
    if (number == type)
      return std::string(name);
  return "type" + std::to_string(type);
}

// The types of a module, of its own BTF; null where there is none: modules carry it since 5.11 (36e68442d1af).
std::shared_ptr<const Types> module_types(const Kernel &kernel, std::string_view wanted) {
  constexpr std::size_t module_limit = 65536;
  constexpr std::uint64_t size_limit = 16 << 20;
  const auto head = kernel.symbol("btf_modules");
  const Types &types = kernel.types();
  const auto list = types.field("btf_module", "list"), btf = types.field("btf_module", "btf"),
             data = types.field("btf", "data"), size = types.field("btf", "data_size"),
             name = types.field("btf", "name");
  if (!head || !list || !btf || !data || !size || !name)
    return nullptr;
  std::shared_ptr<const Types> found;
  walk_list(kernel, *head, module_limit, [&](Gva node) {
    const auto object = kernel.read_pointer(node - list->offset, *btf);
    if (!object || read_text(kernel, *object + name->offset, name->size) != wanted)
      return true;
    const auto address = kernel.read_pointer(*object, *data);
    const auto length = kernel.read_field(*object, *size);
    if (!address || !length || *length > size_limit)
      return false;
    std::vector<std::byte> bytes(*length);
    if (!kernel.space().read(*address, bytes))
      return false;
    const auto &profile = kernel.shared_profile();
    if (auto parsed = parse_split_btf(bytes, std::shared_ptr<const Types>(profile, &profile->types()), profile->btf()))
      found = std::move(*parsed);
    return false;
  });
  return found;
}

// struct virtnet_info, which is in the module's own types.
struct VirtioLayout {
  FieldLocation queue_pairs, senders, receivers, sent_bytes, sent_packets, received_bytes, received_packets;
  std::uint64_t sender_size = 0, receiver_size = 0;

  static Result<VirtioLayout> resolve(const Kernel &kernel) {
    VirtioLayout f;
    const auto types = module_types(kernel, "virtio_net");
    if (!types)
      return fail(ErrorCode::no_types, "the module virtio_net carries no types");
    LayoutResolver layout(*types);
    f.queue_pairs = layout.require("virtnet_info", "max_queue_pairs");
    f.senders = layout.require("virtnet_info", "sq");
    f.receivers = layout.require("virtnet_info", "rq");
    f.sent_bytes = layout.require("send_queue", "stats.bytes");
    f.sent_packets = layout.require("send_queue", "stats.packets");
    f.received_bytes = layout.require("receive_queue", "stats.bytes");
    f.received_packets = layout.require("receive_queue", "stats.packets");
    f.sender_size = layout.require_size("send_queue");
    f.receiver_size = layout.require_size("receive_queue");
    TRY(layout.check());
    return f;
  }
};

struct InterfaceLayout {
  FieldLocation name, index, address, address_length, flags, promiscuity, operstate, state, mtu, type;
  FieldLocation link_operations, kind, inet, inet6, first_inet, next_inet, local_inet, prefix_inet;
  std::optional<FieldLocation> inet6_list, inet6_link, inet6_address, inet6_prefix;
  std::optional<FieldLocation> upper, upper_device, upper_master, upper_link, xdp_states, xdp_entity_program,
      xdp_entity_link, xdp_program;
  std::uint64_t xdp_entity_size = 0;
  std::uint64_t start_bit = 0, no_carrier_bit = 2, dormant_bit = 4;
  // counters
  struct Counters {
    FieldLocation received_bytes, received_packets, sent_bytes, sent_packets;
  };
  std::optional<Counters> device, software, dedicated; // net_device_stats, pcpu_sw_netstats, pcpu_dstats
  std::optional<FieldLocation> light_packets, light_bytes, per_cpu, per_cpu_kind, operations, get_stats;
  std::optional<std::int64_t> kind_light, kind_software, kind_dedicated;
  std::uint64_t private_offset = 0;
  std::optional<FieldLocation> parent_device, device_driver, driver_name;

  static Result<InterfaceLayout> resolve(const Kernel &kernel) {
    LayoutResolver layout(kernel.types());
    InterfaceLayout f;
    const auto device = [&](std::string_view path) { return layout.require("net_device", path); };
    f.name = device("name");
    f.index = device("ifindex");
    f.address = device("dev_addr");
    f.address_length = device("addr_len");
    f.flags = device("flags");
    f.promiscuity = device("promiscuity");
    f.operstate = device("operstate");
    f.state = device("state");
    f.mtu = device("mtu");
    f.type = device("type");
    f.link_operations = device("rtnl_link_ops");
    f.kind = layout.require("rtnl_link_ops", "kind");
    f.inet = device("ip_ptr");
    f.inet6 = device("ip6_ptr");
    f.first_inet = layout.require("in_device", "ifa_list");
    f.next_inet = layout.require("in_ifaddr", "ifa_next");
    f.local_inet = layout.require("in_ifaddr", "ifa_local");
    f.prefix_inet = layout.require("in_ifaddr", "ifa_prefixlen");
    f.inet6_list = layout.optional("inet6_dev", "addr_list");
    f.inet6_link = layout.optional("inet6_ifaddr", "if_list");
    f.inet6_address = layout.optional("inet6_ifaddr", "addr");
    f.inet6_prefix = layout.optional("inet6_ifaddr", "prefix_len");
    f.upper = layout.optional("net_device", "adj_list.upper");
    f.upper_device = layout.optional("netdev_adjacent", "dev");
    f.upper_master = layout.optional("netdev_adjacent", "master");
    f.upper_link = layout.optional("netdev_adjacent", "list");
    f.xdp_states = layout.optional("net_device", "xdp_state"); // 5.9, 7f0a838254bd
    f.xdp_entity_program = layout.optional("bpf_xdp_entity", "prog");
    f.xdp_entity_link = layout.optional("bpf_xdp_entity", "link");
    f.xdp_entity_size = kernel.types().size_of("bpf_xdp_entity").value_or(0);
    f.xdp_program = layout.optional("net_device", "xdp_prog"); // the generic one, which drivers do not know of
    const auto bit = [&](std::string_view enumerator, std::uint64_t otherwise) {
      const auto value = kernel.types().enumerator(enumerator);
      return value && *value >= 0 && *value < 64 ? static_cast<std::uint64_t>(*value) : otherwise;
    };
    f.start_bit = bit("__LINK_STATE_START", f.start_bit);
    f.no_carrier_bit = bit("__LINK_STATE_NOCARRIER", f.no_carrier_bit);
    f.dormant_bit = bit("__LINK_STATE_DORMANT", f.dormant_bit);

    const auto counters = [&](std::string_view type, const std::string &prefix) -> std::optional<Counters> {
      const auto rb = layout.optional(type, prefix + "rx_bytes"), rp = layout.optional(type, prefix + "rx_packets"),
                 tb = layout.optional(type, prefix + "tx_bytes"), tp = layout.optional(type, prefix + "tx_packets");
      if (!rb || !rp || !tb || !tp)
        return std::nullopt;
      return Counters{*rb, *rp, *tb, *tp};
    };
    f.device = counters("net_device", "stats.");
    f.software = counters("pcpu_sw_netstats", "");
    f.dedicated = counters("pcpu_dstats", "");
    f.light_packets = layout.optional("pcpu_lstats", "packets");
    f.light_bytes = layout.optional("pcpu_lstats", "bytes");
    f.per_cpu = layout.optional("net_device", "lstats");              // one pointer to either kind
    f.per_cpu_kind = layout.optional("net_device", "pcpu_stat_type"); // 6.7, 34d21de99cea
    f.kind_light = kernel.types().enumerator("NETDEV_PCPU_STAT_LSTATS");
    f.kind_software = kernel.types().enumerator("NETDEV_PCPU_STAT_TSTATS");
    f.kind_dedicated = kernel.types().enumerator("NETDEV_PCPU_STAT_DSTATS");
    f.operations = layout.optional("net_device", "netdev_ops");
    f.get_stats = layout.optional("net_device_ops", "ndo_get_stats64");
    // What a driver keeps of a device lies behind it: a flexible array since 6.10 (13cabc47f8ae), before at the next
    // multiple of NETDEV_ALIGN.
    if (const auto flexible = layout.optional("net_device", "priv"))
      f.private_offset = flexible->offset;
    else if (const auto size = kernel.types().size_of("net_device"))
      f.private_offset = (*size + 31) & ~std::uint64_t{31};
    f.parent_device = layout.optional("net_device", "dev.parent");
    f.device_driver = layout.optional("device", "driver");
    f.driver_name = layout.optional("device_driver", "name");
    TRY(layout.check());
    return f;
  }
};

struct Counts {
  std::uint64_t received_bytes = 0, received_packets = 0, sent_bytes = 0, sent_packets = 0;
};

class InterfaceReader {
public:
  InterfaceReader(const Kernel &kernel, const InterfaceLayout &f)
      : kernel_(kernel), f_(f), loopback_stats_(kernel.symbol("loopback_get_stats64")),
        software_stats_(kernel.symbol("dev_get_tstats64")) {}

  [[nodiscard]] NetworkInterface read(Gva device, const NetNamespace &space, ViewStatus &status) const {
    NetworkInterface i;
    i.device = device;
    i.net_namespace = space.inum;
    i.index = static_cast<std::uint32_t>(number(device, f_.index));
    i.name = read_text(kernel_, device + f_.name.offset, f_.name.size);
    i.mtu = static_cast<std::uint32_t>(number(device, f_.mtu));
    i.mac = mac_of(device);
    const std::string link_kind = link_kind_of(device);
    i.kind = link_kind.empty() ? kind_of_type(number(device, f_.type)) : link_kind;
    read_flags(i);
    read_addresses(i);
    i.master = master_of(device);
    i.xdp = has_xdp(device);
    Counts counts = counts_of(device, link_kind);
    const bool complete =
        driver_of(device) == "virtio_net" ? add_virtio_counts(device, counts) : !counts_elsewhere(device, link_kind);
    if (!complete)
      status.warn("the counters of " + i.name +
                  " are not known: its driver keeps them, and the guest has no types of that driver");
    i.received_bytes = counts.received_bytes;
    i.received_packets = counts.received_packets;
    i.sent_bytes = counts.sent_bytes;
    i.sent_packets = counts.sent_packets;
    return i;
  }

private:
  [[nodiscard]] std::uint64_t number(Gva object, const FieldLocation &field) const {
    return kernel_.read_field(object, field).value_or(0);
  }
  [[nodiscard]] Gva pointer(Gva object, const FieldLocation &field) const {
    const auto value = kernel_.read_pointer(object, field);
    return value && kernel_.is_kernel_address(*value) ? *value : Gva{};
  }

  [[nodiscard]] std::string mac_of(Gva device) const {
    std::array<std::uint8_t, mac_limit> bytes{};
    const auto length = std::min<std::size_t>(number(device, f_.address_length), bytes.size());
    const Gva address = pointer(device, f_.address);
    if (length == 0 || !address ||
        !kernel_.space().read(address, std::as_writable_bytes(std::span(bytes)).first(length)))
      return {};
    constexpr std::string_view digits = "0123456789abcdef";
    std::string text;
    for (std::size_t k = 0; k < length; ++k) {
      if (k != 0)
        text += ':';
      text += digits[bytes[k] >> 4];
      text += digits[bytes[k] & 15];
    }
    return text;
  }

  [[nodiscard]] std::string link_kind_of(Gva device) const {
    const Gva operations = pointer(device, f_.link_operations);
    const Gva kind = operations ? pointer(operations, f_.kind) : Gva{};
    return kind ? kernel_.space().read_c_string(kind, 64).value_or("") : std::string();
  }

  // As dev_get_flags() in net/core/dev.c.
  void read_flags(NetworkInterface &i) const {
    const auto flags = static_cast<std::uint32_t>(number(i.device, f_.flags));
    const std::uint64_t state = number(i.device, f_.state), operstate = number(i.device, f_.operstate);
    const auto is_set = [&](std::uint64_t bit) { return (state >> bit & 1) != 0; };
    i.flags = flags & ~(iff_running | iff_lower_up | iff_dormant);
    if (is_set(f_.start_bit)) {
      if (operstate == operstate_up || operstate == operstate_unknown)
        i.flags |= iff_running;
      if (!is_set(f_.no_carrier_bit))
        i.flags |= iff_lower_up;
      if (is_set(f_.dormant_bit))
        i.flags |= iff_dormant;
    }
    i.up = (flags & iff_up) != 0;
    i.running = (i.flags & iff_running) != 0;
    i.promiscuous = (flags & iff_promisc) != 0 || number(i.device, f_.promiscuity) != 0;
  }

  void add_address(NetworkInterface &i, Gva address, int family, std::uint64_t prefix) const {
    std::array<std::byte, 16> bytes{};
    const auto part = std::span(bytes).first(family == AF_INET ? 4 : 16);
    std::array<char, INET6_ADDRSTRLEN> text{};
    if (kernel_.space().read(address, part) && inet_ntop(family, bytes.data(), text.data(), text.size()) != nullptr)
      i.addresses.push_back({text.data(), static_cast<std::uint8_t>(std::min<std::uint64_t>(prefix, 128))});
  }

  void read_addresses(NetworkInterface &i) const {
    if (const Gva inet = pointer(i.device, f_.inet))
      walk_chain(kernel_, pointer(inet, f_.first_inet), f_.next_inet.offset, address_limit, [&](Gva address) {
        add_address(i, address + f_.local_inet.offset, AF_INET, number(address, f_.prefix_inet));
        return true;
      });
    const Gva inet6 = pointer(i.device, f_.inet6);
    if (inet6 && f_.inet6_list && f_.inet6_link && f_.inet6_address && f_.inet6_prefix)
      walk_list(kernel_, inet6 + f_.inet6_list->offset, address_limit, [&](Gva link) {
        const Gva address = link - f_.inet6_link->offset;
        add_address(i, address + f_.inet6_address->offset, AF_INET6, number(address, *f_.inet6_prefix));
        return true;
      });
  }

  [[nodiscard]] std::string master_of(Gva device) const {
    std::string name;
    if (f_.upper && f_.upper_device && f_.upper_master && f_.upper_link)
      walk_list(kernel_, device + f_.upper->offset, address_limit, [&](Gva link) {
        const Gva adjacent = link - f_.upper_link->offset;
        if ((number(adjacent, *f_.upper_master) & 1) == 0)
          return true;
        if (const Gva master = pointer(adjacent, *f_.upper_device))
          name = read_text(kernel_, master + f_.name.offset, f_.name.size);
        return false;
      });
    return name;
  }

  [[nodiscard]] bool has_xdp(Gva device) const {
    if (f_.xdp_program && pointer(device, *f_.xdp_program))
      return true;
    if (!f_.xdp_states || !f_.xdp_entity_program || !f_.xdp_entity_link || f_.xdp_entity_size == 0)
      return false;
    for (std::uint64_t at = 0; at + f_.xdp_entity_size <= f_.xdp_states->size; at += f_.xdp_entity_size) {
      const Gva entity = device + f_.xdp_states->offset + at;
      if (pointer(entity, *f_.xdp_entity_program) || pointer(entity, *f_.xdp_entity_link))
        return true;
    }
    return false;
  }

  [[nodiscard]] Counts counts_at(Gva base, const InterfaceLayout::Counters &fields) const {
    return {number(base, fields.received_bytes), number(base, fields.received_packets), number(base, fields.sent_bytes),
            number(base, fields.sent_packets)};
  }

  template <class Add> void for_each_cpu(Gva per_cpu, Add &&add) const {
    if (per_cpu)
      for (std::uint32_t cpu = 0; cpu < kernel_.cpu_count(); ++cpu)
        if (const auto own = kernel_.per_cpu_pointer(per_cpu, cpu))
          add(*own);
  }

  // pcpu_lstats: packets and bytes of one direction.
  [[nodiscard]] std::pair<std::uint64_t, std::uint64_t> light_counts(Gva device) const {
    std::uint64_t packets = 0, bytes = 0;
    if (f_.per_cpu && f_.light_packets && f_.light_bytes)
      for_each_cpu(kernel_.read_pointer(device, *f_.per_cpu).value_or(Gva{}), [&](Gva own) {
        packets += number(own, *f_.light_packets);
        bytes += number(own, *f_.light_bytes);
      });
    return {packets, bytes};
  }

  // Which structure a device counts in is not said before pcpu_stat_type; then its driver tells.
  enum class PerCpu : std::uint8_t { none, light, software, dedicated };
  [[nodiscard]] PerCpu per_cpu_kind(Gva device, const std::string &link_kind) const {
    if (!f_.per_cpu || kernel_.read_pointer(device, *f_.per_cpu).value_or(Gva{}) == Gva{})
      return PerCpu::none;
    if (f_.per_cpu_kind) {
      const auto kind = static_cast<std::int64_t>(number(device, *f_.per_cpu_kind));
      if (kind != 0)
        return kind == f_.kind_light       ? PerCpu::light
               : kind == f_.kind_software  ? PerCpu::software
               : kind == f_.kind_dedicated ? PerCpu::dedicated
                                           : PerCpu::none;
    }
    const Gva operations = f_.operations ? pointer(device, *f_.operations) : Gva{};
    const Gva get_stats = operations && f_.get_stats ? pointer(operations, *f_.get_stats) : Gva{};
    if (loopback_stats_ && get_stats == *loopback_stats_)
      return PerCpu::light;
    if (software_stats_ && get_stats == *software_stats_)
      return PerCpu::software;
    constexpr std::array<std::string_view, 4> light{"dummy", "veth", "nlmon", "vsockmon"};
    constexpr std::array<std::string_view, 13> software{"bridge",    "tun",    "gre",    "gretap", "ipip",
                                                        "sit",       "ip6tnl", "vxlan",  "geneve", "vti",
                                                        "wireguard", "macsec", "bareudp"};
    if (std::ranges::find(light, link_kind) != light.end())
      return PerCpu::light;
    if (std::ranges::find(software, link_kind) != software.end())
      return PerCpu::software;
    return PerCpu::none;
  }

  // A driver that adds up counters of its own, and none of the kinds above: bridges before dev->tstats (5.11), and
  // many network cards.
  [[nodiscard]] bool counts_elsewhere(Gva device, const std::string &link_kind) const {
    const Gva operations = f_.operations ? pointer(device, *f_.operations) : Gva{};
    return operations && f_.get_stats && pointer(operations, *f_.get_stats) &&
           per_cpu_kind(device, link_kind) == PerCpu::none;
  }

  [[nodiscard]] Counts counts_of(Gva device, const std::string &link_kind) const {
    Counts sum;
    const auto add = [&](const Counts &more) {
      sum.received_bytes += more.received_bytes;
      sum.received_packets += more.received_packets;
      sum.sent_bytes += more.sent_bytes;
      sum.sent_packets += more.sent_packets;
    };
    if (f_.device)
      add(counts_at(device, *f_.device));
    switch (per_cpu_kind(device, link_kind)) {
    case PerCpu::none: break;
    case PerCpu::light: {
      const auto [packets, bytes] = light_counts(device);
      add({0, 0, bytes, packets});
      if (link_kind == "veth") {
        // What one end sent the other received; the first member of struct veth_priv is the peer.
        if (const auto peer = kernel_.read_pointer(device + f_.private_offset);
            peer && kernel_.is_kernel_address(*peer) && link_kind_of(*peer) == "veth") {
          const auto [peer_packets, peer_bytes] = light_counts(*peer);
          add({peer_bytes, peer_packets, 0, 0});
        }
      } else if (number(device, f_.type) == 772) { // loopback: each packet sent is received
        add({bytes, packets, 0, 0});
      }
      break;
    }
    case PerCpu::software:
      if (f_.software)
        for_each_cpu(kernel_.read_pointer(device, *f_.per_cpu).value_or(Gva{}),
                     [&](Gva own) { add(counts_at(own, *f_.software)); });
      break;
    case PerCpu::dedicated:
      if (f_.dedicated)
        for_each_cpu(kernel_.read_pointer(device, *f_.per_cpu).value_or(Gva{}),
                     [&](Gva own) { add(counts_at(own, *f_.dedicated)); });
      break;
    }
    return sum;
  }

  [[nodiscard]] std::string driver_of(Gva device) const {
    if (!f_.parent_device || !f_.device_driver || !f_.driver_name)
      return {};
    const Gva parent = pointer(device, *f_.parent_device);
    const Gva driver = parent ? pointer(parent, *f_.device_driver) : Gva{};
    const Gva name = driver ? pointer(driver, *f_.driver_name) : Gva{};
    return name ? kernel_.space().read_c_string(name, 64).value_or("") : std::string();
  }

  // virtio_net counts in its queues. False when it cannot be read.
  [[nodiscard]] bool add_virtio_counts(Gva device, Counts &sum) const {
    const auto layout = kernel_.layout<VirtioLayout>();
    if (!layout)
      return false;
    const VirtioLayout &v = **layout;
    const Gva own = device + f_.private_offset;
    const Gva senders = pointer(own, v.senders), receivers = pointer(own, v.receivers);
    constexpr std::uint64_t pair_limit = 0x8000; // VIRTIO_NET_CTRL_MQ_VQ_PAIRS_MAX
    const auto pairs = number(own, v.queue_pairs);
    if (!senders || !receivers || pairs > pair_limit)
      return false;
    for (std::uint64_t i = 0; i < pairs; ++i) {
      const Gva sender = senders + i * v.sender_size, receiver = receivers + i * v.receiver_size;
      sum.sent_bytes += number(sender, v.sent_bytes);
      sum.sent_packets += number(sender, v.sent_packets);
      sum.received_bytes += number(receiver, v.received_bytes);
      sum.received_packets += number(receiver, v.received_packets);
    }
    return true;
  }

  const Kernel &kernel_;
  const InterfaceLayout &f_;
  std::optional<Gva> loopback_stats_, software_stats_;
};

} // namespace

Result<View<NetworkInterface>> read_interfaces(const Kernel &kernel) {
  View<NetworkInterface> view;
  TRY_ASSIGN(const auto *f, kernel.layout<InterfaceLayout>());
  TRY_ASSIGN(const auto spaces, list_net_namespaces(kernel, view.status));
  NetDeviceBudget budget(kernel);
  constexpr std::size_t interface_limit = 1 << 20;
  const InterfaceReader reader(kernel, *f);
  for (const auto &space : spaces)
    TRY(for_each_net_device(kernel, space, budget, view.status, [&](Gva device) {
      view.items.push_back(reader.read(device, space, view.status));
      view.status.truncated |= view.items.size() >= interface_limit;
      return view.items.size() < interface_limit;
    }));
  return view;
}

} // namespace lararium::linux_guest
