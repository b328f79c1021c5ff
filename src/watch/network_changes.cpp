#include "lararium/watch/changes.h"

#include <algorithm>
#include <fmt/format.h>

namespace lararium::watch {
namespace {

bool is_transport(std::string_view protocol) { return protocol.starts_with("tcp") || protocol.starts_with("udp"); }

// Takes what others send: nobody in particular.
bool is_listening(const Socket &socket) {
  if (socket.state == "LISTEN")
    return true;
  if (socket.protocol.starts_with("raw") || socket.protocol == "packet")
    return true;
  return socket.protocol.starts_with("udp") && socket.local_port != 0 && socket.remote_port == 0;
}

// From the first packet to the moment at which one side hangs up. What the kernel keeps after that (FIN_WAIT,
// TIME_WAIT) belongs to nobody.
bool is_connected(const Socket &socket) {
  return is_transport(socket.protocol) && socket.remote_port != 0 &&
         (socket.state == "ESTABLISHED" || socket.state == "SYN_SENT" || socket.state == "CLOSE_WAIT");
}

std::string place(const std::string &address, std::uint16_t port) {
  if (port == 0)
    return clipped(address);
  return address.find(':') == address.npos ? fmt::format("{}:{}", clipped(address), port)
                                           : fmt::format("[{}]:{}", clipped(address), port);
}

std::string who(const std::optional<Actor> &actor) {
  return actor ? fmt::format("process {} ({})", actor->pid, actor->comm) : std::string("nobody known");
}

std::string addresses_of(const NetworkInterface &interface) {
  std::string text;
  for (const InterfaceAddress &address : interface.addresses) {
    if (text.size() > 4096)
      break;
    text += fmt::format("{}{}/{}", text.empty() ? "" : " ", address.address, address.prefix_length);
  }
  return clipped(text);
}

} // namespace

void SocketChanges::update(const View<Socket> &now, const ActorByPid &actor, Records &records) {
  std::map<std::string, Item> items;
  for (const Socket &socket : now.items) {
    const bool listening = is_listening(socket);
    if ((!listening && !is_connected(socket)) || items.size() >= 2 * Followed<Item>::limit)
      continue;
    Item item{socket, std::nullopt, listening};
    if (!socket.owners.empty()) {
      const SocketOwner &owner = socket.owners.front();
      item.owner = actor(owner.pid);
      if (!item.owner) {
        item.owner.emplace();
        item.owner->pid = owner.pid;
        item.owner->comm = owner.comm;
      }
    }
    item.socket.owners.clear();
    items.emplace(fmt::format("{} {} {} {} {:x} {} {} {}", listening ? "L" : "C", socket.protocol, socket.net_namespace,
                              socket.inode, socket.socket.value, place(socket.local_address, socket.local_port),
                              place(socket.remote_address, socket.remote_port), socket.interface),
                  std::move(item));
  }
  const auto tell = [&](const char *type, const Item &item, std::string sentence) {
    const Socket &socket = item.socket;
    Record &record = records.add(type, std::move(sentence));
    record.actor = item.owner;
    record.with("protocol", socket.protocol)
        .with("local_address", clipped(socket.local_address))
        .with("local_port", std::uint64_t{socket.local_port});
    if (!item.listening)
      record.with("remote_address", clipped(socket.remote_address))
          .with("remote_port", std::uint64_t{socket.remote_port})
          .with("state", socket.state);
    record.with("inode", socket.inode).with("net_namespace", std::uint64_t{socket.net_namespace});
  };
  followed_.update(
      std::move(items), now.status,
      [&](const Item &item) {
        const Socket &socket = item.socket;
        const std::string local = place(socket.local_address, socket.local_port);
        if (item.listening)
          tell("listening_started", item, fmt::format("{} listens on {} {}", who(item.owner), socket.protocol, local));
        else
          tell("connection_opened", item,
               fmt::format("{} has a connection {} {} to {}", who(item.owner), socket.protocol, local,
                           place(socket.remote_address, socket.remote_port)));
      },
      [](const Item &before, Item &after) {
        // Owners are looked up at each look; what is known of one that is gone stays.
        if (!after.owner)
          after.owner = before.owner;
      },
      [&](const Item &item) {
        const Socket &socket = item.socket;
        const std::string local = place(socket.local_address, socket.local_port);
        if (item.listening)
          tell("listening_stopped", item,
               fmt::format("nobody listens on {} {} any more, it was {}", socket.protocol, local, who(item.owner)));
        else
          tell("connection_closed", item,
               fmt::format("the connection {} {} to {} ended, it was of {}", socket.protocol, local,
                           place(socket.remote_address, socket.remote_port), who(item.owner)));
      });
}

void InterfaceChanges::update(const View<NetworkInterface> &now, Records &records) {
  std::map<std::string, NetworkInterface> items;
  for (const NetworkInterface &interface : now.items)
    if (items.size() < 2 * Followed<NetworkInterface>::limit)
      items.emplace(fmt::format("{} {} {:x}", interface.net_namespace, interface.index, interface.device.value),
                    interface);
  const auto tell = [&](const char *type, const NetworkInterface &interface, std::string sentence) -> Record & {
    Record &record = records.add(type, std::move(sentence));
    record.with("interface", clipped(interface.name))
        .with("net_namespace", std::uint64_t{interface.net_namespace})
        .with("up", interface.up)
        .with("promiscuous", interface.promiscuous)
        .with("addresses", addresses_of(interface));
    return record;
  };
  followed_.update(
      std::move(items), now.status,
      [&](const NetworkInterface &interface) {
        tell("interface_appeared", interface, fmt::format("interface {} appeared", clipped(interface.name)));
      },
      [&](const NetworkInterface &before, const NetworkInterface &after) {
        std::vector<std::string> what;
        if (before.name != after.name)
          what.push_back(fmt::format("was {}", clipped(before.name)));
        if (before.up != after.up)
          what.emplace_back(after.up ? "is up" : "is down");
        if (before.promiscuous != after.promiscuous)
          what.emplace_back(after.promiscuous ? "is promiscuous" : "is no more promiscuous");
        if (before.mac != after.mac)
          what.push_back(fmt::format("has address {}, before {}", clipped(after.mac), clipped(before.mac)));
        if (addresses_of(before) != addresses_of(after))
          what.push_back(fmt::format("has addresses {}, before {}", addresses_of(after), addresses_of(before)));
        if (before.xdp != after.xdp)
          what.emplace_back(after.xdp ? "has an XDP program" : "has no XDP program any more");
        if (before.master != after.master)
          what.push_back(after.master.empty() ? fmt::format("left {}", clipped(before.master))
                                              : fmt::format("joined {}", clipped(after.master)));
        if (!what.empty())
          tell("interface_changed", after, fmt::format("interface {} {}", clipped(after.name), fmt::join(what, ", ")))
              .with("change", fmt::format("{}", fmt::join(what, ", ")));
      },
      [&](const NetworkInterface &interface) {
        tell("interface_gone", interface, fmt::format("interface {} is gone", clipped(interface.name)));
      });
}

} // namespace lararium::watch
