// What handles packets: netfilter hooks, handlers of link-layer protocols, of IP protocols and of socket families, and
// what each device brings. Rootkits listen here for their magic packet, or hide their traffic.

#include "handler.h"
#include "lararium/os/linux/list.h"

#include <array>
#include <fmt/format.h>
#include <optional>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;
using linux_guest::LayoutResolver;

constexpr std::size_t list_limit = 1 << 16, object_limit = 1 << 18, hooks_at_one_place = 1 << 10;
constexpr std::uint64_t packet_buckets = 16; // PTYPE_HASH_SIZE
constexpr std::uint64_t ip_protocols = 256;  // MAX_INET_PROTOS

constexpr std::array<const char *, 6> ip_hooks = {"PRE_ROUTING", "LOCAL_IN",     "FORWARD",
                                                  "LOCAL_OUT",   "POST_ROUTING", "INGRESS"};
constexpr std::array<const char *, 3> arp_hooks = {"IN", "OUT", "FORWARD"};

std::string name_of_hook(std::string_view family, std::size_t number) {
  if (family == "arp" && number < arp_hooks.size())
    return arp_hooks[number];
  if (family != "arp" && number < ip_hooks.size())
    return ip_hooks[number];
  return std::to_string(number);
}

// One look. Its walks share one budget.
class NetworkLook {
public:
  NetworkLook(const Scene &scene, Findings &findings)
      : scene_(scene), kernel_(scene.kernel()), findings_(findings), tables_(scene, findings), layout_(kernel_.types()),
        function_(layout_.optional("packet_type", "func")), type_(layout_.optional("packet_type", "type")),
        link_(layout_.optional("packet_type", "list")),
        hook_count_(layout_.optional("nf_hook_entries", "num_hook_entries")),
        hooks_(layout_.optional("nf_hook_entries", "hooks")), hook_(layout_.optional("nf_hook_entry", "hook")),
        hook_size_(kernel_.types().size_of("nf_hook_entry").value_or(0)) {}

  void look_at_protocols() {
    if (const auto buckets = kernel_.symbol("ptype_base"))
      for (std::uint64_t bucket = 0; bucket < packet_buckets; ++bucket)
        look_at_packet_types(*buckets + bucket * 16, {});
    // Handlers of all protocols: one list; since 6.9 in net_hotdata; since 6.15 one list for each namespace.
    if (const auto list = kernel_.symbol("ptype_all"))
      look_at_packet_types(*list, {});
    const auto hot = kernel_.symbol("net_hotdata");
    if (const auto list = layout_.optional("net_hotdata", "ptype_all"); hot && list)
      look_at_packet_types(*hot + list->offset, {});
    look_at_ip_protocols("inet_protos", "net_protocol", "IPv4");
    look_at_ip_protocols("inet6_protos", "inet6_protocol", "IPv6");
    // struct proto: what a socket of each protocol does.
    const auto protocols = kernel_.symbol("proto_list");
    const auto node = layout_.optional("proto", "node");
    if (protocols && node)
      linux_guest::walk_list(kernel_, *protocols, list_limit, [&](Gva link) {
        look_at_table(link - node->offset, "proto", "of a socket protocol");
        return budget_.take();
      });
  }

  void look_at_namespaces() {
    const auto initial = kernel_.symbol("init_net"), head = kernel_.symbol("net_namespace_list");
    const auto list = layout_.optional("net", "list");
    resolve_hook_places();
    if (initial)
      look_at_namespace(*initial);
    if (head && list)
      linux_guest::walk_list(kernel_, *head, list_limit, [&](Gva link) {
        if (link - list->offset != initial)
          look_at_namespace(link - list->offset);
        return budget_.take();
      });
  }

private:
  struct HookPlace {
    std::string name;         // "ipv4 PRE_ROUTING"
    std::uint64_t offset = 0; // in struct net
  };

