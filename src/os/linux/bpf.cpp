#include "bpf.h"

#include "lararium/os/linux/fdtable.h"
#include "lararium/os/linux/paths.h"
#include "lararium/os/linux/tasks.h"
#include "lararium/os/linux/xarray.h"
#include "namespaces_net.h"
#include "sockets.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <map>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>

namespace lararium::linux_guest {
namespace {

constexpr std::size_t object_limit = 1 << 18;   // of each kind
constexpr std::size_t per_program_limit = 1024; // owners, attachments, maps shown of one object
constexpr std::size_t cgroup_limit = 1 << 18;
constexpr std::size_t event_limit = 1 << 18;
constexpr std::size_t dentry_limit = 1 << 18;
constexpr std::size_t super_block_limit = 1 << 18;
constexpr std::size_t depth_limit = 128;
constexpr std::size_t array_limit = 1024; // programs in one array; the kernel's own limit is 64
constexpr int walk_attempts = 4;

std::string lower(std::string_view text) {
  std::string result(text);
  for (char &c : result)
    if (c >= 'A' && c <= 'Z')
      c = static_cast<char>(c - 'A' + 'a');
  return result;
}

// Names of an enumeration's values without their common beginning, in lower case.
class ValueNames {
public:
  ValueNames(const Types &types, std::string_view enumeration, std::string_view prefix) {
    const auto id = types.find(enumeration);
    if (!id)
      return;
    for (const auto &[name, value] : types.enumerators(*id)) {
      if (!name.starts_with(prefix))
        continue; // "__MAX_..."
      const auto deprecated = name.ends_with("_DEPRECATED");
      auto &place = names_[value];
      if (place.empty() || !deprecated)
        place = lower(name.substr(prefix.size()));
    }
  }
  [[nodiscard]] std::string operator[](std::uint64_t value) const {
    const auto found = names_.find(static_cast<std::int64_t>(value));
    return found == names_.end() ? std::to_string(value) : found->second;
  }

private:
  std::map<std::int64_t, std::string> names_;
};

using Field = std::optional<FieldLocation>;

struct BpfLayout {
  // struct bpf_prog and bpf_prog_aux
  FieldLocation type, aux, tag, length, jited_length, name, id, user, load_time;
  Field attach_type, used_maps, used_map_count, stats, aux_stats, stats_count, stats_time, function_name,
      target_program, aux_program, user_id;
  // struct bpf_map
  FieldLocation map_id, map_name, map_type, key_size, value_size, entries, map_flags;
  // struct bpf_link; since 5.8 (a3b80e107894)
  Field link_id, link_type, link_program, link_attach_type;
  // links by type: where the bpf_link lies in them, and what they add
  Field raw_link, raw_event, raw_tracepoint, tracepoint_name, perf_link, perf_file, cgroup_link, cgroup_of_link,
      cgroup_link_type, netns_link, netns_of_link, netns_link_type, xdp_link, xdp_device, iter_link, iter_info,
      iter_registration, iter_target, struct_ops_link, struct_ops_map, kprobe_multi_link, kprobe_multi_count,
      kprobe_multi_addresses, uprobe_multi_link, uprobe_multi_path, uprobe_multi_count, tcx_link, tcx_device,
      tcx_location, netkit_link, netkit_device, netfilter_link, netfilter_hook, netfilter_family, netfilter_priority;
  // files
  FieldLocation file_operations, file_private;
  // perf events and what they trace
  Field event_call, event_program, event_type, event_config, call_list, call_name, call_tracepoint, call_flags,
      call_class, call_programs, class_system, probe_event_call, probe_event_probes, probe_list, kprobe_probe,
      kprobe_symbol, kprobe_handler, uprobe_probe, uprobe_file, uprobe_offset, array_items;
  std::uint64_t array_item_size = 0;
  // control groups
  Field root_cgroup, cgroup_self, css_children, css_sibling, cgroup_programs, cgroup_node, entry_node, entry_program,
      entry_link;
  std::uint64_t cgroup_heads = 0, cgroup_head_size = 8;
  // network
  Field socket_filter, filter_program, reuseport, reuseport_program, device_name, device_xdp, xdp_entity_program,
      generic_xdp, tcx_ingress, tcx_egress, mprog_items, net_programs;
  std::uint64_t xdp_entity_size = 0, mprog_item_size = 0;
  // bpf file systems
  Field super_list, super_type, super_root, super_mounts, type_name, mount_instance, mount_next, mount_vfsmount,
      mount_namespace, dentry_inode, inode_private, inode_operations;
  Field children_list, child_list, children_hlist, child_hlist;

