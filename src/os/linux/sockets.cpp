#include "sockets.h"

#include "lararium/os/linux/fdtable.h"
#include "lararium/os/linux/tasks.h"
#include "namespaces_net.h"

#include <algorithm>
#include <arpa/inet.h>
#include <array>
#include <bit>
#include <string_view>
#include <unordered_map>
#include <utility>

namespace lararium::linux_guest {
namespace {

constexpr std::size_t socket_limit = 2 << 20;
constexpr std::size_t owner_limit = 4 << 20;
constexpr std::size_t bucket_limit = 16 << 20;
constexpr std::size_t queue_limit = 65536; // packets in one queue
constexpr int chain_attempts = 4;
constexpr std::uint64_t unix_buckets = 512;    // UNIX_HASH_SIZE, twice 256 before; the table's size since 2.6
constexpr std::uint64_t netlink_families = 32; // MAX_LINKS
constexpr std::uint64_t unix_path_limit = 108;

// Numbers that are part of the kernel's interface to programs.
enum Family : std::uint16_t {
  family_unix = 1,
  family_inet = 2,
  family_inet6 = 10,
  family_netlink = 16,
  family_packet = 17
};
enum Protocol : std::uint16_t {
  protocol_icmp = 1,
  protocol_tcp = 6,
  protocol_udp = 17,
  protocol_icmp6 = 58,
  protocol_udplite = 136
};
enum Type : std::uint16_t { type_stream = 1, type_datagram = 2, type_raw = 3 };
enum State : std::uint8_t { // include/net/tcp_states.h
  state_none = 0,
  state_established = 1,
  state_time_wait = 6,
  state_close = 7,
  state_listen = 10,
  state_new_syn_recv = 12,
};

std::string_view tcp_state_name(std::uint64_t state) {
  constexpr std::array<std::string_view, 14> names{"UNKNOWN",   "ESTABLISHED", "SYN_SENT", "SYN_RECV",   "FIN_WAIT1",
                                                   "FIN_WAIT2", "TIME_WAIT",   "CLOSED",   "CLOSE_WAIT", "LAST_ACK",
                                                   "LISTEN",    "CLOSING",     "SYN_RECV", "CLOSED"};
  return state < names.size() ? names[state] : names[0];
}

std::string type_name(std::uint64_t type) {
  constexpr std::array<std::string_view, 7> names{"", "stream", "dgram", "raw", "rdm", "seqpacket", "dccp"};
  if (type == 10)
    return "packet";
  return type > 0 && type < names.size() ? std::string(names[type]) : std::to_string(type);
}

// Families whose sockets are in no table that we read: include/linux/socket.h.
std::string family_name(std::uint64_t family) {
  constexpr std::array<std::string_view, 46> names{
      "unspec", "unix",      "inet",    "ax25",    "ipx",      "appletalk", "netrom",     "bridge", "atmpvc", "x25",
      "inet6",  "rose",      "decnet",  "netbeui", "security", "key",       "netlink",    "packet", "ash",    "econet",
      "atmsvc", "rds",       "sna",     "irda",    "pppox",    "wanpipe",   "llc",        "ib",     "mpls",   "can",
      "tipc",   "bluetooth", "iucv",    "rxrpc",   "isdn",     "phonet",    "ieee802154", "caif",   "alg",    "nfc",
      "vsock",  "kcm",       "qipcrtr", "smc",     "xdp",      "mctp"};
  return family < names.size() ? std::string(names[family]) : "family" + std::to_string(family);
}

// include/uapi/linux/netlink.h
std::string netlink_family_name(std::uint64_t protocol) {
  constexpr std::array<std::string_view, 23> names{
      "route",   "unused", "usersock",      "firewall",  "sock_diag", "nflog",  "xfrm",    "selinux",
      "iscsi",   "audit",  "fib_lookup",    "connector", "netfilter", "ip6_fw", "dnrtmsg", "kobject_uevent",
      "generic", "dm",     "scsitransport", "ecryptfs",  "rdma",      "crypto", "smc"};
  return protocol < names.size() ? std::string(names[protocol]) : std::to_string(protocol);
}

struct SocketLayout {
  // struct sock and what it begins with
  FieldLocation family, state, net, local4, remote4, local6, remote6, local_port, remote_port, bound_interface, node;
  FieldLocation type, protocol, socket, uid, receive_memory, send_memory, backlog, queue, queue_length;
  std::optional<FieldLocation> references;
  // struct socket and its inode
  FieldLocation socket_sock, with_inode_socket, with_inode_inode, inode_number, file_operations, file_private;
  // of the protocols
  FieldLocation received_next, copied, written, unacknowledged, time_wait_state;
  std::optional<FieldLocation> udp_deficit;
  std::optional<FieldLocation> unix_peer, unix_address, address_length, address_name, unix_queued, unix_consumed;
  std::optional<FieldLocation> packet_protocol, packet_interface;
  std::optional<FieldLocation> netlink_port, netlink_node;
  FieldLocation buffer_next, buffer_length;
  std::optional<FieldLocation> buffer_control;