  // netns_nf has one array of hooks for each family, "hooks_ipv4" (4.16); before that, one for all in "hooks".
  void resolve_hook_places() {
    const Types &types = kernel_.types();
    const auto part = layout_.optional("net", "nf");
    const auto id = types.find("netns_nf");
    if (!part || !id)
      return;
    constexpr std::uint32_t most_hooks = 8;
    constexpr std::string_view prefix = "hooks_";
    for (const MemberInfo &member : types.members(*id)) {
      const auto array = types.info(types.strip(member.type));
      if (!array || array->kind != TypeKind::array || !member.name.starts_with("hooks"))
        continue;
      const std::uint64_t offset = part->offset + member.bit_offset / 8;
      const auto inner = types.info(types.strip(array->target));
      const auto add = [&](const std::string &family, std::uint64_t begin, std::uint32_t count) {
        for (std::uint32_t i = 0; i < std::min(count, most_hooks); ++i)
          hook_places_.push_back({fmt::format("{} {}", family, name_of_hook(family, i)), begin + 8 * std::uint64_t{i}});
      };
      if (inner && inner->kind == TypeKind::pointer && member.name.starts_with(prefix))
        add(std::string(member.name.substr(prefix.size())), offset, array->count);
      if (inner && inner->kind == TypeKind::array)
        for (std::uint32_t family = 0; family < std::min<std::uint32_t>(array->count, 16); ++family)
          add(family_name(family), offset + std::uint64_t{family} * inner->count * 8, inner->count);
    }
  }

  static std::string family_name(std::uint32_t number) { // NFPROTO_*
    switch (number) {
    case 2: return "ipv4";
    case 3: return "arp";
    case 7: return "bridge";
    case 10: return "ipv6";
    default: return fmt::format("family {}", number);
    }
  }

  void look_at_namespace(Gva net) {
    const std::string where =
        fmt::format("in network namespace {}", inum_ ? kernel_.read_field(net, *inum_).value_or(0) : 0);
    for (const HookPlace &place : hook_places_)
      look_at_hooks(net + place.offset, place.name, where);
    for (const auto &list : packet_lists_)
      if (list)
        look_at_packet_types(net + list->offset, where);
    if (devices_ && device_link_)
      linux_guest::walk_list(kernel_, net + devices_->offset, list_limit, [&](Gva link) {
        look_at_device(link - device_link_->offset);
        return budget_.take();
      });
  }

  void look_at_device(Gva device) {
    const auto name = device_name_ ? kernel_.space().read_c_string(device + device_name_->offset, 16) : std::nullopt;
    const std::string of = "of " + name.value_or("?");
    if (ingress_)
      look_at_hooks(device + ingress_->offset, "ingress " + of, {});
    if (egress_)
      look_at_hooks(device + egress_->offset, "egress " + of, {});
    for (const auto &list : device_packet_lists_)
      if (list)
        look_at_packet_types(device + list->offset, of);
    if (const auto handler = receive_handler_ ? kernel_.read_pointer(device, *receive_handler_) : std::nullopt)
      judge(scene_,
            {.at = device + receive_handler_->offset,
             .target = *handler,
             .what = fmt::format("the receive handler {}", of),
             .trust = Trust::no_foreign},
            findings_);
    for (const auto &[member, type] : device_tables_)
      if (const auto table = member ? kernel_.read_pointer(device, *member) : std::nullopt)
        look_at_table(*table, type, of);
  }

  // `slot` holds a pointer to an array of hooks in order of priority, of its own length; null where there is none.
  void look_at_hooks(Gva slot, const std::string &place, const std::string &where) {
    if (!hook_count_ || !hooks_ || !hook_ || hook_size_ == 0)
      return;
    const auto entries = kernel_.read_pointer(slot);
    if (!entries || !kernel_.is_kernel_address(*entries))
      return;
    const auto count = kernel_.read_field(*entries, *hook_count_).value_or(0);
    for (std::uint64_t i = 0; i < std::min<std::uint64_t>(count, hooks_at_one_place) && budget_.take(); ++i) {
      const Gva at = *entries + hooks_->offset + i * hook_size_ + hook_->offset;
      const auto function = kernel_.read_pointer(at);
      if (!function)
        return;
      // The array moves whenever a hook comes or goes: what is hooked and where names the finding.
      if (!is_lawful(scene_, at, *function, Trust::no_foreign))
        judge(scene_,
              {.at = at,
               .target = *function,
               .what = fmt::format("the netfilter hook {:#x} at {}", function->value, place),
               .trust = Trust::no_foreign,
               .note = where},
              findings_);
    }
  }