  static Result<BpfLayout> resolve(const Kernel &kernel) {
    LayoutResolver layout(kernel.types());
    BpfLayout f;
    const auto need = [&](std::string_view type, std::string_view path) { return layout.require(type, path); };
    const auto may = [&](std::string_view type, std::string_view path) { return layout.optional(type, path); };
    f.type = need("bpf_prog", "type");
    f.aux = need("bpf_prog", "aux");
    f.tag = need("bpf_prog", "tag");
    f.length = need("bpf_prog", "len");
    f.jited_length = need("bpf_prog", "jited_len");
    f.attach_type = may("bpf_prog", "expected_attach_type");
    f.stats = may("bpf_prog", "stats"); // moved here in 5.12 (700d4796ef59)
    f.aux_stats = may("bpf_prog_aux", "stats");
    f.stats_count = may("bpf_prog_stats", "cnt");
    f.stats_time = may("bpf_prog_stats", "nsecs");
    f.name = need("bpf_prog_aux", "name");
    f.id = need("bpf_prog_aux", "id");
    f.user = need("bpf_prog_aux", "user");
    f.user_id = may("user_struct", "uid");
    f.load_time = need("bpf_prog_aux", "load_time");
    f.used_maps = may("bpf_prog_aux", "used_maps");
    f.used_map_count = may("bpf_prog_aux", "used_map_cnt");
    f.function_name = may("bpf_prog_aux", "attach_func_name");
    f.target_program = layout.optional_any("bpf_prog_aux", {"dst_prog", "linked_prog"}); // 5.10, 3aac1ead5eb6
    f.aux_program = may("bpf_prog_aux", "prog");
    f.map_id = need("bpf_map", "id");
    f.map_name = need("bpf_map", "name");
    f.map_type = need("bpf_map", "map_type");
    f.key_size = need("bpf_map", "key_size");
    f.value_size = need("bpf_map", "value_size");
    f.entries = need("bpf_map", "max_entries");
    f.map_flags = need("bpf_map", "map_flags");
    f.link_id = may("bpf_link", "id");
    f.link_type = may("bpf_link", "type");
    f.link_program = may("bpf_link", "prog");
    f.link_attach_type = may("bpf_link", "attach_type"); // 6.17; before in some of the types below
    f.raw_link = may("bpf_raw_tp_link", "link");
    f.raw_event = may("bpf_raw_tp_link", "btp");
    f.raw_tracepoint = may("bpf_raw_event_map", "tp");
    f.tracepoint_name = may("tracepoint", "name");
    f.perf_link = may("bpf_perf_link", "link");
    f.perf_file = may("bpf_perf_link", "perf_file");
    f.cgroup_link = may("bpf_cgroup_link", "link");
    f.cgroup_of_link = may("bpf_cgroup_link", "cgroup");
    f.cgroup_link_type = may("bpf_cgroup_link", "type");
    f.netns_link = may("bpf_netns_link", "link");
    f.netns_of_link = may("bpf_netns_link", "net");
    f.netns_link_type = may("bpf_netns_link", "type");
    f.xdp_link = may("bpf_xdp_link", "link");
    f.xdp_device = may("bpf_xdp_link", "dev");
    f.iter_link = may("bpf_iter_link", "link");
    f.iter_info = may("bpf_iter_link", "tinfo");
    f.iter_registration = may("bpf_iter_target_info", "reg_info");
    f.iter_target = may("bpf_iter_reg", "target");
    f.struct_ops_link = may("bpf_struct_ops_link", "link");
    f.struct_ops_map = may("bpf_struct_ops_link", "map");
    f.kprobe_multi_link = may("bpf_kprobe_multi_link", "link");
    f.kprobe_multi_count = may("bpf_kprobe_multi_link", "cnt");
    f.kprobe_multi_addresses = may("bpf_kprobe_multi_link", "addrs");
    f.uprobe_multi_link = may("bpf_uprobe_multi_link", "link");
    f.uprobe_multi_path = may("bpf_uprobe_multi_link", "path");
    f.uprobe_multi_count = may("bpf_uprobe_multi_link", "cnt");
    f.tcx_link = may("tcx_link", "link");
    f.tcx_device = may("tcx_link", "dev");
    f.tcx_location = may("tcx_link", "location");
    f.netkit_link = may("netkit_link", "link");
    f.netkit_device = may("netkit_link", "dev");
    f.netfilter_link = may("bpf_nf_link", "link");
    f.netfilter_hook = may("bpf_nf_link", "hook_ops.hooknum");
    f.netfilter_family = may("bpf_nf_link", "hook_ops.pf");
    f.netfilter_priority = may("bpf_nf_link", "hook_ops.priority");
    f.file_operations = need("file", "f_op");
    f.file_private = need("file", "private_data");

    f.event_call = may("perf_event", "tp_event");
    f.event_program = may("perf_event", "prog");
    f.event_type = may("perf_event", "attr.type");
    f.event_config = may("perf_event", "attr.config");
    f.call_list = may("trace_event_call", "list");
    f.call_name = may("trace_event_call", "name");
    f.call_tracepoint = may("trace_event_call", "tp");
    f.call_flags = may("trace_event_call", "flags");
    f.call_class = may("trace_event_call", "class");
    f.call_programs = may("trace_event_call", "prog_array");
    f.class_system = may("trace_event_class", "system");
    f.probe_event_call = may("trace_probe_event", "call"); // 5.4, 60d53e2c3b75
    f.probe_event_probes = may("trace_probe_event", "probes");
    f.probe_list = may("trace_probe", "list");
    f.kprobe_probe = may("trace_kprobe", "tp");
    f.kprobe_symbol = may("trace_kprobe", "symbol");
    f.kprobe_handler = may("trace_kprobe", "rp.handler");
    f.uprobe_probe = may("trace_uprobe", "tp");
    f.uprobe_file = may("trace_uprobe", "filename");
    f.uprobe_offset = may("trace_uprobe", "offset");
    f.array_items = may("bpf_prog_array", "items");
    f.array_item_size = kernel.types().size_of("bpf_prog_array_item").value_or(0);

    f.root_cgroup = may("cgroup_root", "cgrp");
    f.cgroup_self = may("cgroup", "self");
    f.css_children = may("cgroup_subsys_state", "children");
    f.css_sibling = may("cgroup_subsys_state", "sibling");
    f.cgroup_programs = may("cgroup", "bpf.progs");
    f.cgroup_node = may("cgroup", "kn");
    f.entry_node = may("bpf_prog_list", "node");
    f.entry_program = may("bpf_prog_list", "prog");
    f.entry_link = may("bpf_prog_list", "link");
    // Lists before 6.0, chains since (00442143a2ab).
    if (f.entry_node && f.cgroup_programs) {
      f.cgroup_head_size = may("bpf_prog_list", "node.pprev") ? 8 : 16;
      f.cgroup_heads = f.cgroup_programs->size / f.cgroup_head_size;
    }

    f.socket_filter = may("sock", "sk_filter");
    f.filter_program = may("sk_filter", "prog");
    f.reuseport = may("sock", "sk_reuseport_cb");
    f.reuseport_program = may("sock_reuseport", "prog");
    f.device_name = may("net_device", "name");
    f.device_xdp = may("net_device", "xdp_state");
    f.xdp_entity_program = may("bpf_xdp_entity", "prog");
    f.xdp_entity_size = kernel.types().size_of("bpf_xdp_entity").value_or(0);
    f.generic_xdp = may("net_device", "xdp_prog");
    f.tcx_ingress = may("net_device", "tcx_ingress"); // 6.6, e420bed02507
    f.tcx_egress = may("net_device", "tcx_egress");
    f.mprog_items = may("bpf_mprog_entry", "fp_items");
    f.mprog_item_size = kernel.types().size_of("bpf_mprog_fp").value_or(0);
    f.net_programs = may("net", "bpf.progs");

    f.super_list = may("super_block", "s_list");
    f.super_type = may("super_block", "s_type");
    f.super_root = may("super_block", "s_root");
    f.super_mounts = may("super_block", "s_mounts");
    f.type_name = may("file_system_type", "name");
    f.mount_instance = may("mount", "mnt_instance");
    f.mount_next = may("mount", "mnt_next_for_sb"); // 6.18, 1f6df5847454
    f.mount_vfsmount = may("mount", "mnt");
    f.mount_namespace = may("mount", "mnt_ns");
    f.dentry_inode = may("dentry", "d_inode");
    f.inode_private = may("inode", "i_private");
    f.inode_operations = may("inode", "i_op");
    f.children_list = may("dentry", "d_subdirs");
    f.child_list = may("dentry", "d_child");
    f.children_hlist = may("dentry", "d_children"); // 6.8, da549bdd15c2
    f.child_hlist = may("dentry", "d_sib");
    TRY(layout.check());
    return f;
  }
};

class BpfReader {
public:
  BpfReader(const Kernel &kernel, const BpfLayout &f, XarrayReader xarrays, PathResolver paths)
      : kernel_(kernel), f_(f), xarrays_(xarrays), paths_(std::move(paths)),
        program_types_(kernel.types(), "bpf_prog_type", "BPF_PROG_TYPE_"),
        map_types_(kernel.types(), "bpf_map_type", "BPF_MAP_TYPE_"),
        link_types_(kernel.types(), "bpf_link_type", "BPF_LINK_TYPE_"),
        attach_types_(kernel.types(), "bpf_attach_type", "BPF_"),
        cgroup_attach_types_(kernel.types(), "cgroup_bpf_attach_type", "CGROUP_"),
        tracepoint_flag_(flag("TRACE_EVENT_FL_TRACEPOINT", 1 << 4)),
        kprobe_flag_(flag("TRACE_EVENT_FL_KPROBE", 1 << 5)), uprobe_flag_(flag("TRACE_EVENT_FL_UPROBE", 1 << 6)),
        event_operations_(kernel.symbol("perf_fops")), dummy_program_(kernel.symbol("dummy_bpf_prog")) {}

