// A guest of a few processes, files and mounts in 2 MiB of memory, for tests and fuzzers of the views. Its structures
// hold only the members that the views need, at places of their own: the views must find them by their types.
#pragma once

#include "../../symbols/btf_builder.h"
#include "lararium/os/linux/kernel.h"
#include "lararium/symbols/profile.h"
#include "lararium/vm/physical_memory.h"

#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace lararium::test {

// All of its memory is mapped, so that a read costs no call; a test changes it in place.
class FlatMemory final : public PhysicalMemory {
public:
  explicit FlatMemory(std::uint64_t size) : bytes_(size) {
    set_ranges({{Gpa{0}, size, "ram"}});
    set_mapped_runs({{Gpa{0}, bytes_}});
  }
  [[nodiscard]] std::span<std::byte> bytes() { return bytes_; }

private:
  std::vector<std::byte> bytes_;
};

// What differs between kernels.
struct TinyEra {
  std::string_view name;
  bool maple_tree = true;  // else a list of areas
  bool mount_tree = true;  // else a list of mounts
  bool child_chain = true; // else a doubly linked list of dentries
};
inline constexpr TinyEra tiny_new{"new"};
inline constexpr TinyEra tiny_old{"old", false, false, false};

// Reads a description of structures, one a line: "NAME: member type, member type ...". Types: u8 u16 u32 u64 ptr,
// another structure, any of them with [N]. Members are laid out in order, each aligned to its size, at most to 8.
class LayoutText {
public:
  explicit LayoutText(std::string_view text) {
    for (const std::uint32_t size : {1, 2, 4, 8})
      scalars_["u" + std::to_string(size * 8)] = {builder_.integer("u" + std::to_string(size * 8), size), size, size};
    scalars_["ptr"] = {builder_.pointer(0), 8, 8};
    while (!text.empty()) {
      const auto end = std::min(text.find('\n'), text.size());
      add(text.substr(0, end));
      text.remove_prefix(std::min(end + 1, text.size()));
    }
    builder_.enumeration("pageflags", {{"PG_uptodate", 2}, {"PG_head", 6}});
    builder_.enumeration("maple_type",
                         {{"maple_dense", 0}, {"maple_leaf_64", 1}, {"maple_range_64", 2}, {"maple_arange_64", 3}});
  }
  [[nodiscard]] std::vector<std::byte> btf() const { return builder_.bytes(); }

private:
  struct Known {
    TypeId id = 0;
    std::uint32_t size = 0, alignment = 1;
  };

  static std::string_view trim(std::string_view text) {
    while (text.starts_with(' '))
      text.remove_prefix(1);
    while (text.ends_with(' '))
      text.remove_suffix(1);
    return text;
  }

  void add(std::string_view line) {
    const auto colon = line.find(':');
    if (colon == std::string_view::npos)
      return;
    struct Field {
      std::string name;
      TypeId type;
      std::uint32_t offset;
    };
    std::vector<Field> fields;
    std::uint32_t size = 0;
    std::string_view rest = line.substr(colon + 1);
    while (!trim(rest).empty()) {
      const auto comma = std::min(rest.find(','), rest.size());
      const std::string_view field = trim(rest.substr(0, comma));
      rest.remove_prefix(std::min(comma + 1, rest.size()));
      const auto space = field.find(' ');
      std::string_view type = trim(field.substr(space + 1));
      std::uint32_t count = 0;
      if (const auto bracket = type.find('['); bracket != std::string_view::npos) {
        count = static_cast<std::uint32_t>(std::stoul(std::string(type.substr(bracket + 1))));
        type = type.substr(0, bracket);
      }
      Known known = scalars_.at(std::string(type));
      if (count != 0)
        known = {builder_.array(known.id, count), known.size * count, known.alignment};
      size = (size + known.alignment - 1) / known.alignment * known.alignment;
      fields.push_back({std::string(field.substr(0, space)), known.id, size});
      size += known.size;
    }
    size = (size + 7) / 8 * 8;
    const std::string name(trim(line.substr(0, colon)));
    const TypeId id = builder_.type(name, TypeKind::structure, false, fields.size(), size);
    for (const Field &field : fields) {
      builder_.word(builder_.string(field.name));
      builder_.word(field.type);
      builder_.word(field.offset * 8);
    }
    scalars_[name] = {id, size, 8};
  }