  static Result<SocketLayout> resolve(const Kernel &kernel) {
    LayoutResolver layout(kernel.types());
    SocketLayout f;
    const auto common = [&](std::string_view path) { return layout.require("sock_common", path); };
    f.family = common("skc_family");
    f.state = common("skc_state");
    f.net = layout.require_any("sock_common", {"skc_net.net", "skc_net"});
    f.local4 = common("skc_rcv_saddr");
    f.remote4 = common("skc_daddr");
    f.local6 = common("skc_v6_rcv_saddr");
    f.remote6 = common("skc_v6_daddr");
    f.local_port = common("skc_num");
    f.remote_port = common("skc_dport");
    f.bound_interface = common("skc_bound_dev_if");
    f.node = common("skc_node"); // in one place with skc_nulls_node
    f.references = layout.optional_any("sock_common", {"skc_refcnt.refs.counter", "skc_refcnt.counter"});
    const auto sock = [&](std::string_view path) { return layout.require("sock", path); };
    f.type = sock("sk_type");
    f.protocol = sock("sk_protocol");
    f.socket = sock("sk_socket");
    f.uid = sock("sk_uid");
    f.receive_memory = layout.require_any("sock", {"sk_backlog.rmem_alloc", "sk_rmem_alloc"});
    f.send_memory = sock("sk_wmem_alloc");
    f.backlog = sock("sk_ack_backlog");
    f.queue = sock("sk_receive_queue");
    f.queue_length = sock("sk_receive_queue.qlen");
    f.socket_sock = layout.require("socket", "sk");
    f.with_inode_socket = layout.require("socket_alloc", "socket");
    f.with_inode_inode = layout.require("socket_alloc", "vfs_inode");
    f.inode_number = layout.require("inode", "i_ino");
    f.file_operations = layout.require("file", "f_op");
    f.file_private = layout.require("file", "private_data");
    f.received_next = layout.require("tcp_sock", "rcv_nxt");
    f.copied = layout.require("tcp_sock", "copied_seq");
    f.written = layout.require("tcp_sock", "write_seq");
    f.unacknowledged = layout.require("tcp_sock", "snd_una");
    f.time_wait_state = layout.require("inet_timewait_sock", "tw_substate");
    f.udp_deficit = layout.optional("udp_sock", "forward_deficit");
    f.unix_peer = layout.optional("unix_sock", "peer");
    f.unix_address = layout.optional("unix_sock", "addr");
    f.address_length = layout.optional("unix_address", "len");
    f.address_name = layout.optional("unix_address", "name");
    f.unix_queued = layout.optional("unix_sock", "inq_len"); // 6.17, f4e1fb04c123
    f.unix_consumed = layout.optional("unix_skb_parms", "consumed");
    f.packet_protocol = layout.optional("packet_sock", "num");
    f.packet_interface = layout.optional("packet_sock", "ifindex");
    f.netlink_port = layout.optional("netlink_sock", "portid");
    f.netlink_node = layout.optional("netlink_sock", "node");
    f.buffer_next = layout.require("sk_buff", "next");
    f.buffer_length = layout.require("sk_buff", "len");
    f.buffer_control = layout.optional("sk_buff", "cb");
    TRY(layout.check());
    return f;
  }
};

// Where one socket was met.
struct Found {
  Gva sock;
  Gva socket;            // struct socket, where a process holds it open
  bool in_table = false; // of its protocol
  std::vector<SocketOwner> owners;
};

// The set of sockets, in the order in which they were met.
class SocketSet {
public:
  explicit SocketSet(std::size_t limit) : limit_(limit) {}
  // Null when there are too many.
  Found *add(Gva sock) {
    const auto [place, fresh] = index_.try_emplace(sock.value, found_.size());
    if (!fresh)
      return &found_[place->second];
    if (found_.size() >= limit_) {
      index_.erase(place);
      full_ = true;
      return nullptr;
    }
    return &found_.emplace_back(Found{sock, {}, false, {}});
  }
  [[nodiscard]] bool full() const { return full_; }
  [[nodiscard]] std::vector<Found> &all() { return found_; }

private:
  std::size_t limit_;
  bool full_ = false;
  std::vector<Found> found_;
  std::unordered_map<std::uint64_t, std::size_t> index_;
};

// Walks the kernel's tables of sockets.
class TableWalker {
public:
  TableWalker(const Kernel &kernel, const SocketLayout &f, const std::vector<NetNamespace> &spaces, SocketSet &set,
              ViewStatus &status)
      : kernel_(kernel), types_(kernel.types()), f_(f), spaces_(spaces), set_(set), status_(status) {}