  Result<BpfView> read() {
    read_tables();
    TRY(read_open_files());
    read_link_targets();
    read_trace_events();
    read_cgroups();
    TRY(read_network());
    read_pins();
    return finish();
  }

private:
  [[nodiscard]] std::uint64_t number(Gva object, const FieldLocation &field) const {
    return kernel_.read_field(object, field).value_or(0);
  }
  [[nodiscard]] std::uint64_t number(Gva object, const Field &field) const {
    return field ? number(object, *field) : 0;
  }
  // A pointer into the kernel, else null.
  [[nodiscard]] Gva pointer(Gva address) const {
    const auto value = kernel_.read_pointer(address);
    return value && kernel_.is_kernel_address(*value) ? *value : Gva{};
  }
  [[nodiscard]] Gva pointer(Gva object, const FieldLocation &field) const { return pointer(object + field.offset); }
  [[nodiscard]] Gva pointer(Gva object, const Field &field) const { return field ? pointer(object, *field) : Gva{}; }
  [[nodiscard]] std::string text(Gva address) const {
    return address ? kernel_.space().read_c_string(address, 256).value_or("") : std::string();
  }
  [[nodiscard]] std::uint64_t flag(std::string_view enumerator, std::uint64_t otherwise) const {
    const auto value = kernel_.types().enumerator(enumerator);
    return value ? static_cast<std::uint64_t>(*value) : otherwise;
  }

  // --- Objects

  struct Known {
    std::size_t index = 0; // in the view
    bool in_table = false;
  };
  using Index = std::unordered_map<Gva, Known>;

  // The place of an object in the view; it is added if it is new. Null when there are too many.
  template <class Item> Item *place(Index &index, std::vector<Item> &items, Gva object, bool in_table) {
    const auto [found, fresh] = index.try_emplace(object, Known{items.size(), false});
    found->second.in_table |= in_table;
    if (!fresh)
      return &items[found->second.index];
    if (items.size() >= object_limit) {
      index.erase(found);
      view_.status.truncated = true;
      return nullptr;
    }
    return &items.emplace_back();
  }

