// Sockets that get what is on the network for others, and interfaces that let it in: raw and packet sockets,
// promiscuous interfaces. Livewire's raw socket detector.

#include "lararium/detect/check.h"
#include "packet_filter.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <map>
#include <tuple>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;
using linux_guest::LayoutResolver;

constexpr std::uint32_t all_packets = 0x0003, ipv4_packets = 0x0800, ipv6_packets = 0x86dd; // uapi/linux/if_ether.h
constexpr std::size_t filter_limit = 4096;                                                  // BPF_MAXINSNS
constexpr std::size_t shown_limit = 16;

// Protocols whose raw sockets lawful programs hold: those that ping, announce routes and routers, and send only.
constexpr std::array<std::uint32_t, 7> lawful_protocols{
    1 /* ICMP */, 2 /* IGMP */, 58 /* ICMPv6 */, 89 /* OSPF */, 103 /* PIM */, 112 /* VRRP */, 255 /* IPPROTO_RAW */};

struct FilterLayout {
  std::optional<FieldLocation> filter, program, original, length, instructions;

  static Result<FilterLayout> resolve(const Kernel &kernel) {
    LayoutResolver layout(kernel.types());
    FilterLayout f;
    f.filter = layout.optional("sock", "sk_filter");
    f.program = layout.optional("sk_filter", "prog");
    f.original = layout.optional("bpf_prog", "orig_prog");
    f.length = layout.optional("sock_fprog_kern", "len");
    f.instructions = layout.optional("sock_fprog_kern", "filter");
    return f;
  }
};

struct SocketFilter {
  bool attached = false;
  std::vector<FilterInstruction> classic; // empty for one of eBPF
};

// Sockets of one process (or of none) that are alike.
struct Group {
  std::vector<const Socket *> sockets;
};

class Sockets final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override {
    TRY_ASSIGN(const auto sockets, scene.sockets());
    TRY_ASSIGN(const FilterLayout *layout, scene.kernel().layout<FilterLayout>());
    look_at_sockets(scene, *layout, sockets, findings);
    TRY_ASSIGN(const auto interfaces, scene.system().interfaces());
    for (const NetworkInterface &interface : interfaces.items)
      // A member of a bridge, bond or team is promiscuous because its master needs it so.
      if (interface.promiscuous && interface.master.empty())
        report(scene, interface, sockets, findings);
    return {};
  }