  void walk_all() {
    heads_left_ = kernel_.memory().total_size() / 64;
    walk_tcp();
    walk_udp();
    walk_array("raw_v4_hashinfo", "raw_hashinfo", "ht");
    walk_array("raw_v6_hashinfo", "raw_hashinfo", "ht");
    walk_array("ping_table", "ping_table", "hash");
    walk_packet();
    walk_unix();
    walk_netlink();
  }

private:
  static constexpr std::uint64_t no_slot = UINT64_MAX;

  // Each socket hangs on a few chains, and each bucket has one; when all buckets of crafted tables name the same long
  // chain, the walks end all the same.
  bool take_step() {
    if (steps_left_ == 0)
      return false;
    if (--steps_left_ == 0) {
      status_.truncated = true;
      status_.warn("the tables of sockets hold more than fits into memory");
    }
    return steps_left_ != 0;
  }

  // One chain of sockets that are linked by a member at `node` of struct sock. `slot`: the number with which an
  // hlist_nulls chain must end; a socket that was freed and used anew while we stood on it leads into another chain.
  void walk_socket_chain(Gva first, std::uint64_t node, std::uint64_t slot, std::string_view what) {
    for (int attempt = 0;; ++attempt) {
      Gva last{};
      const auto walk = walk_chain(kernel_, first, 0, socket_limit, [&](Gva link) {
        last = link;
        const Gva sock = link - node;
        if (!take_step())
          return false;
        if (f_.references && kernel_.read_field(sock, *f_.references).value_or(0) == 0)
          return true; // on its way out
        if (Found *found = set_.add(sock))
          found->in_table = true;
        return !set_.full();
      });
      bool consistent = walk.consistent();
      if (consistent && slot != no_slot && last && walk.end == WalkEnd::complete) {
        const auto end = kernel_.read_pointer(last);
        consistent = !end || (end->value & 1) == 0 || end->value >> 1 == slot;
      }
      if (consistent || steps_left_ == 0)
        return;
      if (attempt + 1 == chain_attempts) {
        status_.raced = true;
        status_.warn("a chain of the table of " + std::string(what) + " sockets is not consistent");
        return;
      }
      ++status_.retries;
    }
  }

  // `count` heads, `stride` apart; in runs of a page, as most of them are empty.
  void walk_heads(Gva table, std::uint64_t count, std::uint64_t stride, std::uint64_t head, std::uint64_t node,
                  std::string_view what, bool numbered = false) {
    if (!kernel_.is_kernel_address(table) || stride < 8 || stride > 256 || head + 8 > stride || heads_left_ == 0)
      return;
    if (count > std::min<std::uint64_t>(bucket_limit, heads_left_)) {
      status_.truncated = true;
      status_.warn("the table of " + std::string(what) + " sockets claims more buckets than fit into memory");
      return;
    }
    heads_left_ -= count;
    std::array<std::byte, page_size> buffer;
    const std::uint64_t per_read = buffer.size() / stride;
    for (std::uint64_t base = 0; base < count; base += per_read) {
      const auto part = std::span(buffer).first(std::min(per_read, count - base) * stride);
      if (!kernel_.space().read(table + base * stride, part)) {
        status_.raced = true;
        status_.warn("part of the table of " + std::string(what) + " sockets cannot be read");
        return;
      }
      for (std::uint64_t i = 0; i * stride < part.size(); ++i) {
        const Gva first{load<std::uint64_t>(part, i * stride + head).value_or(0)};
        if (first && (first.value & 1) == 0)
          walk_socket_chain(first, node, numbered ? base + i : no_slot, what);
        if (set_.full() || steps_left_ == 0)
          return;
      }
    }
  }