  BpfProgram *program(Gva address, bool in_table = false) {
    const bool fresh = !programs_.contains(address);
    BpfProgram *p = place(programs_, view_.programs, address, in_table);
    if (p == nullptr || !fresh)
      return p;
    p->program = address;
    p->type = program_types_[number(address, f_.type)];
    p->instructions = static_cast<std::uint32_t>(number(address, f_.length));
    p->jited_bytes = static_cast<std::uint32_t>(number(address, f_.jited_length));
    p->tag = tag_of(address);
    const Gva aux = pointer(address, f_.aux);
    if (!aux || !kernel_.space().read<std::uint8_t>(aux)) {
      contradiction(fmt::format("the BPF program at {:#x} leads out of readable kernel memory", address.value));
      return p;
    }
    p->id = static_cast<std::uint32_t>(number(aux, f_.id));
    p->name = read_text(kernel_, aux + f_.name.offset, f_.name.size);
    p->load_time_ns = number(aux, f_.load_time);
    if (const Gva user = pointer(aux, f_.user))
      p->uid = static_cast<std::uint32_t>(number(user, f_.user_id));
    if (const Gva maps = pointer(aux, f_.used_maps)) {
      const std::uint64_t claimed = number(aux, f_.used_map_count);
      const auto count = std::min<std::uint64_t>(claimed, per_program_limit);
      if (claimed > per_program_limit)
        contradiction(fmt::format("BPF program {} claims to use {} maps", p->id, claimed));
      for (std::uint64_t i = 0; i < count; ++i)
        if (const Gva used = pointer(maps + 8 * i))
          p->map_ids.push_back(static_cast<std::uint32_t>(number(used, f_.map_id)));
    }
    read_stats(*p, aux);
    return p;
  }

  void contradiction(std::string sentence) {
    view_.status.raced = true;
    view_.status.warn(std::move(sentence));
  }

  [[nodiscard]] std::string tag_of(Gva address) const {
    std::array<std::uint8_t, 8> bytes{};
    if (!kernel_.space().read(address + f_.tag.offset, std::as_writable_bytes(std::span(bytes))))
      return {};
    constexpr std::string_view digits = "0123456789abcdef";
    std::string result;
    for (const auto byte : bytes) {
      result += digits[byte >> 4];
      result += digits[byte & 15];
    }
    return result;
  }

  void read_stats(BpfProgram &p, Gva aux) const {
    const Field &member = f_.stats ? f_.stats : f_.aux_stats;
    if (!member || !f_.stats_count || !f_.stats_time)
      return;
    const auto stats = kernel_.read_pointer(f_.stats ? p.program : aux, *member);
    if (!stats || !*stats)
      return;
    for (std::uint32_t cpu = 0; cpu < kernel_.cpu_count(); ++cpu)
      if (const auto own = kernel_.per_cpu_pointer(*stats, cpu)) {
        p.run_count += number(*own, *f_.stats_count);
        p.run_time_ns += number(*own, *f_.stats_time);
      }
  }

  BpfMap *map(Gva address, bool in_table = false) {
    const bool fresh = !maps_.contains(address);
    BpfMap *m = place(maps_, view_.maps, address, in_table);
    if (m == nullptr || !fresh)
      return m;
    m->map = address;
    m->id = static_cast<std::uint32_t>(number(address, f_.map_id));
    m->type = map_types_[number(address, f_.map_type)];
    m->name = read_text(kernel_, address + f_.map_name.offset, f_.map_name.size);
    m->key_size = static_cast<std::uint32_t>(number(address, f_.key_size));
    m->value_size = static_cast<std::uint32_t>(number(address, f_.value_size));
    m->max_entries = static_cast<std::uint32_t>(number(address, f_.entries));
    m->flags = static_cast<std::uint32_t>(number(address, f_.map_flags));
    return m;
  }

  BpfLink *link(Gva address, bool in_table = false) {
    const bool fresh = !links_.contains(address);
    BpfLink *l = place(links_, view_.links, address, in_table);
    if (l == nullptr || !fresh)
      return l;
    l->link = address;
    l->id = static_cast<std::uint32_t>(number(address, f_.link_id));
    l->type = link_types_[number(address, f_.link_type)];
    return l;
  }

  void read_tables() {
    const auto each = [&](std::string_view symbol, auto &&visit) {
      const auto idr = kernel_.symbol(symbol);
      if (!idr)
        return;
      WalkResult walk;
      for (int attempt = 0; attempt < walk_attempts; ++attempt) {
        walk = xarrays_.for_each_of_idr(*idr, object_limit, [&](const XarrayEntry &entry) {
          if (!entry.is_value && kernel_.is_kernel_address(entry.pointer()))
            visit(entry.pointer());
          return true;
        });
        if (walk.consistent())
          return;
        ++view_.status.retries;
      }
      view_.status.raced = true;
      view_.status.warn("the table " + std::string(symbol) + " is not consistent");
    };
    each("prog_idr", [&](Gva object) { program(object, true); });
    each("map_idr", [&](Gva object) { map(object, true); });
    if (f_.link_id && f_.link_type && f_.link_program)
      each("link_idr", [&](Gva object) { link(object, true); });
  }

  // --- Who holds what

  Result<void> read_open_files() {
    const auto program_operations = kernel_.symbol("bpf_prog_fops"), map_operations = kernel_.symbol("bpf_map_fops"),
               link_operations = kernel_.symbol("bpf_link_fops"),
               polled_link_operations = kernel_.symbol("bpf_link_fops_poll"); // 6.9, 1adddc97aa44
    std::size_t owners = 0;
    constexpr std::size_t owner_limit = 1 << 20;
    return for_each_open_file(kernel_, view_.status, [&](const DescriptorHolder &holder, const FileDescriptor &fd) {
      const Gva operations = pointer(fd.file, f_.file_operations);
      if (!operations)
        return true;
      const bool is_program = operations == program_operations, is_map = operations == map_operations,
                 is_link = operations == link_operations || operations == polled_link_operations;
      if (!is_program && !is_map && !is_link && operations != event_operations_)
        return true;
      const Gva object = pointer(fd.file, f_.file_private);
      if (!object)
        return true;
      std::vector<SocketOwner> *list = nullptr;
      if (is_program) {
        if (auto *p = program(object))
          list = &p->owners;
      } else if (is_map) {
        if (auto *m = map(object))
          list = &m->owners;
      } else if (is_link) {
        if (auto *l = f_.link_id && f_.link_type && f_.link_program ? link(object) : nullptr)
          list = &l->owners;
      } else {
        read_event(object);
      }
      if (list != nullptr && list->size() < per_program_limit) {
        list->push_back({holder.id, fd.number, task_comm(kernel_, holder.task)});
        ++owners;
      }
      view_.status.truncated |= owners >= owner_limit;
      return owners < owner_limit;
    });
  }

