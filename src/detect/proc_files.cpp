// Files in /proc: what is called when somebody reads them. To hide a process, a socket or a module from a guest's own
// tools it is enough to stand in the way of one.

#include "handler.h"
#include "lararium/os/linux/list.h"
#include "lararium/os/linux/rb_tree.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <optional>
#include <vector>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;
using linux_guest::LayoutResolver;

constexpr std::size_t entry_limit = 1 << 17, namespace_limit = 1 << 16, depth_limit = 16;
constexpr std::uint64_t type_mask = 0170000, folder_type = 0040000;

// Entries that the kernel or a module of its tree makes, whose operations no other module has business with.
constexpr std::array kernel_entries = {
    "buddyinfo",      "cgroups",     "cmdline",       "consoles",     "cpuinfo",       "crypto",
    "devices",        "diskstats",   "execdomains",   "fb",           "filesystems",   "interrupts",
    "iomem",          "ioports",     "kallsyms",      "kcore",        "key-users",     "keys",
    "kmsg",           "kpagecount",  "kpageflags",    "loadavg",      "locks",         "mdstat",
    "meminfo",        "misc",        "modules",       "pagetypeinfo", "partitions",    "schedstat",
    "slabinfo",       "softirqs",    "stat",          "swaps",        "sysrq-trigger", "sys",
    "timer_list",     "uptime",      "version",       "vmallocinfo",  "vmstat",        "zoneinfo",
    "net/arp",        "net/dev",     "net/fib_trie",  "net/icmp",     "net/igmp",      "net/netlink",
    "net/netstat",    "net/packet",  "net/protocols", "net/ptype",    "net/raw",       "net/raw6",
    "net/route",      "net/snmp",    "net/snmp6",     "net/sockstat", "net/sockstat6", "net/tcp",
    "net/tcp6",       "net/udp",     "net/udp6",      "net/udplite",  "net/udplite6",  "net/unix",
    "net/ipv6_route", "net/if_inet6"};

class ProcLook {
public:
  ProcLook(const Scene &scene, Findings &findings)
      : scene_(scene), kernel_(scene.kernel()), findings_(findings), tables_(scene, findings),
        layout_(kernel_.types()) {}

  Result<void> look() {
    const auto root = kernel_.symbol("proc_root");
    if (!root)
      return fail(ErrorCode::not_found, "the kernel has no symbol proc_root");
    TRY(layout_.check());
    TRY_ASSIGN(tree_, linux_guest::RbLayout::resolve(kernel_));
    root_ = *root;
    walk(*root);
    look_at_namespaces();
    return {};
  }

private:
  // Each network namespace has a tree of its own, which hangs in no other.
  void look_at_namespaces() {
    const auto initial = kernel_.symbol("init_net"), head = kernel_.symbol("net_namespace_list");
    const auto list = kernel_.types().field("net", "list"), own = kernel_.types().field("net", "proc_net");
    if (!initial || !head || !list || !own)
      return;
    const auto look_at = [&](Gva net) {
      if (const auto entry = kernel_.read_pointer(net, *own); entry && kernel_.is_kernel_address(*entry))
        walk(*entry);
    };
    look_at(*initial);
    linux_guest::walk_list(kernel_, *head, namespace_limit, [&](Gva link) {
      if (const Gva net = link - list->offset; net != *initial)
        look_at(net);
      return budget_.take();
    });
  }

  void walk(Gva root) {
    std::vector<Gva> open = {root};
    while (!open.empty() && !budget_.is_spent()) {
      const Gva entry = open.back();
      open.pop_back();
      look_at(entry);
      if (const auto children = kernel_.read_pointer(entry, children_))
        linux_guest::walk_rb_tree(kernel_, tree_, *children, entry_limit, [&](Gva node) {
          open.push_back(node - child_.offset);
          return budget_.take();
        });
    }
  }

  void look_at(Gva entry) {
    const auto mode = kernel_.read_field(entry, mode_);
    const auto operations = kernel_.read_pointer(entry, operations_);
    if (!mode || !operations)
      return;
    const bool is_folder = (*mode & type_mask) == folder_type;
    look_at_table(entry, inode_operations_, "inode_operations");
    if (entry_operations_)
      look_at_table(entry, *entry_operations_, "dentry_operations");
    look_at_table(entry, operations_, is_folder || !has_proc_ops_ ? "file_operations" : "proc_ops");
    // One member for two things; which it is, the operations tell.
    const auto is_any_of = [&](const auto &symbols) {
      return std::ranges::any_of(symbols, [&](const auto &symbol) { return symbol && *symbol == *operations; });
    };
    if (is_any_of(sequence_))
      look_at_table(entry, sequence_operations_, "seq_operations");
    else if (is_any_of(single_))
      look_at_function(entry, show_, "the show function");
    if (write_)
      look_at_function(entry, *write_, "the write function");
  }