  void walk_tcp() {
    LayoutResolver layout(types_);
    const auto table = layout.require("inet_hashinfo", "ehash");
    const auto mask = layout.require("inet_hashinfo", "ehash_mask");
    const auto bucket_size = layout.require_size("inet_ehash_bucket");
    const auto chain = layout.require("inet_ehash_bucket", "chain");
    const auto listen_size = layout.require_size("inet_listen_hashbucket");
    const auto listen_head = layout.require_any("inet_listen_hashbucket", {"nulls_head", "head"});
    // The table by port alone went away in 5.19 (cae3873c5b3a); since then the other one is linked by sk_nulls_node.
    const auto by_port = layout.optional("inet_hashinfo", "listening_hash");
    const auto by_address = layout.optional("inet_hashinfo", "lhash2");
    const auto by_address_mask = layout.optional("inet_hashinfo", "lhash2_mask");
    // A namespace can have a table of its own since 6.1 (d1e5e6408b30).
    const auto own = layout.optional_any("net", {"ipv4.tcp_death_row.hashinfo"});
    if (const auto resolved = layout.check(); !resolved) {
      status_.warn(resolved.error().message);
      return;
    }
    for (const Gva info : tables("tcp_hashinfo", own)) {
      if (by_port && listen_size != 0)
        walk_heads(info + by_port->offset, by_port->size / listen_size, listen_size, listen_head.offset, f_.node.offset,
                   "listening TCP");
      else if (by_address && by_address_mask)
        walk_heads(kernel_.read_pointer(info, *by_address).value_or(Gva{}),
                   kernel_.read_field(info, *by_address_mask).value_or(0) + 1, listen_size, listen_head.offset,
                   f_.node.offset, "listening TCP");
      walk_heads(kernel_.read_pointer(info, table).value_or(Gva{}), kernel_.read_field(info, mask).value_or(0) + 1,
                 bucket_size, chain.offset, f_.node.offset, "TCP", true);
    }
  }

  void walk_udp() {
    LayoutResolver layout(types_);
    const auto table = layout.require("udp_table", "hash");
    const auto mask = layout.require("udp_table", "mask");
    const auto slot_size = layout.require_size("udp_hslot");
    const auto head = layout.require("udp_hslot", "head");
    const auto own = layout.optional("net", "ipv4.udp_table"); // 6.2, 9804985bf27f
    if (const auto resolved = layout.check(); !resolved) {
      status_.warn(resolved.error().message);
      return;
    }
    auto all = tables("udp_table", own);
    if (const auto lite = kernel_.symbol("udplite_table"))
      all.push_back(*lite);
    for (const Gva info : all)
      walk_heads(kernel_.read_pointer(info, table).value_or(Gva{}), kernel_.read_field(info, mask).value_or(0) + 1,
                 slot_size, head.offset, f_.node.offset, "UDP");
  }

  void walk_array(std::string_view symbol, std::string_view type, std::string_view member) {
    const auto address = kernel_.symbol(symbol);
    const auto heads = types_.field(type, member);
    if (address && heads)
      walk_heads(*address + heads->offset, heads->size / 8, 8, 0, f_.node.offset, symbol);
  }

  void walk_packet() {
    const auto head = types_.field("net", "packet.sklist");
    if (!head)
      return;
    for (const auto &space : spaces_)
      if (const auto first = kernel_.read_pointer(space.net + head->offset))
        walk_socket_chain(*first, f_.node.offset, no_slot, "packet");
  }

  void walk_unix() {
    // One table for all namespaces before 6.0 (cf21b355ccb3).
    if (const auto table = kernel_.symbol("unix_socket_table"))
      walk_heads(*table, unix_buckets, 8, 0, f_.node.offset, "unix");
    const auto own = types_.field("net", "unx.table.buckets");
    if (!own)
      return;
    for (const auto &space : spaces_)
      walk_heads(kernel_.read_pointer(space.net, *own).value_or(Gva{}), unix_buckets, 8, 0, f_.node.offset, "unix");
  }