  // --- Attachments

  // Only programs with an id are known to user space; filters of the classic kind and the kernel's own have none.
  void attach(Gva address, const std::string &where) {
    if (!address || address == dummy_program_)
      return;
    if (!programs_.contains(address)) {
      const Gva aux = pointer(address, f_.aux);
      if (!aux || pointer(aux, f_.aux_program) != address || number(aux, f_.id) == 0)
        return;
    }
    if (BpfProgram *p = program(address); p != nullptr && p->attached_to.size() < per_program_limit &&
                                          std::ranges::find(p->attached_to, where) == p->attached_to.end())
      p->attached_to.push_back(where);
  }

  // struct bpf_prog_array: ends with a null program.
  void attach_array(Gva array, const std::string &where) {
    if (!array || !f_.array_items || f_.array_item_size < 8)
      return;
    for (std::size_t i = 0; i < array_limit; ++i) {
      const Gva address = pointer(array + f_.array_items->offset + i * f_.array_item_size);
      if (!address)
        return;
      attach(address, where);
    }
  }

  [[nodiscard]] std::string device_name(Gva device) const {
    return device && f_.device_name ? read_text(kernel_, device + f_.device_name->offset, f_.device_name->size)
                                    : std::string("?");
  }

  [[nodiscard]] std::string cgroup_path(Gva cgroup) const {
    const Gva node = pointer(cgroup, f_.cgroup_node);
    return node ? paths_.kernfs_path(node).value_or("?") : std::string("?");
  }

  [[nodiscard]] std::string attach_type_name(std::uint64_t type) const {
    std::string name = attach_types_[type];
    for (const std::string_view prefix : {"cgroup_", "trace_"})
      if (name.starts_with(prefix))
        name.erase(0, prefix.size());
    return name;
  }

  // The kernel's symbol at an address; modules' are left as numbers.
  [[nodiscard]] std::string function_at(Gva address) const {
    const auto &location = kernel_.location();
    if (address >= location.base && address - location.base < location.size)
      if (const auto symbol = kernel_.profile().nearest(address - location.base))
        return std::string(symbol->name);
    constexpr std::string_view digits = "0123456789abcdef";
    std::string result = "0x";
    for (int shift = 60; shift >= 0; shift -= 4)
      result += digits[address.value >> shift & 15];
    return result;
  }

  // What an event of the tracing subsystem stands for: "tracepoint sched:sched_switch", "kprobe do_exit".
  [[nodiscard]] std::string describe_call(Gva call) const {
    const std::uint64_t flags = number(call, f_.call_flags);
    const Gva event_class = pointer(call, f_.call_class);
    const std::string system = event_class ? text(pointer(event_class, f_.class_system)) : std::string();
    if ((flags & tracepoint_flag_) != 0) {
      const Gva tracepoint = pointer(call, f_.call_tracepoint);
      return "tracepoint " + system + ":" + (tracepoint ? text(pointer(tracepoint, f_.tracepoint_name)) : "?");
    }
    const std::string name = text(pointer(call, f_.call_name));
    const Gva probe = first_probe(call);
    if ((flags & kprobe_flag_) != 0) {
      std::string symbol;
      bool at_return = false;
      if (probe && f_.kprobe_probe && f_.kprobe_symbol) {
        const Gva kprobe = probe - f_.kprobe_probe->offset;
        symbol = text(pointer(kprobe, *f_.kprobe_symbol));
        at_return = static_cast<bool>(pointer(kprobe, f_.kprobe_handler));
      }
      return std::string(at_return ? "kretprobe " : "kprobe ") + (symbol.empty() ? name : symbol);
    }
    if ((flags & uprobe_flag_) != 0 && probe && f_.uprobe_probe && f_.uprobe_file) {
      const Gva uprobe = probe - f_.uprobe_probe->offset;
      return "uprobe " + text(pointer(uprobe, *f_.uprobe_file)) + ":" +
             std::to_string(number(uprobe, f_.uprobe_offset));
    }
    return "event " + system + ":" + name;
  }

  // The struct trace_probe of a dynamic event.
  [[nodiscard]] Gva first_probe(Gva call) const {
    if (!f_.probe_event_call || !f_.probe_event_probes || !f_.probe_list)
      return {};
    const Gva head = call - f_.probe_event_call->offset + f_.probe_event_probes->offset;
    const Gva node = pointer(head);
    return node && node != head ? node - f_.probe_list->offset : Gva{};
  }

  // An open or linked struct perf_event.
  void read_event(Gva event) {
    const Gva call = pointer(event, f_.event_call);
    if (call)
      attach_array(pointer(call, f_.call_programs), describe_call(call));
    if (const Gva own = pointer(event, f_.event_program))
      attach(own, describe_event(event, call));
  }

  [[nodiscard]] std::string describe_event(Gva event, Gva call) const {
    if (call)
      return describe_call(call);
    constexpr std::array<std::string_view, 6> types{"hardware", "software", "tracepoint", "cache", "raw", "breakpoint"};
    const auto type = number(event, f_.event_type), config = number(event, f_.event_config);
    return "perf_event " + (type < types.size() ? std::string(types[type]) : std::to_string(type)) + ":" +
           std::to_string(config);
  }

