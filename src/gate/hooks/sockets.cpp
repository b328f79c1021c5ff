// Sockets that connect, bind, listen and accept.
#include "lararium/gate/hook.h"

#include <algorithm>
#include <arpa/inet.h>
#include <array>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

namespace lararium::gate {
namespace {

struct SocketAddress {
  std::string family, address;
  std::uint64_t port = 0;
  [[nodiscard]] std::string describe() const {
    if (family == "inet6")
      return fmt::format("[{}]:{}", address, port);
    return family == "inet" ? fmt::format("{}:{}", address, port) : address.empty() ? family : address;
  }
};

// The kernel's own copy of what the program gave.
SocketAddress address_at(const CallReader &reader, Gva address, std::uint64_t length) {
  sockaddr_storage storage{};
  const auto size = std::min<std::uint64_t>(length, sizeof storage);
  SocketAddress result;
  if (size < sizeof(sa_family_t) || !reader.bytes(address, writable_bytes_of(storage).first(size)))
    return result;
  std::array<char, INET6_ADDRSTRLEN> text{};
  const auto *base = reinterpret_cast<const std::byte *>(&storage);
  const Bytes bytes(base, sizeof storage);
  switch (storage.ss_family) {
  case AF_INET: {
    const auto in = load<sockaddr_in>(bytes, 0);
    result = {"inet", ::inet_ntop(AF_INET, &in->sin_addr, text.data(), text.size()), ntohs(in->sin_port)};
    break;
  }
  case AF_INET6: {
    const auto in = load<sockaddr_in6>(bytes, 0);
    result = {"inet6", ::inet_ntop(AF_INET6, &in->sin6_addr, text.data(), text.size()), ntohs(in->sin6_port)};
    break;
  }
  case AF_UNIX: {
    constexpr std::size_t path = offsetof(sockaddr_un, sun_path);
    result.family = "unix";
    if (size > path && bytes[path] == std::byte{0})
      result.address = "@" + std::string(reinterpret_cast<const char *>(base) + path + 1, size - path - 1);
    else
      result.address = std::string(c_string(bytes.first(size), path));
    break;
  }
  default: result.family = fmt::format("family {}", storage.ss_family);
  }
  return result;
}

std::string protocol_of(const CallReader &reader, Gva socket) {
  const auto sock = reader.pointer(socket, "socket", "sk");
  const auto protocol = sock ? reader.number(*sock, "sock", "sk_protocol") : std::nullopt;
  switch (protocol.value_or(0)) {
  case IPPROTO_TCP: return "tcp";
  case IPPROTO_UDP: return "udp";
  case IPPROTO_ICMP: return "icmp";
  case IPPROTO_ICMPV6: return "icmp6";
  case IPPROTO_SCTP: return "sctp";
  default: return {};
  }
}

Meaning with_address(const CallReader &reader, const HookedCall &call, std::string_view verb) {
  const SocketAddress address = address_at(reader, call.pointer(2), call.arguments[2] & 0xffffffff);
  const std::string protocol = protocol_of(reader, call.pointer(1));
  Meaning meaning{fmt::format("{} {}{}{}", verb, address.describe(), protocol.empty() ? "" : " by ", protocol)};
  meaning.with("family", address.family)
      .with("address", address.address)
      .with("port", address.port)
      .with("protocol", protocol);
  return meaning;
}

// The address and port that a socket has.
void add_own_address(const CallReader &reader, Gva socket, Meaning &meaning) {
  const auto sock = reader.pointer(socket, "socket", "sk");
  const std::uint64_t family = sock ? reader.number(*sock, "sock", "__sk_common.skc_family").value_or(0) : 0;
  meaning.with("family", family == AF_INET    ? std::string("inet")
                         : family == AF_INET6 ? std::string("inet6")
                         : family == AF_UNIX  ? std::string("unix")
                                              : fmt::format("family {}", family));
  meaning.with("port", sock && (family == AF_INET || family == AF_INET6)
                           ? reader.number(*sock, "sock", "__sk_common.skc_num").value_or(0)
                           : 0);
  meaning.with("protocol", protocol_of(reader, socket));
}

std::vector<Keep> keeps_address() {
  return {{KeepKind::counted, 2, {}, KeepRole::socket_address, 3, sizeof(sockaddr_storage)},
          keep_member(1, {{"socket", "sk"}}),
          keep_member(1, {{"socket", "sk"}, {"sock", "sk_protocol"}})};
}
std::vector<Keep> keeps_own_address() {
  return {keep_member(1, {{"socket", "sk"}}), keep_member(1, {{"socket", "sk"}, {"sock", "sk_protocol"}}),
          keep_member(1, {{"socket", "sk"}, {"sock", "__sk_common.skc_family"}}),
          keep_member(1, {{"socket", "sk"}, {"sock", "__sk_common.skc_num"}}, KeepRole::port)};
}

Result<std::vector<HookPoint>> connect_points(const linux_guest::Kernel &kernel) {
  return points_at(kernel, {{"security_socket_connect", {}, keeps_address()}});
}
Meaning tell_connect(const CallReader &reader, const HookedCall &call) {
  return with_address(reader, call, "connects to");
}
LARARIUM_HOOK(
    connect_hook, "connect", "a socket is connected",
    "TCP, UDP, UNIX and others, also by io_uring. A UDP socket that sends without connecting is not seen. Rules "
    "match `address`, `port`, `family` and `protocol`.",
    true, connect_points, tell_connect)

Result<std::vector<HookPoint>> bind_points(const linux_guest::Kernel &kernel) {
  return points_at(kernel, {{"security_socket_bind", {}, keeps_address()}});
}
Meaning tell_bind(const CallReader &reader, const HookedCall &call) { return with_address(reader, call, "binds to"); }
LARARIUM_HOOK(bind_hook, "bind", "a socket is bound to an address",
              "Rules match `address`, `port`, `family` and `protocol`.", true, bind_points, tell_bind)

Result<std::vector<HookPoint>> listen_points(const linux_guest::Kernel &kernel) {
  return points_at(kernel, {{"security_socket_listen", {}, keeps_own_address()}});
}
Meaning tell_listen(const CallReader &reader, const HookedCall &call) {
  Meaning meaning{"listens"};
  add_own_address(reader, call.pointer(1), meaning);
  for (const RecordField &field : meaning.fields)
    if (const auto *port = std::get_if<std::uint64_t>(&field.value); port != nullptr && *port != 0)
      meaning.sentence = fmt::format("listens on port {}", *port);
  meaning.with("backlog", call.arguments[1] & 0xffffffff);
  return meaning;
}
LARARIUM_HOOK(listen_hook, "listen", "a socket begins to listen", "`port` is 0 where it has none yet.", true,
              listen_points, tell_listen)

Result<std::vector<HookPoint>> accept_points(const linux_guest::Kernel &kernel) {
  return points_at(kernel, {{"security_socket_accept", {}, keeps_own_address()}});
}
Meaning tell_accept(const CallReader &reader, const HookedCall &call) {
  Meaning meaning{"waits for a connection"};
  add_own_address(reader, call.pointer(1), meaning);
  for (const RecordField &field : meaning.fields)
    if (const auto *port = std::get_if<std::uint64_t>(&field.value); port != nullptr && *port != 0)
      meaning.sentence = fmt::format("waits for a connection on port {}", *port);
  return meaning;
}
LARARIUM_HOOK(accept_hook, "accept", "a program asks for the next connection",
              "When accept(2) is called, before anybody has connected: who connects is not known then.", true,
              accept_points, tell_accept)

} // namespace
} // namespace lararium::gate