  void walk_netlink() {
    const auto symbol = kernel_.symbol("nl_table");
    const auto size = types_.size_of("netlink_table");
    const auto table = types_.field("netlink_table", "hash.tbl");
    const auto bucket_count = types_.field("bucket_table", "size");
    const auto nested = types_.field("bucket_table", "nest");
    const auto buckets = types_.field("bucket_table", "buckets");
    const auto future = types_.field("bucket_table", "future_tbl");
    if (!symbol || !size || !table || !bucket_count || !buckets || !f_.netlink_node)
      return;
    // Bit 0 of a bucket is its lock since 5.2 (8f0db018006a); before, it marks the end of the chain.
    const bool lock_bit = types_.find("rhash_lock_head").has_value();
    const auto families = kernel_.read_pointer(*symbol);
    if (!families)
      return;
    for (std::uint64_t family = 0; family < netlink_families; ++family) {
      auto current = kernel_.read_pointer(*families + family * *size, *table);
      for (int tables = 0; current && *current && tables < 4; ++tables) { // the table, and those it is moved to
        const auto count = kernel_.read_field(*current, *bucket_count).value_or(0);
        if (count > std::min<std::uint64_t>(bucket_limit, kernel_.memory().total_size() / 8)) {
          status_.truncated = true;
          status_.warn("a netlink table claims more buckets than fit into memory");
          break;
        }
        if (nested && kernel_.read_field(*current, *nested).value_or(0) != 0) {
          status_.truncated = true;
          status_.warn("a netlink table is nested; only its sockets that processes hold open are listed");
        } else {
          for (std::uint64_t i = 0; i < count && !set_.full(); ++i) {
            auto first = kernel_.read_pointer(*current + buckets->offset + 8 * i);
            if (first && lock_bit)
              first->value &= ~std::uint64_t{1};
            if (first && *first && (first->value & 1) == 0)
              walk_socket_chain(*first, f_.netlink_node->offset, no_slot, "netlink");
          }
        }
        current = future ? kernel_.read_pointer(*current, *future) : std::nullopt;
      }
    }
  }

  // The table of all namespaces, and those of single ones, each once.
  [[nodiscard]] std::vector<Gva> tables(std::string_view symbol, const std::optional<FieldLocation> &own) const {
    std::vector<Gva> result;
    if (const auto address = kernel_.symbol(symbol))
      result.push_back(*address);
    if (own)
      for (const auto &space : spaces_)
        if (const auto table = kernel_.read_pointer(space.net, *own);
            table && kernel_.is_kernel_address(*table) && std::ranges::find(result, *table) == result.end())
          result.push_back(*table);
    return result;
  }

  const Kernel &kernel_;
  const Types &types_;
  const SocketLayout &f_;
  const std::vector<NetNamespace> &spaces_;
  SocketSet &set_;
  ViewStatus &status_;
  // The smallest that hangs there is a TIME_WAIT socket of some 250 bytes.
  std::size_t steps_left_ = (1 << 18) + kernel_.memory().total_size() / 256;
  std::size_t heads_left_ = 0; // of all tables together: crafted namespaces have a large one each
};

// Describes one socket as /proc/net and ss do.
class SocketReader {
public:
  SocketReader(const Kernel &kernel, const SocketLayout &f, const std::vector<NetNamespace> &spaces,
               const InterfaceNames &interfaces)
      : kernel_(kernel), f_(f), interfaces_(interfaces) {
    for (const auto &space : spaces)
      namespaces_[space.net] = space.inum;
  }