  BtfBuilder builder_;
  std::map<std::string, Known> scalars_;
};

class TinyGuest {
public:
  static constexpr std::uint64_t memory_size = 2 << 20;
  static constexpr Gva direct_map{0xffff888000000000};
  static constexpr std::uint64_t page_struct_size = 64;

  explicit TinyGuest(const TinyEra &which) : era(which), memory(memory_size) {
    next_ = 0x1000;
    root_ = page();
    map_direct();
    image_ = page();
    page_structs_ = allocate(memory_size / page_size * page_struct_size, 64);
    declare();
    fill();
    kernel = std::make_unique<linux_guest::Kernel>(
        memory, linux_guest::KernelLocation{{Gpa{root_}, 4}, virtual_of(image_), Gpa{image_}, page_size, "test"},
        profile_);
  }

  const TinyEra era;
  FlatMemory memory;
  std::unique_ptr<linux_guest::Kernel> kernel;

  // ---- objects that tests point at
  Gva init, worker, second_thread; // tasks
  Gva init_mm, root_dentry, etc, passwd, mapping, data_inode, link_inode, name_space, root_mount, tmp_mount;
  std::vector<Gva> areas, pages; // vm_area_structs of init; struct page of the cached file, by index
  Gva maple_root, leaf, pages_node, table;

  // Every 8-byte word that the guest uses, for a fuzzer to change.
  [[nodiscard]] std::uint64_t used() const { return next_; }

  [[nodiscard]] FieldLocation field(std::string_view type, std::string_view member) const {
    const auto found = profile_->types().field(type, member);
    if (!found)
      throw std::logic_error("tiny_guest: no " + std::string(type) + "." + std::string(member));
    return *found;
  }
  template <class T> void write(Gva address, T value) {
    std::memcpy(memory.bytes().data() + (address - direct_map), &value, sizeof value);
  }
  void set(Gva object, std::string_view type, std::string_view member, std::uint64_t value) {
    const FieldLocation f = field(type, member);
    std::memcpy(memory.bytes().data() + (object - direct_map) + f.offset, &value, std::min(f.size, 8u));
  }
  void set(Gva object, std::string_view type, std::string_view member, Gva value) {
    set(object, type, member, value.value);
  }
  [[nodiscard]] std::uint64_t get(Gva object, std::string_view type, std::string_view member) const {
    return kernel->read_field(object, field(type, member)).value_or(0);
  }

private:
  static Gva virtual_of(std::uint64_t physical) { return direct_map + physical; }
  std::uint64_t allocate(std::uint64_t size, std::uint64_t alignment = 16) {
    next_ = (next_ + alignment - 1) / alignment * alignment;
    const std::uint64_t at = next_;
    next_ += size;
    if (next_ > memory_size)
      throw std::logic_error("tiny_guest: out of memory");
    return at;
  }
  std::uint64_t page() { return allocate(page_size, page_size); }
  void write_physical(std::uint64_t at, std::uint64_t value) { std::memcpy(memory.bytes().data() + at, &value, 8); }

  void map_direct() { // one page of 2 MiB
    const std::uint64_t upper = page(), middle = page();
    write_physical(root_ + 8 * (direct_map.value >> 39 & 511), upper | 3);
    write_physical(upper + 8 * (direct_map.value >> 30 & 511), middle | 3);
    write_physical(middle + 8 * (direct_map.value >> 21 & 511), 0 | 0x83);
  }

  [[nodiscard]] Gva make(std::string_view type, std::uint64_t alignment = 16) {
    const auto size = profile_->types().size_of(type);
    if (!size)
      throw std::logic_error("tiny_guest: no " + std::string(type));
    return virtual_of(allocate(*size, alignment));
  }
  Gva text(std::string_view content) {
    const std::uint64_t at = allocate(content.size() + 1, 8);
    std::memcpy(memory.bytes().data() + at, content.data(), content.size());
    return virtual_of(at);
  }