  void read_link_targets() {
    for (std::size_t i = 0; i < view_.links.size(); ++i) {
      const Gva address = view_.links[i].link;
      const Gva attached = pointer(address, *f_.link_program);
      std::string target = describe_link(address, view_.links[i].type, attached);
      if (attached) {
        if (const Gva aux = pointer(attached, f_.aux))
          view_.links[i].program_id = static_cast<std::uint32_t>(number(aux, f_.id));
        attach(attached, target.empty() ? view_.links[i].type + " link" : target);
      }
      view_.links[i].target = std::move(target);
    }
  }

  [[nodiscard]] std::string describe_link(Gva link, const std::string &type, Gva attached) const {
    const auto outer = [&](const Field &member) { return member ? link - member->offset : Gva{}; };
    const auto attach_type = [&](Gva object, const Field &own) {
      return attach_type_name(f_.link_attach_type ? number(link, *f_.link_attach_type) : number(object, own));
    };
    if (type == "raw_tracepoint") {
      const Gva event = f_.raw_link ? pointer(outer(f_.raw_link), f_.raw_event) : Gva{};
      const Gva tracepoint = event ? pointer(event, f_.raw_tracepoint) : Gva{};
      return "raw_tracepoint " + (tracepoint ? text(pointer(tracepoint, f_.tracepoint_name)) : std::string("?"));
    }
    if (type == "tracing")
      return describe_tracing(attached);
    if (type == "perf_event" && f_.perf_link) {
      const Gva file = pointer(outer(f_.perf_link), f_.perf_file);
      const Gva event = file ? pointer(file, f_.file_private) : Gva{};
      return event ? describe_event(event, pointer(event, f_.event_call)) : std::string();
    }
    if (type == "cgroup" && f_.cgroup_link) {
      const Gva own = outer(f_.cgroup_link);
      const Gva cgroup = pointer(own, f_.cgroup_of_link);
      return cgroup ? "cgroup " + cgroup_path(cgroup) + " " + attach_type(own, f_.cgroup_link_type)
                    : std::string("cgroup (removed)");
    }
    if (type == "netns" && f_.netns_link) {
      const Gva own = outer(f_.netns_link);
      const Gva net = pointer(own, f_.netns_of_link);
      const auto inum = kernel_.types().field("net", "ns.inum");
      return "netns " + (net && inum ? std::to_string(number(net, *inum)) : std::string("(removed)")) + " " +
             attach_type(own, f_.netns_link_type);
    }
    if (type == "xdp" && f_.xdp_link) {
      const Gva device = pointer(outer(f_.xdp_link), f_.xdp_device);
      return device ? "xdp " + device_name(device) : std::string("xdp (removed)");
    }
    if (type == "iter" && f_.iter_link) {
      const Gva info = pointer(outer(f_.iter_link), f_.iter_info);
      const Gva registration = info ? pointer(info, f_.iter_registration) : Gva{};
      return "iter " + (registration ? text(pointer(registration, f_.iter_target)) : std::string("?"));
    }
    if (type == "struct_ops" && f_.struct_ops_link) {
      const Gva map = pointer(outer(f_.struct_ops_link), f_.struct_ops_map);
      return map ? "struct_ops " + read_text(kernel_, map + f_.map_name.offset, f_.map_name.size) : std::string();
    }
    if (type == "kprobe_multi" && f_.kprobe_multi_link) {
      const Gva own = outer(f_.kprobe_multi_link);
      const auto count = number(own, f_.kprobe_multi_count);
      const Gva addresses = pointer(own, f_.kprobe_multi_addresses);
      std::string names;
      constexpr std::uint64_t shown = 8;
      for (std::uint64_t i = 0; addresses && i < std::min(count, shown); ++i)
        names += (i == 0 ? " " : ", ") + function_at(pointer(addresses + 8 * i));
      return "kprobes" + names + (count > shown ? " and " + std::to_string(count - shown) + " more" : std::string());
    }
    if (type == "uprobe_multi" && f_.uprobe_multi_link && f_.uprobe_multi_path) {
      const Gva own = outer(f_.uprobe_multi_link);
      const auto path = paths_.resolve(own + f_.uprobe_multi_path->offset);
      return "uprobes " + (path ? path->text : std::string("?")) + " (" +
             std::to_string(number(own, f_.uprobe_multi_count)) + ")";
    }
    if (type == "tcx" && f_.tcx_link) {
      const Gva own = outer(f_.tcx_link);
      const Gva device = pointer(own, f_.tcx_device);
      return device ? "tcx " + device_name(device) + " " + attach_type(own, f_.tcx_location)
                    : std::string("tcx (removed)");
    }
    if (type == "netkit" && f_.netkit_link) {
      const Gva device = pointer(outer(f_.netkit_link), f_.netkit_device);
      return device ? "netkit " + device_name(device) : std::string("netkit (removed)");
    }
    if (type == "netfilter" && f_.netfilter_link) {
      const Gva own = outer(f_.netfilter_link);
      const auto priority = static_cast<std::int32_t>(number(own, f_.netfilter_priority));
      return "netfilter family " + std::to_string(number(own, f_.netfilter_family)) + " hook " +
             std::to_string(number(own, f_.netfilter_hook)) + " priority " + std::to_string(priority);
    }
    return {};
  }

  // Programs that trampolines call know themselves what they are attached to.
  [[nodiscard]] std::string describe_tracing(Gva attached) const {
    const Gva aux = attached ? pointer(attached, f_.aux) : Gva{};
    if (!aux)
      return {};
    std::string function = text(pointer(aux, f_.function_name));
    std::string kind = attach_type_name(number(attached, f_.attach_type));
    const std::string type = program_types_[number(attached, f_.type)];
    if (type == "ext")
      kind = "freplace";
    else if (type == "lsm" && function.starts_with("bpf_lsm_"))
      function.erase(0, 8);
    if (const Gva target = pointer(aux, f_.target_program))
      if (const Gva target_aux = pointer(target, f_.aux))
        return kind + " " + function + " of program " + std::to_string(number(target_aux, f_.id));
    return kind + " " + function;
  }