  // Nothing when what is there is no socket (any more).
  [[nodiscard]] std::optional<Socket> read(const Found &found) const {
    const Gva sock = found.sock;
    const auto family = kernel_.read_field(sock, f_.family);
    const auto state = kernel_.read_field(sock, f_.state);
    if (!family || !state || *family == 0)
      return std::nullopt;
    Socket s;
    s.socket = sock;
    s.net_namespace = namespace_of(sock);
    const Gva net = kernel_.read_pointer(sock, f_.net).value_or(Gva{});
    const bool inet = *family == family_inet || *family == family_inet6;
    if (inet)
      read_endpoints(s, *family);
    if (inet || *family == family_netlink)
      s.interface = interface_name(net, number(sock, f_.bound_interface));
    // Those two are not whole struct socks.
    if (inet && (*state == state_time_wait || *state == state_new_syn_recv)) {
      s.protocol = *family == family_inet ? "tcp" : "tcp6";
      s.type = "stream";
      s.state = tcp_state_name(*state == state_time_wait ? number(sock, f_.time_wait_state) : *state);
      return s;
    }
    const std::uint64_t type = number(sock, f_.type), protocol = number(sock, f_.protocol);
    s.type = type_name(type);
    s.uid = static_cast<std::uint32_t>(number(sock, f_.uid));
    s.inode = inode_of(found.socket ? found.socket : kernel_.read_pointer(sock, f_.socket).value_or(Gva{}));
    s.receive_queue = number(sock, f_.receive_memory);
    s.send_queue = allocated_for_sending(sock);
    s.state = *state == state_established ? "ESTABLISHED" : found.in_table ? "UNCONNECTED" : "CLOSED";
    switch (*family) {
    case family_inet:
    case family_inet6: read_inet(s, found, type, protocol, *family == family_inet6, *state); break;
    case family_unix: read_unix(s, type, *state); break;
    case family_packet: read_packet(s, net); break;
    case family_netlink:
      s.protocol = "netlink";
      s.local_address = netlink_family_name(protocol);
      if (f_.netlink_port)
        s.netlink_port = static_cast<std::uint32_t>(number(sock, *f_.netlink_port));
      break;
    default: s.protocol = family_name(*family);
    }
    return s;
  }

private:
  [[nodiscard]] std::uint64_t number(Gva object, const FieldLocation &field) const {
    return kernel_.read_field(object, field).value_or(0);
  }

  [[nodiscard]] std::uint32_t namespace_of(Gva sock) const {
    const auto found = namespaces_.find(kernel_.read_pointer(sock, f_.net).value_or(Gva{}));
    return found == namespaces_.end() ? 0 : found->second;
  }

  [[nodiscard]] std::string interface_name(Gva net, std::uint64_t index) const {
    if (index == 0 || index > INT32_MAX)
      return {};
    auto name = interfaces_.find(net, static_cast<std::uint32_t>(index));
    return name.empty() ? "if" + std::to_string(index) : name;
  }

  [[nodiscard]] std::uint64_t inode_of(Gva socket) const {
    if (!socket)
      return 0; // orphaned, or not accepted yet
    return number(socket - f_.with_inode_socket.offset + f_.with_inode_inode.offset, f_.inode_number);
  }

  // sk_wmem_alloc counts one for the socket itself.
  [[nodiscard]] std::uint64_t allocated_for_sending(Gva sock) const {
    const auto value = number(sock, f_.send_memory);
    return value > 0 ? value - 1 : 0;
  }

  [[nodiscard]] std::string address_text(Gva address, int family) const {
    std::array<std::byte, 16> bytes{};
    const auto part = std::span(bytes).first(family == AF_INET ? 4 : 16);
    std::array<char, INET6_ADDRSTRLEN> text{};
    if (!kernel_.space().read(address, part) || inet_ntop(family, bytes.data(), text.data(), text.size()) == nullptr)
      return {};
    return text.data();
  }

  void read_endpoints(Socket &s, std::uint64_t family) const {
    if (family == family_inet) {
      s.local_address = address_text(s.socket + f_.local4.offset, AF_INET);
      s.remote_address = address_text(s.socket + f_.remote4.offset, AF_INET);
    } else {
      s.local_address = address_text(s.socket + f_.local6.offset, AF_INET6);
      s.remote_address = address_text(s.socket + f_.remote6.offset, AF_INET6);
    }
    s.local_port = static_cast<std::uint16_t>(number(s.socket, f_.local_port)); // in the host's order, unlike the other
    s.remote_port = std::byteswap(static_cast<std::uint16_t>(number(s.socket, f_.remote_port)));
  }