private:
  static bool is_raw(const Socket &socket) { return socket.protocol == "raw" || socket.protocol == "raw6"; }

  static SocketFilter filter_of(const Kernel &kernel, const FilterLayout &f, const Socket &socket) {
    SocketFilter result;
    if (!f.filter)
      return result;
    const auto filter = kernel.read_pointer(socket.socket, *f.filter);
    if (!filter || !*filter)
      return result;
    result.attached = true;
    const auto program = f.program ? kernel.read_pointer(*filter, *f.program) : std::nullopt;
    const auto original = program && f.original ? kernel.read_pointer(*program, *f.original) : std::nullopt;
    if (!original || !*original || !f.length || !f.instructions)
      return result;
    const std::uint64_t length = kernel.read_field(*original, *f.length).value_or(0);
    const auto instructions = kernel.read_pointer(*original, *f.instructions);
    if (!instructions || length > filter_limit)
      return result;
    result.classic.resize(length);
    if (!kernel.space().read(*instructions, std::as_writable_bytes(std::span(result.classic))))
      result.classic.clear();
    return result;
  }

  static void look_at_sockets(const Scene &scene, const FilterLayout &layout, std::span<const Socket> sockets,
                              Findings &findings) {
    // By who holds it, kind, protocol, and how grave it is: a program may have one for each interface.
    std::map<std::tuple<std::int32_t, std::string, std::uint32_t, Severity>, Group> groups;
    for (const Socket &socket : sockets)
      if (is_raw(socket) || socket.protocol == "packet") {
        const std::int32_t pid = socket.owners.empty() ? 0 : socket.owners.front().pid;
        groups[{pid, socket.protocol, socket.netlink_port, severity_of(scene.kernel(), layout, socket)}]
            .sockets.push_back(&socket);
      }
    for (const auto &[key, group] : groups)
      report(scene, layout, std::get<Severity>(key), group, findings);
  }

  static Severity severity_of(const Kernel &kernel, const FilterLayout &layout, const Socket &socket) {
    if (socket.owners.empty())
      return Severity::medium;
    const std::uint32_t protocol = socket.netlink_port;
    if (is_raw(socket))
      return std::ranges::find(lawful_protocols, protocol) != lawful_protocols.end() ? Severity::low : Severity::medium;
    // Others get one protocol below IP, as LLDP, or send only.
    if (protocol != all_packets && protocol != ipv4_packets && protocol != ipv6_packets)
      return Severity::low;
    return is_for_dhcp(filter_of(kernel, layout, socket).classic) ? Severity::low : Severity::medium;
  }

  static std::string protocol_name(const Socket &socket) {
    const std::uint32_t protocol = socket.netlink_port;
    if (is_raw(socket))
      return fmt::format("{} socket for IP protocol {}", socket.protocol, protocol);
    return protocol == all_packets ? "packet socket for packets of all kinds"
                                   : fmt::format("packet socket for packets of kind {:#06x}", protocol);
  }

  static std::string joined(const std::vector<std::string> &words) {
    std::string result;
    for (const std::string &word : words)
      result += (result.empty() ? "" : ", ") + word;
    return result;
  }

  static std::optional<Actor> holder(const Scene &scene, const Socket &socket) {
    if (socket.owners.empty())
      return std::nullopt;
    const SocketOwner &owner = socket.owners.front();
    if (const Process *process = scene.process(owner.pid))
      return scene.actor(*process);
    Actor actor;
    actor.pid = owner.pid;
    actor.comm = owner.comm;
    return actor;
  }

  static void report(const Scene &scene, const FilterLayout &layout, Severity severity, const Group &group,
                     Findings &findings) {
    const Socket &first = *group.sockets.front();
    const auto actor = holder(scene, first);
    const std::string who = actor ? fmt::format("process {} ({})", actor->pid, actor->comm) : "no process that is seen";
    const std::string what = protocol_name(first);
    std::vector<std::string> interfaces;
    for (const Socket *socket : group.sockets)
      if (const std::string &name = socket->interface.empty() ? "any" : socket->interface;
          interfaces.size() < shown_limit && std::ranges::find(interfaces, name) == interfaces.end())
        interfaces.push_back(name);
    Finding &finding = findings.add({.subject = fmt::format("{} of pid {}", what, actor ? actor->pid : 0),
                                     .severity = severity,
                                     .technique = "T1040",
                                     .sentence = fmt::format("{} holds a {}", who, what)});
    finding.with("address", first.socket)
        .with("sockets", std::uint64_t{group.sockets.size()})
        .with("interfaces", joined(interfaces))
        .with("inode", first.inode)
        .with("net_namespace", std::uint64_t{first.net_namespace});
    const SocketFilter filter = filter_of(scene.kernel(), layout, first);
    if (filter.attached) {
      std::vector<std::string> constants;
      for (const std::uint32_t constant : compared_constants(filter.classic))
        if (constants.size() < shown_limit)
          constants.push_back(fmt::format("{:#x}", constant));
      finding.with("filter_instructions", std::uint64_t{filter.classic.size()})
          .with("filter_compares_with", joined(constants));
    }
    finding.process = actor;
  }

  static void report(const Scene &scene, const NetworkInterface &interface, std::span<const Socket> sockets,
                     Findings &findings) {
    std::vector<std::string> listeners;
    std::optional<Actor> actor;
    for (const Socket &socket : sockets) {
      if (socket.protocol != "packet" || socket.net_namespace != interface.net_namespace ||
          (!socket.interface.empty() && socket.interface != interface.name))
        continue;
      const auto by = holder(scene, socket);
      if (!actor)
        actor = by;
      if (by && listeners.size() < shown_limit)
        listeners.push_back(fmt::format("{} ({})", by->pid, by->comm));
    }
    Finding &finding = findings.add(
        {.subject =
             fmt::format("promiscuous interface {} in network namespace {}", interface.name, interface.net_namespace),
         .severity = Severity::medium,
         .technique = "T1040",
         .sentence = fmt::format("interface {} is promiscuous: it takes in what is meant for others", interface.name)});
    finding.with("address", interface.device)
        .with("interface", interface.name)
        .with("net_namespace", std::uint64_t{interface.net_namespace})
        .with("packet_sockets_of", joined(listeners));
    finding.process = std::move(actor);
  }
};

LARARIUM_CHECK(
    Sockets, "sockets", "T1040 T1205.002", "raw and packet sockets, promiscuous interfaces",
    "Reports every raw and every packet socket of every network namespace, with who holds it, and every interface that "
    "is "
    "promiscuous and no member of a bridge or bond. Low: raw sockets of protocols that ping and routing programs use, "
    "packet sockets for a protocol below IP, and those whose filter lets only DHCP through. Medium: all others, and "
    "sockets that no process holds. An interface is promiscuous too where a macvlan lies on it. A packet socket that a "
    "program opens for a moment, or an XDP program that reads packets, is not seen.")

} // namespace
} // namespace lararium::detect