  void look_at_table(Gva entry, const FieldLocation &member, std::string_view type) {
    const auto table = kernel_.read_pointer(entry, member);
    if (!table || !kernel_.is_kernel_address(*table))
      return;
    if (tables_.is_new(*table))
      tables_.judge(*table, type, "of " + path_of(entry));
    if (lies_well(scene_, *table, false))
      return;
    if (findings_.is_full())
      return findings_.leave_out();
    const std::string path = path_of(entry);
    judge_place(scene_,
                {.at = entry + member.offset,
                 .table = *table,
                 .what = fmt::format("the {} of {} ({:#x})", type, path, entry.value),
                 .foreign_may_own = !is_kernels(path)},
                findings_);
  }

  void look_at_function(Gva entry, const FieldLocation &member, std::string_view what) {
    const Gva at = entry + member.offset;
    const auto function = kernel_.read_pointer(at);
    if (!function || is_lawful(scene_, at, *function, Trust::no_foreign))
      return;
    if (findings_.is_full())
      return findings_.leave_out();
    const std::string path = path_of(entry);
    judge(scene_,
          {.at = at,
           .target = *function,
           .what = fmt::format("{} of {} ({:#x})", what, path, entry.value),
           .trust = is_kernels(path) ? Trust::no_foreign : Trust::any_owner},
          findings_);
  }

  static bool is_kernels(std::string_view path) {
    constexpr std::string_view prefix = "/proc/";
    if (path == "/proc" || path == "/proc/net")
      return true;
    return path.starts_with(prefix) &&
           std::ranges::find(kernel_entries, path.substr(prefix.size())) != kernel_entries.end();
  }

  std::string path_of(Gva entry) const {
    std::string path;
    for (std::size_t depth = 0; depth < depth_limit && entry && entry != root_; ++depth) {
      const auto name = kernel_.read_pointer(entry, name_);
      path.insert(0, "/" + (name ? kernel_.space().read_c_string(*name, 64).value_or("?") : "?"));
      const auto parent = kernel_.read_pointer(entry, parent_);
      if (!parent || *parent == entry)
        break;
      entry = *parent;
    }
    return "/proc" + path;
  }

  using Symbols = std::array<std::optional<Gva>, 4>;

  const Scene &scene_;
  const Kernel &kernel_;
  Findings &findings_;
  OperationTables tables_;
  LayoutResolver layout_;
  linux_guest::RbLayout tree_;
  Gva root_;
  Budget budget_{entry_limit};
  // Until 5.6 (d56c0d45f0e2) files had file_operations too.
  const bool has_proc_ops_ = kernel_.types().field("proc_dir_entry", "proc_ops").has_value();
  const FieldLocation mode_ = layout_.require("proc_dir_entry", "mode"),
                      name_ = layout_.require("proc_dir_entry", "name"),
                      parent_ = layout_.require("proc_dir_entry", "parent"),
                      children_ = layout_.require("proc_dir_entry", "subdir"),
                      child_ = layout_.require("proc_dir_entry", "subdir_node"),
                      inode_operations_ = layout_.require("proc_dir_entry", "proc_iops"),
                      operations_ = layout_.require_any("proc_dir_entry", {"proc_ops", "proc_fops"}),
                      sequence_operations_ = layout_.require("proc_dir_entry", "seq_ops"),
                      show_ = layout_.require("proc_dir_entry", "single_show");
  const std::optional<FieldLocation> write_ = layout_.optional("proc_dir_entry", "write"),
                                     entry_operations_ = layout_.optional("proc_dir_entry", "proc_dops");
  const Symbols sequence_ = {kernel_.symbol("proc_seq_ops"), kernel_.symbol("proc_net_seq_ops"),
                             kernel_.symbol("proc_seq_fops"), kernel_.symbol("proc_net_seq_fops")};
  const Symbols single_ = {kernel_.symbol("proc_single_ops"), kernel_.symbol("proc_net_single_ops"),
                           kernel_.symbol("proc_single_fops"), kernel_.symbol("proc_net_single_fops")};
};

class ProcFiles final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override { return ProcLook(scene, findings).look(); }
};

LARARIUM_CHECK(
    ProcFiles, "proc_files", "T1014 T1564", "operations of the files in /proc",
    "Every entry of /proc, and of each network namespace's /proc/net with the lists of sockets: the kernel's own "
    "tables of operations must lead into the kernel, those of a module into code that has an owner, and no "
    "table may lie in allocated memory. The well-known files must be the kernel's own. What a module from "
    "outside the tree does in files of its own is not judged.")

} // namespace
} // namespace lararium::detect