  void declare() {
    std::string layouts = R"(
list_head: next ptr, prev ptr
hlist_head: first ptr
hlist_node: next ptr, pprev ptr
rb_node: __rb_parent_color u64, rb_right ptr, rb_left ptr
xarray: gfp u32, xa_head ptr
xa_node: shift u8, offset u8, parent ptr, slots ptr[64]
idr: idr_rt xarray, idr_base u32
maple_tree: lock u64, ma_root ptr, ma_flags u32
maple_range_64: parent ptr, pivot u64[15], slot ptr[16]
maple_arange_64: parent ptr, pivot u64[9], slot ptr[10], gap u64[10]
kuid: val u32
cap: val u64
cred: x u64, uid kuid, gid kuid, suid kuid, sgid kuid, euid kuid, egid kuid, fsuid kuid, fsgid kuid, cap_inheritable cap, cap_permitted cap, cap_effective cap, cap_bset cap, user_ns ptr, group_info ptr
upid: nr u32, ns ptr
pid: level u32, numbers upid[1]
qstr: hash u32, len u32, name ptr
path: mnt ptr, dentry ptr
hlist_bl_node: next ptr, pprev ptr
DENTRY
dentry_operations: d_hash ptr, d_dname ptr
address_space: host ptr, i_pages xarray, nrpages u64
inode: i_mode u16, i_flags u32, i_sb ptr, i_mapping ptr, i_ino u64, i_nlink u32, i_rdev u32, i_size u64, i_sb_list list_head, i_link ptr, i_private ptr, i_data address_space
file_system_type: name ptr
super_block: s_list list_head, s_dev u32, s_type ptr, s_flags u64, s_magic u64, s_subtype ptr, s_inodes list_head
file: f_mode u32, f_mapping ptr, f_inode ptr, f_flags u32, f_path path, f_pos u64
fdtable: max_fds u32, fd ptr, close_on_exec ptr
files_struct: count u32, fdt ptr
vfsmount: mnt_root ptr, mnt_sb ptr, mnt_flags u32
MOUNT
ns_common: ops ptr, inum u32
proc_ns_operations: name ptr
NAMESPACE
fs_struct: users u32, root path, pwd path
nsproxy: count u32, mnt_ns ptr
page: flags u64, compound_head u64, lru u64, mapping ptr, index u64, rest u64[3]
vm_operations_struct: open ptr, name ptr
vm_special_mapping: name ptr
context: flags u64
AREA
signal_struct: thread_head list_head, nr_threads u32, utime u64, stime u64, pids ptr[4], sum_sched_runtime u64
thread_info: cpu u32
sched_entity: sum_exec_runtime u64
thread_struct: fsbase u64, gsbase u64, fsindex u16, gsindex u16, ds u16, es u16
task_struct: thread_info thread_info, stack ptr, flags u32, on_cpu u32, se sched_entity, tasks list_head, mm ptr, active_mm ptr, pid u32, tgid u32, real_parent ptr, thread_node list_head, thread_pid ptr, utime u64, stime u64, start_boottime u64, real_cred ptr, comm u8[16], fs ptr, files ptr, nsproxy ptr, signal ptr, __state u32, exit_state u32, static_prio u32, thread thread_struct
pt_regs: words u64[21]
)";
    const auto replace = [&](std::string_view what, std::string_view by) {
      layouts.replace(layouts.find(what), what.size(), by);
    };
    replace("DENTRY", era.child_chain
                          ? "dentry: d_flags u32, d_hash hlist_bl_node, d_parent ptr, d_name qstr, d_inode "
                            "ptr, d_op ptr, d_sb ptr, d_fsdata ptr, d_sib hlist_node, d_children hlist_head"
                          : "dentry: d_flags u32, d_hash hlist_bl_node, d_parent ptr, d_name qstr, d_inode "
                            "ptr, d_op ptr, d_sb ptr, d_fsdata ptr, d_child list_head, d_subdirs list_head");
    replace("MOUNT", std::string("mount: mnt_hash ptr, mnt_parent ptr, mnt_mountpoint ptr, mnt vfsmount, ") +
                         (era.mount_tree ? "mnt_node rb_node, " : "mnt_list list_head, ") +
                         "mnt_devname ptr, mnt_master ptr, mnt_ns ptr, mnt_id u32, mnt_group_id u32");
    replace("NAMESPACE", era.mount_tree ? "rb_root: rb_node ptr\nmnt_namespace: ns ns_common, mounts rb_root"
                                        : "mnt_namespace: ns ns_common, list list_head, mounts u32");
    replace(
        "AREA",
        era.maple_tree
            ? "percpu_counter: lock u32, count u64, counters ptr\nvm_area_struct: vm_start u64, vm_end u64, vm_mm ptr, "
              "vm_flags u64, vm_ops ptr, vm_pgoff u64, vm_file "
              "ptr, vm_private_data ptr\nmm_struct: map_count u32, mm_mt maple_tree, pgd ptr, total_vm u64, "
              "start_brk u64, brk u64, start_stack u64, arg_start u64, arg_end u64, env_start u64, env_end u64, "
              "saved_auxv u64[8], rss_stat percpu_counter[4], context context, exe_file ptr"
            : "vm_area_struct: vm_start u64, vm_end u64, vm_next ptr, vm_mm ptr, vm_flags u64, vm_ops ptr, vm_pgoff "
              "u64, vm_file ptr, vm_private_data ptr\nrss: count u64[4]\nmm_struct: mmap ptr, map_count u32, pgd "
              "ptr, total_vm u64, start_brk u64, brk u64, start_stack u64, arg_start u64, arg_end u64, env_start "
              "u64, env_end u64, saved_auxv u64[8], rss_stat rss, context context, exe_file ptr");
    const auto btf = LayoutText(layouts).btf();
    ProfileSource source;
    source.btf = btf;
    // Symbols of the image: the first words of its page; functions at odd places of it.
    for (const auto &[name, offset] : symbols_)
      source.symbols.push_back({name, offset, SymbolBase::image, 'D'});
    auto built = Profile::build(source);
    if (!built)
      throw std::logic_error("tiny_guest: " + built.error().describe());
    profile_ = *built;
  }

  [[nodiscard]] Gva symbol(std::string_view name) const { return virtual_of(image_ + symbols_.find(name)->second); }

  void link(Gva head, const std::vector<Gva> &nodes) { // a struct list_head
    Gva previous = head;
    for (const Gva node : nodes) {
      write(previous, node.value);
      write(node + 8, previous.value);
      previous = node;
    }
    write(previous, head.value);
    write(head + 8, previous.value);
  }

  Gva super_block(std::string_view type, std::uint32_t device, std::uint64_t magic) {
    const Gva result = make("super_block"), kind = make("file_system_type");
    set(kind, "file_system_type", "name", text(type));
    set(result, "super_block", "s_dev", device);
    set(result, "super_block", "s_type", kind);
    set(result, "super_block", "s_magic", magic);
    supers_.push_back(result);
    return result;
  }
  Gva inode(Gva super, std::uint64_t number, std::uint32_t mode, std::uint64_t size = 0) {
    const Gva result = make("inode");
    set(result, "inode", "i_sb", super);
    set(result, "inode", "i_ino", number);
    set(result, "inode", "i_mode", mode);
    set(result, "inode", "i_size", size);
    set(result, "inode", "i_nlink", 1);
    const Gva cache = result + field("inode", "i_data").offset;
    set(result, "inode", "i_mapping", cache);
    set(cache, "address_space", "host", result);
    inodes_[super.value].push_back(result);
    return result;
  }
  Gva dentry(Gva parent, std::string_view name, Gva of_inode, bool hashed = true) {
    const Gva result = make("dentry");
    set(result, "dentry", "d_name.name", text(name));
    set(result, "dentry", "d_name.len", name.size());
    set(result, "dentry", "d_parent", parent ? parent : result);
    set(result, "dentry", "d_inode", of_inode);
    set(result, "dentry", "d_sb", Gva{load_word(of_inode + field("inode", "i_sb").offset)});
    if (hashed)
      set(result, "dentry", "d_hash.pprev", result);
    if (parent)
      children_[parent.value].push_back(result);
    all_dentries_.push_back(result);
    return result;
  }
  [[nodiscard]] std::uint64_t load_word(Gva address) {
    std::uint64_t value = 0;
    std::memcpy(&value, memory.bytes().data() + (address - direct_map), 8);
    return value;
  }
  Gva mount(std::uint32_t id, Gva super, Gva root, Gva parent, Gva mountpoint, std::string_view device) {
    const Gva result = make("mount");
    set(result, "mount", "mnt_id", id);
    set(result, "mount", "mnt_parent", parent ? parent : result);
    set(result, "mount", "mnt_mountpoint", mountpoint ? mountpoint : root);
    set(result, "mount", "mnt.mnt_root", root);
    set(result, "mount", "mnt.mnt_sb", super);
    set(result, "mount", "mnt_ns", name_space);
    set(result, "mount", "mnt_devname", text(device));
    mounts_.push_back(result);
    return result;
  }
  Gva file(Gva of_mount, Gva of_dentry, std::uint32_t flags, std::uint64_t position) {
    const Gva result = make("file");
    const Gva of_inode{load_word(of_dentry + field("dentry", "d_inode").offset)};
    set(result, "file", "f_path.mnt", of_mount + field("mount", "mnt").offset);
    set(result, "file", "f_path.dentry", of_dentry);
    set(result, "file", "f_inode", of_inode);
    set(result, "file", "f_mapping", Gva{load_word(of_inode + field("inode", "i_mapping").offset)});
    set(result, "file", "f_flags", flags);
    set(result, "file", "f_pos", position);
    return result;
  }
  Gva area(Gva mm, std::uint64_t begin, std::uint64_t end, std::uint64_t flags, Gva of_file = {}) {
    const Gva result = make("vm_area_struct");
    set(result, "vm_area_struct", "vm_start", begin);
    set(result, "vm_area_struct", "vm_end", end);
    set(result, "vm_area_struct", "vm_mm", mm);
    set(result, "vm_area_struct", "vm_flags", flags);
    set(result, "vm_area_struct", "vm_file", of_file);
    return result;
  }
  Gva task(std::uint32_t pid, std::uint32_t tgid, std::string_view comm, Gva signal) {
    const Gva result = make("task_struct");
    set(result, "task_struct", "pid", pid);
    set(result, "task_struct", "tgid", tgid);
    set(result, "task_struct", "signal", signal);
    set(result, "task_struct", "real_parent", result);
    std::memcpy(memory.bytes().data() + (result - direct_map) + field("task_struct", "comm").offset, comm.data(),
                std::min<std::size_t>(comm.size(), 15));
    const Gva stack = virtual_of(allocate(16 << 10, page_size));
    set(result, "task_struct", "stack", stack);
    const Gva frame = stack + ((16 << 10) - 21 * 8);
    for (std::uint64_t i = 0; i < 21; ++i)
      write(frame + 8 * i, 0x100 + i);
    write(frame + 8 * 16, std::uint64_t{0x401000}); // rip
    write(frame + 8 * 17, std::uint64_t{0x33});
    write(frame + 8 * 18, std::uint64_t{0x246});
    write(frame + 8 * 20, std::uint64_t{0x2b});
    return result;
  }

  void fill() {
    const Gva null_signal = make("signal_struct");
    const Gva idle = symbol("init_task");
    name_space = make("mnt_namespace");
    set(name_space, "mnt_namespace", "ns.inum", 0xf0000001);

    // A file system with files, and another one mounted in it.
    const Gva root_super = super_block("rootfs", 2, 0x858458f6), tmp_super = super_block("tmpfs", 0x15, 0x01021994),
              pipe_super = super_block("pipefs", 0xc, 0x50495045);
    root_dentry = dentry({}, "/", inode(root_super, 1, 0040755));
    etc = dentry(root_dentry, "etc", inode(root_super, 2, 0040755));
    const Gva tmp = dentry(root_dentry, "tmp", inode(root_super, 3, 0040755));
    passwd = dentry(etc, "passwd", inode(root_super, 4, 0100644, 20));
    const Gva gone = dentry(etc, "gone", inode(root_super, 5, 0100600, 7), false);
    link_inode = inode(root_super, 6, 0120777, 11);
    set(link_inode, "inode", "i_link", text("../tmp/data"));
    dentry(etc, "link", link_inode);
    const Gva tmp_root = dentry({}, "/", inode(tmp_super, 1, 0041777));
    data_inode = inode(tmp_super, 2, 0100644, 6 * page_size + 100);
    const Gva data = dentry(tmp_root, "data", data_inode);
    root_mount = mount(21, root_super, root_dentry, {}, {}, "rootfs");
    tmp_mount = mount(22, tmp_super, tmp_root, root_mount, tmp, "a tmpfs");
    set(tmp_mount, "mount", "mnt.mnt_flags", 0x27 | 1 << 12);
    set(tmp_mount, "mount", "mnt_group_id", 9);
    const Gva pipe_ops = make("dentry_operations");
    set(pipe_ops, "dentry_operations", "d_dname", pipe_ops);
    const Gva pipe_root = dentry({}, "", inode(pipe_super, 1, 0040000));
    const Gva pipe = dentry({}, "", inode(pipe_super, 77, 0010600));
    set(pipe, "dentry", "d_op", pipe_ops);
    const Gva pipe_mount = make("mount");
    set(pipe_mount, "mount", "mnt_parent", pipe_mount);
    set(pipe_mount, "mount", "mnt.mnt_root", pipe_root);

    // Pages 0, 1, 4 (a shadow at 2, nothing at 3 and 5) and 6 of the file.
    mapping = data_inode + field("inode", "i_data").offset;
    pages_node = make("xa_node", 64);
    set(mapping, "address_space", "i_pages.xa_head", pages_node.value | 2);
    set(mapping, "address_space", "nrpages", 4);
    pages.resize(7);
    for (const std::uint64_t index : {0, 1, 4, 6}) {
      const std::uint64_t frame = page();
      std::memset(memory.bytes().data() + frame, static_cast<int>('a' + index), page_size);
      pages[index] = virtual_of(page_structs_ + frame / page_size * page_struct_size);
      set(pages[index], "page", "flags", 1 << 2);
      set(pages[index], "page", "mapping", mapping);
      set(pages[index], "page", "index", index);
      write(pages_node + field("xa_node", "slots").offset + 8 * index, pages[index].value);
    }
    write(pages_node + field("xa_node", "slots").offset + 8 * 2, std::uint64_t{0x123} << 1 | 1);

    const Gva fs = make("fs_struct"), proxy = make("nsproxy");
    set(fs, "fs_struct", "root.mnt", root_mount + field("mount", "mnt").offset);
    set(fs, "fs_struct", "root.dentry", root_dentry);
    set(fs, "fs_struct", "pwd.mnt", tmp_mount + field("mount", "mnt").offset);
    set(fs, "fs_struct", "pwd.dentry", tmp_root);
    set(proxy, "nsproxy", "mnt_ns", name_space);

    // Descriptors 0, 1, 2 and 70.
    const Gva files = make("files_struct"), slots = virtual_of(allocate(128 * 8)), bits = virtual_of(allocate(16));
    table = make("fdtable");
    set(files, "files_struct", "fdt", table);
    set(table, "fdtable", "max_fds", 128);
    set(table, "fdtable", "fd", slots);
    set(table, "fdtable", "close_on_exec", bits);
    const Gva data_file = file(tmp_mount, data, 0100002, 4096);
    write(slots, file(root_mount, passwd, 0, 5).value);
    write(slots + 8, file(pipe_mount, pipe, 1, 0).value);
    write(slots + 16, file(root_mount, gone, 02002, 7).value);
    write(slots + 70 * 8, data_file.value);
    write(bits + 8, std::uint64_t{1} << 6);

    // User memory: one page at 0x401000, the environment at its end.
    init_mm = make("mm_struct");
    const std::uint64_t user_root = page(), upper = page(), middle = page(), lower = page(), user = page();
    write_physical(user_root, upper | 7);
    write_physical(upper, middle | 7);
    write_physical(middle + 8 * 2, lower | 7);
    write_physical(lower + 8, user | 7);
    constexpr std::string_view environment("HOME=/\0EMPTY=\0odd", 17);
    std::memcpy(memory.bytes().data() + user + 0xf00, environment.data(), environment.size());
    set(init_mm, "mm_struct", "pgd", virtual_of(user_root));
    set(init_mm, "mm_struct", "env_start", 0x401f00);
    set(init_mm, "mm_struct", "env_end", 0x401f00 + environment.size() + 1);
    set(init_mm, "mm_struct", "start_brk", 0x500000);
    set(init_mm, "mm_struct", "brk", 0x501000);
    set(init_mm, "mm_struct", "start_stack", 0x7ffd00001800);
    write(init_mm + field("mm_struct", "saved_auxv").offset, std::uint64_t{6});
    write(init_mm + field("mm_struct", "saved_auxv").offset + 8, std::uint64_t{4096});
    set(init_mm, "mm_struct", "exe_file", data_file);
    areas = {area(init_mm, 0x401000, 0x402000, 0x75, data_file), area(init_mm, 0x500000, 0x501000, 0x73),
             area(init_mm, 0x7f0000000000, 0x7f0000004000, 0xfb), area(init_mm, 0x7ffd00000000, 0x7ffd00002000, 0x73),
             area(init_mm, 0x7ffd00010000, 0x7ffd00012000, 0x75)};
    set(areas[0], "vm_area_struct", "vm_pgoff", 4);
    const Gva ops = make("vm_operations_struct"), special = make("vm_special_mapping");
    set(ops, "vm_operations_struct", "name", symbol("special_mapping_name"));
    set(special, "vm_special_mapping", "name", text("[vdso]"));
    set(areas[4], "vm_area_struct", "vm_ops", ops);
    set(areas[4], "vm_area_struct", "vm_private_data", special);
    set(init_mm, "mm_struct", "map_count", areas.size());
    if (era.maple_tree)
      plant();
    else
      for (std::size_t i = 0; i < areas.size(); ++i)
        i == 0 ? set(init_mm, "mm_struct", "mmap", areas[0]) : set(areas[i - 1], "vm_area_struct", "vm_next", areas[i]);

    const Gva init_signal = make("signal_struct"), worker_signal = make("signal_struct");
    init = task(1, 1, "init", init_signal);
    worker = task(7, 7, "worker", worker_signal);
    second_thread = task(8, 7, "second", worker_signal);
    for (const Gva each : {init, worker, second_thread}) {
      set(each, "task_struct", "fs", fs);
      set(each, "task_struct", "nsproxy", proxy);
      set(each, "task_struct", "files", files);
      set(each, "task_struct", "mm", init_mm);
    }
    set(second_thread, "task_struct", "on_cpu", 1);
    const auto node = [&](Gva each) { return each + field("task_struct", "thread_node").offset; };
    link(init_signal, {node(init)});
    link(worker_signal, {node(worker), node(second_thread)});
    link(null_signal, {idle + field("task_struct", "thread_node").offset});
    set(idle, "task_struct", "signal", null_signal);
    const auto tasks = field("task_struct", "tasks").offset;
    link(idle + tasks, {init + tasks, worker + tasks});

    hang_mounts();
    hang_dentries();
    std::vector<Gva> nodes;
    for (const Gva super : supers_) {
      nodes.push_back(super + field("super_block", "s_list").offset);
      std::vector<Gva> members;
      for (const Gva each : inodes_[super.value])
        members.push_back(each + field("inode", "i_sb_list").offset);
      link(super + field("super_block", "s_inodes").offset, members);
    }
    link(symbol("super_blocks"), nodes);
    write(symbol("vmemmap_base"), virtual_of(page_structs_).value);
  }

  // A root with two leaves: [0, 0x5fffff] and the rest.
  void plant() {
    maple_root = virtual_of(allocate(256, 256));
    leaf = virtual_of(allocate(256, 256));
    const Gva second = virtual_of(allocate(256, 256));
    const auto encode = [](Gva node, std::uint64_t type) { return node.value | type << 3 | 4; };
    set(init_mm, "mm_struct", "mm_mt.ma_root", encode(maple_root, 3) | 2);
    write(maple_root, (init_mm.value + field("mm_struct", "mm_mt").offset) | 1);
    set(maple_root, "maple_arange_64", "pivot", 0x5fffff);
    write(maple_root + field("maple_arange_64", "pivot").offset + 8, ~std::uint64_t{0});
    set(maple_root, "maple_arange_64", "slot", encode(leaf, 1));
    write(maple_root + field("maple_arange_64", "slot").offset + 8, encode(second, 1));
    const auto put = [&](Gva node, std::initializer_list<std::pair<std::uint64_t, Gva>> entries) {
      std::uint64_t i = 0;
      for (const auto &[last, entry] : entries) {
        write(node + field("maple_range_64", "pivot").offset + 8 * i, last);
        write(node + field("maple_range_64", "slot").offset + 8 * i, entry.value);
        ++i;
      }
    };
    write(leaf, maple_root.value | 6);
    put(leaf, {{0x400fff, {}}, {0x401fff, areas[0]}, {0x4fffff, {}}, {0x500fff, areas[1]}, {0x5fffff, {}}});
    write(second, maple_root.value | 6 | 1 << 3);
    put(second, {{0x7effffffffff, {}},
                 {0x7f0000003fff, areas[2]},
                 {0x7ffcffffffff, {}},
                 {0x7ffd00001fff, areas[3]},
                 {0x7ffd0000ffff, {}},
                 {0x7ffd00011fff, areas[4]},
                 {~std::uint64_t{0}, {}}});
  }

  void hang_mounts() {
    if (!era.mount_tree) {
      std::vector<Gva> nodes;
      for (const Gva each : mounts_)
        nodes.push_back(each + field("mount", "mnt_list").offset);
      link(name_space + field("mnt_namespace", "list").offset, nodes);
      return;
    }
    const auto node = [&](Gva each) { return each + field("mount", "mnt_node").offset; };
    set(name_space, "mnt_namespace", "mounts.rb_node", node(root_mount));
    set(node(root_mount), "rb_node", "rb_right", node(tmp_mount));
    set(node(tmp_mount), "rb_node", "__rb_parent_color", node(root_mount).value | 1);
  }

  void hang_dentries() {
    for (const Gva parent : all_dentries_) {
      std::vector<Gva> nodes;
      for (const Gva child : children_[parent.value])
        nodes.push_back(child + field("dentry", era.child_chain ? "d_sib" : "d_child").offset);
      if (!era.child_chain) {
        link(parent + field("dentry", "d_subdirs").offset, nodes);
        continue;
      }
      Gva at = parent + field("dentry", "d_children").offset;
      for (const Gva each : nodes) {
        write(at, each.value);
        at = each;
      }
    }
  }

  std::uint64_t next_ = 0, root_ = 0, image_ = 0, page_structs_ = 0;
  std::shared_ptr<const Profile> profile_;
  std::vector<Gva> supers_, mounts_, all_dentries_;
  std::map<std::uint64_t, std::vector<Gva>> inodes_, children_;
  const std::map<std::string, std::uint64_t, std::less<>> symbols_{
      {"super_blocks", 0x10}, {"vmemmap_base", 0x20}, {"init_task", 0x100}, {"special_mapping_name", 0x800}};
};

} // namespace lararium::test