  // The events that the whole system can see; those of single perf events hang on open descriptors.
  void read_trace_events() {
    const auto head = kernel_.symbol("ftrace_events");
    if (!head || !f_.call_list || !f_.call_programs)
      return;
    const auto walk = walk_list(kernel_, *head, event_limit, [&](Gva node) {
      const Gva call = node - f_.call_list->offset;
      if (const Gva array = pointer(call, *f_.call_programs))
        attach_array(array, describe_call(call));
      return true;
    });
    if (!walk.consistent()) {
      view_.status.raced = true;
      view_.status.warn("the list of trace events cannot be walked to its end");
    }
  }

  void read_cgroups() {
    const auto root = kernel_.symbol("cgrp_dfl_root");
    if (!root || !f_.root_cgroup || !f_.cgroup_self || !f_.css_children || !f_.css_sibling || !f_.cgroup_programs ||
        !f_.entry_node || !f_.entry_program || f_.cgroup_heads > 256)
      return;
    std::vector<Gva> open{*root + f_.root_cgroup->offset};
    std::unordered_set<std::uint64_t> seen;
    while (!open.empty()) {
      const Gva cgroup = open.back();
      open.pop_back();
      if (!seen.insert(cgroup.value).second)
        continue;
      if (seen.size() > cgroup_limit) {
        view_.status.truncated = true;
        view_.status.warn("there are more control groups than can be");
        return;
      }
      for (std::uint64_t i = 0; i < f_.cgroup_heads; ++i)
        read_cgroup_programs(cgroup, i);
      walk_list(kernel_, cgroup + f_.cgroup_self->offset + f_.css_children->offset, cgroup_limit, [&](Gva sibling) {
        open.push_back(sibling - f_.css_sibling->offset - f_.cgroup_self->offset);
        return open.size() < cgroup_limit;
      });
    }
  }

  void read_cgroup_programs(Gva cgroup, std::uint64_t kind) {
    const Gva head = cgroup + f_.cgroup_programs->offset + kind * f_.cgroup_head_size;
    const auto visit = [&](Gva node) {
      const Gva entry = node - f_.entry_node->offset;
      // What came through a link is told by the link.
      if (!pointer(entry, f_.entry_link))
        attach(pointer(entry, *f_.entry_program), "cgroup " + cgroup_path(cgroup) + " " + cgroup_kind_name(kind));
      return true;
    };
    if (f_.cgroup_head_size == 16) {
      // Not initialised in a kernel that has no BPF for control groups.
      if (pointer(head))
        walk_list(kernel_, head, array_limit, visit);
    } else {
      walk_chain(kernel_, pointer(head), 0, array_limit, visit);
    }
  }

  [[nodiscard]] std::string cgroup_kind_name(std::uint64_t kind) const {
    if (kernel_.types().find("cgroup_bpf_attach_type")) // 5.15, 6fc88c354f3a
      return cgroup_attach_types_[kind];
    return attach_type_name(kind);
  }

  Result<void> read_network() {
    if (view_.programs.empty())
      return {};
    TRY_ASSIGN(const auto spaces, list_net_namespaces(kernel_, view_.status));
    NetDeviceBudget budget(kernel_);
    for (const auto &space : spaces) {
      TRY(for_each_net_device(kernel_, space, budget, view_.status, [&](Gva device) {
        read_device(device);
        return true;
      }));
      if (f_.net_programs)
        for (std::uint64_t i = 0; i < std::min<std::uint64_t>(f_.net_programs->size / 8, 16); ++i)
          attach(pointer(space.net + f_.net_programs->offset + 8 * i), "netns " + std::to_string(space.inum));
    }
    if (!f_.socket_filter || !f_.filter_program)
      return {};
    TRY_ASSIGN(const auto sockets, read_sockets(kernel_));
    for (const auto &socket : sockets.items) {
      if (socket.inode == 0 && socket.owners.empty())
        continue; // perhaps no whole struct sock: waiting to be forgotten, or a request
      const std::string what = "socket " + socket.protocol + " inode " + std::to_string(socket.inode);
      if (const Gva filter = pointer(socket.socket, *f_.socket_filter))
        attach(pointer(filter, *f_.filter_program), what);
      if (const Gva group = pointer(socket.socket, f_.reuseport))
        attach(pointer(group, f_.reuseport_program), what + " (reuseport)");
    }
    return {};
  }

  void read_device(Gva device) {
    if (f_.device_xdp && f_.xdp_entity_program && f_.xdp_entity_size != 0)
      for (std::uint64_t at = 0; at + f_.xdp_entity_size <= f_.device_xdp->size; at += f_.xdp_entity_size)
        if (const Gva own = pointer(device + f_.device_xdp->offset + at, *f_.xdp_entity_program))
          attach(own, "xdp " + device_name(device));
    if (const Gva own = pointer(device, f_.generic_xdp))
      attach(own, "xdp " + device_name(device));
    for (const auto &[member, name] : {std::pair(f_.tcx_ingress, "ingress"), std::pair(f_.tcx_egress, "egress")})
      if (const Gva entry = pointer(device, member); entry && f_.mprog_items && f_.mprog_item_size >= 8)
        for (std::uint64_t at = 0; at + f_.mprog_item_size <= f_.mprog_items->size; at += f_.mprog_item_size) {
          const Gva own = pointer(entry + f_.mprog_items->offset + at);
          if (!own)
            break;
          attach(own, "tcx " + device_name(device) + " tcx_" + name);
        }
  }

  // --- Pins: files of a bpf file system whose inodes hold an object