  void read_inet(Socket &s, const Found &found, std::uint64_t type, std::uint64_t protocol, bool version6,
                 std::uint64_t state) const {
    const auto name = [&](const char *stem) { return std::string(stem) + (version6 ? "6" : ""); };
    const bool bound = s.local_port != 0;
    if (type == type_raw) {
      s.protocol = name("raw");
      s.netlink_port = s.local_port; // raw sockets keep their protocol there
      s.local_port = 0;
    } else if (protocol == protocol_tcp && type == type_stream) {
      s.protocol = name("tcp");
      s.state = tcp_state_name(state);
      const auto field = [&](const FieldLocation &location) {
        return static_cast<std::uint32_t>(number(s.socket, location));
      };
      // As get_tcp4_sock() in net/ipv4/tcp_ipv4.c.
      const auto unread = static_cast<std::int32_t>(field(f_.received_next) - field(f_.copied));
      s.receive_queue =
          state == state_listen ? number(s.socket, f_.backlog) : static_cast<std::uint64_t>(std::max(unread, 0));
      s.send_queue = field(f_.written) - field(f_.unacknowledged);
    } else if (protocol == protocol_udp || protocol == protocol_udplite) {
      s.protocol = name(protocol == protocol_udp ? "udp" : "udplite");
      if (f_.udp_deficit) {
        const auto deficit = static_cast<std::int32_t>(number(s.socket, *f_.udp_deficit));
        s.receive_queue = static_cast<std::uint32_t>(static_cast<std::int32_t>(s.receive_queue) - deficit);
      }
    } else if (protocol == protocol_icmp || protocol == protocol_icmp6) {
      s.protocol = name("icmp");
    } else if (protocol == 132) {
      s.protocol = name("sctp");
    } else if (protocol == 262) {
      s.protocol = name("mptcp");
      s.state = tcp_state_name(state);
    } else {
      s.protocol = name("inet") + ":" + std::to_string(protocol);
    }
    if (s.state == "CLOSED" && type != type_stream && bound && !found.in_table)
      s.state = "UNCONNECTED"; // it has an address, whether a table knows it or not
  }

  void read_unix(Socket &s, std::uint64_t type, std::uint64_t state) const {
    s.protocol = "unix";
    s.state = state == state_listen ? "LISTEN" : state == state_established ? "ESTABLISHED" : "UNCONNECTED";
    if (f_.unix_peer)
      if (const auto peer = kernel_.read_pointer(s.socket, *f_.unix_peer); peer && kernel_.is_kernel_address(*peer)) {
        s.peer_inode = inode_of(kernel_.read_pointer(*peer, f_.socket).value_or(Gva{}));
        if (const auto address = f_.unix_address ? kernel_.read_pointer(*peer, *f_.unix_address) : std::nullopt)
          s.remote_address = unix_path(*address);
      }
    if (f_.unix_address)
      if (const auto address = kernel_.read_pointer(s.socket, *f_.unix_address))
        s.local_address = unix_path(*address);
    s.receive_queue = state == state_listen ? number(s.socket, f_.queue_length) : unix_unread(s.socket, type);
  }

  // As unix_seq_show() prints it: '@' in front of an abstract name and for each zero in it.
  [[nodiscard]] std::string unix_path(Gva address) const {
    if (!kernel_.is_kernel_address(address) || !f_.address_length || !f_.address_name)
      return {};
    const auto length = number(address, *f_.address_length);
    if (length <= 2) // sun_family
      return {};
    std::string name(std::min(length - 2, unix_path_limit), '\0');
    if (!kernel_.space().read(address + f_.address_name->offset + 2, std::as_writable_bytes(std::span(name))))
      return {};
    if (name.front() != '\0') {
      name.resize(name.find('\0') == std::string::npos ? name.size() : name.find('\0'));
      return name;
    }
    std::ranges::replace(name, '\0', '@');
    return name;
  }

  // As unix_inq_len(): of a datagram socket the first message only.
  [[nodiscard]] std::uint64_t unix_unread(Gva sock, std::uint64_t type) const {
    if (f_.unix_queued && type == type_stream)
      return number(sock, *f_.unix_queued);
    const Gva head = sock + f_.queue.offset;
    std::uint64_t bytes = 0;
    auto buffer = kernel_.read_pointer(head);
    for (std::size_t i = 0; i < queue_limit && buffer && *buffer != head && kernel_.is_kernel_address(*buffer); ++i) {
      if (packets_left_ == 0)
        return bytes; // crafted sockets share one long queue
      --packets_left_;
      const auto length = number(*buffer, f_.buffer_length);
      if (type == type_datagram)
        return length;
      const auto consumed =
          f_.buffer_control && f_.unix_consumed ? number(*buffer + f_.buffer_control->offset, *f_.unix_consumed) : 0;
      bytes += length - std::min(length, consumed);
      buffer = kernel_.read_pointer(*buffer, f_.buffer_next);
    }
    return bytes;
  }

  void read_packet(Socket &s, Gva net) const {
    s.protocol = "packet";
    if (f_.packet_protocol)
      s.netlink_port = std::byteswap(static_cast<std::uint16_t>(number(s.socket, *f_.packet_protocol)));
    if (f_.packet_interface)
      s.interface = interface_name(net, number(s.socket, *f_.packet_interface));
    s.local_address = s.interface;
  }