  void look_at_packet_types(Gva head, const std::string &where) {
    if (!function_ || !type_ || !link_)
      return;
    linux_guest::walk_list(kernel_, head, list_limit, [&](Gva link) {
      const Gva handler = link - link_->offset;
      const Gva at = handler + function_->offset;
      if (const auto function = kernel_.read_pointer(at);
          function && !is_lawful(scene_, at, *function, Trust::no_foreign)) {
        const auto number = static_cast<std::uint16_t>(kernel_.read_field(handler, *type_).value_or(0));
        judge(scene_,
              {.at = at,
               .target = *function,
               .what = fmt::format("the handler at {:#x} of packets of type {:#06x}", handler.value,
                                   static_cast<std::uint16_t>(number << 8 | number >> 8)),
               .trust = Trust::no_foreign,
               .note = where},
              findings_);
      }
      return budget_.take();
    });
  }

  void look_at_ip_protocols(std::string_view symbol, std::string_view type, std::string_view name) {
    const auto array = kernel_.symbol(symbol);
    if (!array)
      return;
    for (std::uint64_t number = 0; number < ip_protocols; ++number)
      if (const auto protocol = kernel_.read_pointer(*array + 8 * number); protocol && *protocol)
        look_at_table(*protocol, type, fmt::format("of {} protocol {}", name, number));
  }

  void look_at_table(Gva table, std::string_view type, std::string_view user) {
    if (tables_.is_new(table))
      tables_.judge(table, type, user);
  }

  const Scene &scene_;
  const Kernel &kernel_;
  Findings &findings_;
  OperationTables tables_;
  LayoutResolver layout_;
  std::optional<FieldLocation> function_, type_, link_, hook_count_, hooks_, hook_;
  std::uint64_t hook_size_ = 0;
  std::vector<HookPlace> hook_places_;
  const std::optional<FieldLocation> inum_ = layout_.optional("net", "ns.inum"),
                                     devices_ = layout_.optional("net", "dev_base_head"),
                                     device_link_ = layout_.optional("net_device", "dev_list");
  const std::array<std::optional<FieldLocation>, 2> packet_lists_ = {layout_.optional("net", "ptype_all"),
                                                                     layout_.optional("net", "ptype_specific")};
  const std::optional<FieldLocation> device_name_ = layout_.optional("net_device", "name"),
                                     ingress_ = layout_.optional("net_device", "nf_hooks_ingress"),
                                     egress_ = layout_.optional("net_device", "nf_hooks_egress"),
                                     receive_handler_ = layout_.optional("net_device", "rx_handler");
  const std::array<std::optional<FieldLocation>, 2> device_packet_lists_ = {
      layout_.optional("net_device", "ptype_all"), layout_.optional("net_device", "ptype_specific")};
  const std::array<std::pair<std::optional<FieldLocation>, std::string_view>, 4> device_tables_ = {
      {{layout_.optional("net_device", "netdev_ops"), "net_device_ops"},
       {layout_.optional("net_device", "ethtool_ops"), "ethtool_ops"},
       {layout_.optional("net_device", "header_ops"), "header_ops"},
       {layout_.optional("net_device", "rtnl_link_ops"), "rtnl_link_ops"}}};
  Budget budget_{object_limit};
};

class NetworkHandlers final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override {
    if (!scene.kernel().symbol("init_net"))
      return fail(ErrorCode::not_found, "the kernel has no symbol init_net");
    NetworkLook look(scene, findings);
    look.look_at_protocols();
    look.look_at_namespaces();
    return {};
  }
};

LARARIUM_CHECK(
    NetworkHandlers, "network_handlers", "T1014 T1205 T1040", "netfilter hooks, protocols and devices",
    "Netfilter hooks and handlers of packets, of every network namespace and device, must lie in the kernel, in "
    "a BPF program or in a module of the kernel's tree; the tables of IP protocols, sockets and devices in "
    "whose memory they stand. A lawful firewall or VPN module from outside the tree is a false alarm.")

} // namespace
} // namespace lararium::detect