  void read_pins() {
    const auto head = kernel_.symbol("super_blocks");
    const auto program_inode = kernel_.symbol("bpf_prog_iops"), link_inode = kernel_.symbol("bpf_link_iops");
    if (!head || !program_inode || !f_.super_list || !f_.super_type || !f_.super_root || !f_.type_name ||
        !f_.dentry_inode || !f_.inode_private || !f_.inode_operations)
      return;
    std::size_t budget = dentry_limit;
    const auto walk = walk_list(kernel_, *head, super_block_limit, [&](Gva node) {
      const Gva super = node - f_.super_list->offset;
      const Gva type = pointer(super, *f_.super_type);
      if (type && text(pointer(type, *f_.type_name)) == "bpf")
        if (const Gva root = pointer(super, *f_.super_root))
          read_pins_below(root, mount_of(super), *program_inode, link_inode, budget);
      return budget != 0;
    });
    if (!walk.consistent() || budget == 0) {
      view_.status.raced |= budget != 0;
      view_.status.truncated |= budget == 0;
      view_.status.warn("not all bpf file systems could be walked");
    }
  }

  // The struct vfsmount of a place where the file system is mounted; null when nowhere.
  [[nodiscard]] Gva mount_of(Gva super) const {
    if (!f_.super_mounts || !f_.mount_vfsmount || !f_.mount_namespace)
      return {};
    Gva found;
    const auto visit = [&](Gva mount) {
      if (!pointer(mount, *f_.mount_namespace))
        return true; // the kernel's own
      found = mount + f_.mount_vfsmount->offset;
      return false;
    };
    if (f_.mount_next)
      walk_chain(kernel_, pointer(super, *f_.super_mounts), f_.mount_next->offset, dentry_limit, visit);
    else if (f_.mount_instance)
      walk_list(kernel_, super + f_.super_mounts->offset, dentry_limit,
                [&](Gva link) { return visit(link - f_.mount_instance->offset); });
    return found;
  }

  void read_pins_below(Gva root, Gva vfsmount, Gva program_inode, std::optional<Gva> link_inode, std::size_t &budget) {
    std::vector<std::pair<Gva, std::size_t>> open{{root, 0}};
    while (!open.empty() && budget != 0) {
      const auto [dentry, depth] = open.back();
      open.pop_back();
      --budget;
      if (const Gva inode = pointer(dentry, *f_.dentry_inode)) {
        const Gva operations = pointer(inode, *f_.inode_operations), pinned = pointer(inode, *f_.inode_private);
        std::vector<std::string> *paths = nullptr;
        if (pinned && operations == program_inode) {
          if (BpfProgram *p = program(pinned))
            paths = &p->pinned;
        } else if (pinned && operations == link_inode && f_.link_id && f_.link_type && f_.link_program) {
          if (BpfLink *l = link(pinned))
            paths = &l->pinned;
        }
        if (paths != nullptr && paths->size() < per_program_limit) {
          const auto path = vfsmount ? paths_.resolve(vfsmount, dentry) : paths_.within_filesystem(dentry);
          paths->push_back(path ? path->text : paths_.name_of(dentry));
        }
      }
      if (depth >= depth_limit)
        continue;
      const auto visit = [&](Gva child) {
        open.emplace_back(child, depth + 1);
        return open.size() < budget;
      };
      if (f_.children_hlist && f_.child_hlist)
        walk_chain(kernel_, pointer(dentry, *f_.children_hlist), 0, budget,
                   [&](Gva link) { return visit(link - f_.child_hlist->offset); });
      else if (f_.children_list && f_.child_list)
        walk_list(kernel_, dentry + f_.children_list->offset, budget,
                  [&](Gva link) { return visit(link - f_.child_list->offset); });
    }
  }

  // --- The whole

  // Objects that are in use and not in the table of their kind: once more, as one may have been made just then.
  void warn_of_hidden() {
    const auto hidden = [](const Index &index) {
      return std::ranges::any_of(index, [](const auto &entry) { return !entry.second.in_table; });
    };
    if (hidden(programs_) || hidden(maps_) || hidden(links_))
      read_tables();
    const auto warn = [&](const Index &index, auto &items, const std::string &what) {
      for (const auto &[address, known] : index) {
        items[known.index].listed = known.in_table;
        if (!known.in_table)
          view_.status.warn("BPF " + what + " " + std::to_string(items[known.index].id) +
                            " is in use, but not in the kernel's table of them");
      }
    };
    warn(programs_, view_.programs, "program");
    warn(maps_, view_.maps, "map");
    warn(links_, view_.links, "link");
  }

  BpfView finish() {
    warn_of_hidden();
    std::ranges::sort(view_.programs, {}, &BpfProgram::id);
    std::ranges::sort(view_.maps, {}, &BpfMap::id);
    std::ranges::sort(view_.links, {}, &BpfLink::id);
    return std::move(view_);
  }

  const Kernel &kernel_;
  const BpfLayout &f_;
  XarrayReader xarrays_;
  PathResolver paths_;
  ValueNames program_types_, map_types_, link_types_, attach_types_, cgroup_attach_types_;
  std::uint64_t tracepoint_flag_, kprobe_flag_, uprobe_flag_;
  std::optional<Gva> event_operations_;
  std::optional<Gva> dummy_program_;
  Index programs_, maps_, links_;
  BpfView view_;
};

} // namespace

Result<BpfView> read_bpf(const Kernel &kernel) {
  if (!kernel.symbol("prog_idr"))
    return fail(ErrorCode::unsupported, "this kernel was built without BPF system calls");
  TRY_ASSIGN(const auto *layout, kernel.layout<BpfLayout>());
  TRY_ASSIGN(const auto xarrays, XarrayReader::create(kernel));
  TRY_ASSIGN(auto paths, PathResolver::create(kernel));
  return BpfReader(kernel, *layout, xarrays, std::move(paths)).read();
}

} // namespace lararium::linux_guest
