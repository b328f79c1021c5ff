#include "../context.h"
#include "../owners.h"
#include "../table.h"
#include "../text.h"

#include <algorithm>
#include <fmt/format.h>

namespace lararium::cli {
namespace {

void write_socket(JsonWriter &json, const Socket &socket) {
  json.begin_object()
      .member("protocol", socket.protocol)
      .member("type", socket.type)
      .member("state", socket.state)
      .text_or_null("local_address", socket.local_address)
      .member("local_port", socket.local_port)
      .text_or_null("remote_address", socket.remote_address)
      .member("remote_port", socket.remote_port)
      .member("netlink_port", socket.netlink_port)
      .member("inode", socket.inode)
      .member("peer_inode", socket.peer_inode)
      .member("uid", socket.uid)
      .member("net_namespace", socket.net_namespace)
      .member("receive_queue", socket.receive_queue)
      .member("send_queue", socket.send_queue)
      .text_or_null("interface", socket.interface);
  write_owners(json, socket.owners);
  json.member("socket", socket.socket).end_object();
}

bool is_internet(const Socket &socket) {
  constexpr std::string_view protocols[] = {"tcp",  "tcp6",  "udp",  "udp6",    "raw",      "raw6",
                                            "icmp", "icmp6", "sctp", "udplite", "udplite6", "mptcp"};
  return std::ranges::find(protocols, socket.protocol) != std::end(protocols);
}

void append_endpoint(std::string &out, const Socket &socket, const std::string &address, std::uint16_t port,
                     bool local) {
  if (is_internet(socket)) {
    const bool bracketed = address.find(':') != address.npos;
    out += bracketed ? "[" : "";
    append_visible(out, address.empty() ? "*" : address);
    out += bracketed ? "]" : "";
    if (local && !socket.interface.empty()) {
      out += '%';
      append_visible(out, socket.interface);
    }
    out += ':';
    out += port == 0 ? "*" : std::to_string(port);
  } else if (socket.protocol == "unix") {
    append_visible(out, address.empty() ? "*" : address);
    const std::uint64_t inode = local ? socket.inode : socket.peer_inode;
    if (inode != 0)
      fmt::format_to(std::back_inserter(out), " {}", inode);
  } else {
    append_visible(out, address.empty() ? "*" : address);
    if (local && socket.netlink_port != 0)
      fmt::format_to(std::back_inserter(out), ":{}", socket.netlink_port);
  }
}

class Sockets final : public Command {
public:
  void describe(Syntax &syntax) override {
    syntax.flag("-l,--listening", "only those that wait for others to connect", listening_);
    syntax.flag("-t,--tcp", "TCP", tcp_);
    syntax.flag("-u,--udp", "UDP", udp_);
    syntax.flag("-x,--unix", "unix sockets", unix_);
    syntax.flag("-0,--packet", "packet and raw sockets, as sniffers use", packet_);
    syntax.option("-p,--pid", "PID", "only those that this process holds open", pid_);
    syntax.flag("-w,--wide", "do not cut lines to the terminal's width", wide_);
  }

  Result<void> run(Context &context) override {
    TRY_ASSIGN(OperatingSystem *const guest, context.guest());
    TRY_ASSIGN(auto view, guest->sockets());
    TRY(context.release_pause());
    std::erase_if(view.items, [this](const Socket &socket) { return !is_wanted(socket); });
    if (context.options.json)
      return context.json_list("sockets", view.items, &view.status, write_socket);
    Table table{
        {"PROTO"},  {"STATE"},  {"RECV-Q", Align::right}, {"SEND-Q", Align::right}, {"UID", Align::right}, {"LOCAL"},
        {"REMOTE"}, {"PROCESS"}};
    for (const Socket &socket : view.items) {
      table.guest(socket.protocol);
      table.guest(socket.state, socket.state == "LISTEN"        ? Style::green
                                : socket.state == "ESTABLISHED" ? Style::cyan
                                                                : Style::plain);
      table.number(socket.receive_queue).number(socket.send_queue).number(std::uint64_t{socket.uid});
      append_endpoint(table.begin_cell(), socket, socket.local_address, socket.local_port, true);
      table.end_cell();
      append_endpoint(table.begin_cell(), socket, socket.remote_address, socket.remote_port, false);
      table.end_cell();
      append_owners(table.begin_cell(), socket.owners);
      table.end_cell();
    }
    TRY(table.print(context.out, !wide_));
    context.notes_of(view.status);
    return {};
  }

private:
  [[nodiscard]] bool is_wanted(const Socket &socket) const {
    const bool any_protocol = !(tcp_ || udp_ || unix_ || packet_);
    const std::string_view protocol = socket.protocol;
    const bool protocol_fits = any_protocol || (tcp_ && protocol.starts_with("tcp")) ||
                               (udp_ && protocol.starts_with("udp")) || (unix_ && protocol == "unix") ||
                               (packet_ && (protocol == "packet" || protocol.starts_with("raw")));
    const bool listening_fits =
        !listening_ || socket.state == "LISTEN" || (socket.state == "UNCONNECTED" && socket.local_port != 0);
    const bool owner_fits = !pid_ || std::ranges::find(socket.owners, *pid_, &SocketOwner::pid) != socket.owners.end();
    return protocol_fits && listening_fits && owner_fits;
  }

  bool listening_ = false, tcp_ = false, udp_ = false, unix_ = false, packet_ = false, wide_ = false;
  std::optional<std::int32_t> pid_;
};

LARARIUM_COMMAND(Sockets, "sockets", network, vm, "sockets of all kinds and who holds them")

} // namespace
} // namespace lararium::cli