  const Kernel &kernel_;
  const SocketLayout &f_;
  const InterfaceNames &interfaces_;
  // Of all queues together: a packet (struct sk_buff) takes some 256 bytes of the guest's memory.
  mutable std::size_t packets_left_ = kernel_.memory().total_size() / 256;
  std::unordered_map<Gva, std::uint32_t> namespaces_;
};

// Sockets that processes hold open.
Result<void> collect_open_sockets(const Kernel &kernel, const SocketLayout &f, SocketSet &set, ViewStatus &status) {
  const auto operations = kernel.symbol("socket_file_ops");
  if (!operations) {
    status.warn("the kernel has no symbol socket_file_ops: which process holds which socket is not known");
    return {};
  }
  std::unordered_map<std::int32_t, std::string> comms;
  std::size_t owners = 0;
  return for_each_open_file(kernel, status, [&](const DescriptorHolder &holder, const FileDescriptor &fd) {
    if (kernel.read_pointer(fd.file, f.file_operations) != operations)
      return true;
    const auto socket = kernel.read_pointer(fd.file, f.file_private);
    const auto sock = socket && *socket ? kernel.read_pointer(*socket, f.socket_sock) : std::nullopt;
    if (!sock || !kernel.is_kernel_address(*sock))
      return true;
    Found *found = set.add(*sock);
    if (found == nullptr || owners >= owner_limit) {
      status.truncated = true;
      return false;
    }
    ++owners;
    found->socket = *socket;
    auto &comm = comms[holder.id];
    if (comm.empty())
      comm = task_comm(kernel, holder.task);
    found->owners.push_back({holder.id, fd.number, comm});
    return true;
  });
}

// Whether a socket in this condition has to be in a table of its protocol.
bool belongs_into_table(const Socket &s) {
  if (s.protocol == "tcp" || s.protocol == "tcp6")
    return s.state == "LISTEN" || s.state == "ESTABLISHED";
  if (s.protocol == "udp" || s.protocol == "udp6")
    return s.local_port != 0;
  if (s.protocol == "raw" || s.protocol == "raw6")
    return s.netlink_port != 0;
  return s.protocol == "packet" || s.protocol == "unix";
}

std::string name_of_endpoint(const Socket &s) {
  std::string text = s.protocol + " socket " + std::to_string(s.inode);
  if (!s.local_address.empty())
    text += " (" + s.local_address + (s.local_port != 0 ? " port " + std::to_string(s.local_port) : "") + ")";
  return text;
}

} // namespace

Result<View<Socket>> read_sockets(const Kernel &kernel) {
  View<Socket> view;
  TRY_ASSIGN(const auto *layout, kernel.layout<SocketLayout>());
  const SocketLayout &f = *layout;
  TRY_ASSIGN(const auto spaces, list_net_namespaces(kernel, view.status));
  TRY_ASSIGN(const auto interfaces, InterfaceNames::create(kernel, spaces, view.status));

  // Open ones first: what is open then and in no table afterwards was taken out, or closed meanwhile, which its state
  // tells.
  SocketSet set(std::min<std::size_t>(socket_limit, kernel.memory().total_size() / 256 + 1024));
  TRY(collect_open_sockets(kernel, f, set, view.status));
  TableWalker tables(kernel, f, spaces, set, view.status);
  tables.walk_all();

  const SocketReader reader(kernel, f, spaces, interfaces);
  std::vector<Socket> unlisted;
  const auto find_unlisted = [&] {
    unlisted.clear();
    for (const auto &found : set.all())
      if (!found.in_table && !found.owners.empty())
        if (auto socket = reader.read(found); socket && belongs_into_table(*socket))
          unlisted.push_back(std::move(*socket));
    return !unlisted.empty() && !set.full();
  };
  if (find_unlisted()) {
    ++view.status.retries;
    tables.walk_all(); // once more: it may have been bound just then
    find_unlisted();
  }
  for (const auto &socket : unlisted)
    view.status.warn(name_of_endpoint(socket) + " is open, but in no table of the kernel");

  view.status.truncated |= set.full();
  view.items.reserve(set.all().size());
  for (auto &found : set.all())
    if (auto socket = reader.read(found)) {
      socket->owners = std::move(found.owners);
      view.items.push_back(std::move(*socket));
    }
  return view;
}

} // namespace lararium::linux_guest
