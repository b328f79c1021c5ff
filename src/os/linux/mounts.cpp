#include "mounts.h"

#include "lararium/os/linux/rb_tree.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>

namespace lararium::linux_guest {
namespace {

constexpr std::size_t attempts = 4;
constexpr std::size_t text_limit = 4096;
constexpr std::uint64_t read_only = 0x40;    // MNT_READONLY, include/linux/mount.h
constexpr std::uint64_t cursor = 0x10000000; // MNT_CURSOR: a reader's place in the list, from 5.8 to 6.7
constexpr std::uint64_t super_read_only = 1; // SB_RDONLY, include/linux/fs.h

struct Flag {
  std::uint64_t bit;
  std::string_view name;
};
// In the order in which /proc prints them (show_vfsmnt_opts() and show_sb_opts() in fs/proc_namespace.c).
constexpr std::array mount_flags{Flag{1, "nosuid"},        Flag{2, "nodev"},         Flag{4, "noexec"},
                                 Flag{8, "noatime"},       Flag{0x10, "nodiratime"}, Flag{0x20, "relatime"},
                                 Flag{0x80, "nosymfollow"}};
constexpr std::array super_flags{Flag{1 << 4, "sync"}, Flag{1 << 7, "dirsync"}, Flag{1 << 6, "mand"},
                                 Flag{1 << 25, "lazytime"}};

void add_flags(std::string &text, std::uint64_t flags, std::span<const Flag> known) {
  for (const Flag &flag : known)
    if ((flags & flag.bit) != 0)
      (text += ',') += flag.name;
}

} // namespace

struct MountLayout {
  std::uint64_t mount_size = 0;
  FieldLocation vfsmount, parent, mountpoint, id, group, master, device_name;
  FieldLocation root, super, flags;
  FieldLocation task_nsproxy, task_fs, proxy_namespace, fs_root, inode_number;
  std::optional<FieldLocation> namespace_number, propagation; // the latter since 6.17; bits of `flags` before
  std::optional<FieldLocation> tree, tree_node, list, list_node;
  const RbLayout *rb = nullptr;
  std::optional<FieldLocation> id_mapping, super_user_namespace;
  std::vector<Gva> no_id_mapping; // values that stand for none

  static Result<MountLayout> resolve(const Kernel &kernel) {
    MountLayout f;
    LayoutResolver layout(kernel.types());
    f.mount_size = layout.require_size("mount");
    const auto mount = [&](std::string_view path) { return layout.require("mount", path); };
    f.vfsmount = mount("mnt");
    f.parent = mount("mnt_parent");
    f.mountpoint = mount("mnt_mountpoint");
    f.id = mount("mnt_id");
    f.group = mount("mnt_group_id");
    f.master = mount("mnt_master");
    f.device_name = mount("mnt_devname");
    f.root = layout.require("vfsmount", "mnt_root");
    f.super = layout.require("vfsmount", "mnt_sb");
    f.flags = layout.require("vfsmount", "mnt_flags");
    f.task_nsproxy = layout.require("task_struct", "nsproxy");
    f.task_fs = layout.require("task_struct", "fs");
    f.proxy_namespace = layout.require("nsproxy", "mnt_ns");
    f.fs_root = layout.require("fs_struct", "root");
    f.namespace_number = layout.optional("mnt_namespace", "ns.inum");
    f.propagation = layout.optional("mount", "mnt_t_flags");
    // A tree ordered by id since 6.8 (2eea9ce4310d); before, a list. Both names occur in both, for other things.
    const auto node = layout.optional("mount", "mnt_node");
    if (node && layout.optional("mnt_namespace", "mounts")) {
      f.tree = layout.require("mnt_namespace", "mounts");
      f.tree_node = node;
      TRY_ASSIGN(f.rb, kernel.layout<RbLayout>());
    } else {
      f.list = layout.require("mnt_namespace", "list");
      f.list_node = layout.require("mount", "mnt_list");
    }
    // An id mapping other than the one that stands for none: since 6.2 by a structure of its own; since 5.12 by a user
    // namespace, where the file system's own stands for none since 5.17 (bd303368b776).
    if ((f.id_mapping = layout.optional("vfsmount", "mnt_idmap"))) {
      for (const char *none : {"nop_mnt_idmap", "invalid_mnt_idmap"})
        if (const auto address = kernel.symbol(none))
          f.no_id_mapping.push_back(*address);
    } else if ((f.id_mapping = layout.optional("vfsmount", "mnt_userns"))) {
      if (const auto address = kernel.symbol("init_user_ns"))
        f.no_id_mapping.push_back(*address);
      f.super_user_namespace = layout.optional("super_block", "s_user_ns");
    }
    TRY(layout.check());
    return f;
  }
};

Result<MountReader> MountReader::create(const Kernel &kernel) {
  TRY_ASSIGN(const MountLayout *layout, kernel.layout<MountLayout>());
  TRY_ASSIGN(const VfsLayout *vfs, kernel.layout<VfsLayout>());
  TRY_ASSIGN(const auto paths, PathResolver::create(kernel));
  return MountReader(kernel, *layout, *vfs, paths);
}

std::optional<MountReader::Root> MountReader::root_of(Gva task) const {
  const auto proxy = kernel_->read_pointer(task, f_->task_nsproxy);
  const auto fs = kernel_->read_pointer(task, f_->task_fs);
  if (!proxy || !*proxy || !fs || !*fs)
    return std::nullopt;
  const auto name_space = kernel_->read_pointer(*proxy, f_->proxy_namespace);
  const auto vfsmount = kernel_->read_pointer(*fs + f_->fs_root.offset, vfs_->path_mnt);
  const auto dentry = kernel_->read_pointer(*fs + f_->fs_root.offset, vfs_->path_dentry);
  if (!name_space || !*name_space || !vfsmount || !dentry)
    return std::nullopt;
  return Root{*name_space, *vfsmount, *dentry};
}

std::optional<MountNode> MountReader::node(Gva mount) const {
  const Gva vfsmount = mount + f_->vfsmount.offset;
  const auto parent = kernel_->read_pointer(mount, f_->parent);
  const auto mountpoint = kernel_->read_pointer(mount, f_->mountpoint);
  const auto root = kernel_->read_pointer(vfsmount, f_->root);
  if (!parent || !mountpoint || !root || !kernel_->is_kernel_address(*root))
    return std::nullopt;
  return MountNode{mount, vfsmount, *parent, *mountpoint, *root};
}

WalkResult MountReader::walk_namespace(Gva name_space, std::vector<MountNode> &found) const {
  const std::size_t limit = object_limit(*kernel_, f_->mount_size);
  std::size_t unreadable = 0;
  const auto add = [&](Gva mount) {
    if (f_->list && (kernel_->read_field(mount + f_->vfsmount.offset, f_->flags).value_or(0) & cursor) != 0)
      return true;
    if (const auto read = node(mount))
      found.push_back(*read);
    else
      ++unreadable;
    return true;
  };
  WalkResult walk;
  if (f_->tree) {
    const auto top = kernel_->read_pointer(name_space, *f_->tree);
    walk = walk_rb_tree(kernel_->space(), *f_->rb, top.value_or(Gva{1}), limit,
                        [&](Gva link) { return add(link - f_->tree_node->offset); });
  } else {
    walk = walk_list(*kernel_, name_space + f_->list->offset, limit,
                     [&](Gva link) { return add(link - f_->list_node->offset); });
  }
  walk.mismatches += unreadable;
  return walk;
}

std::vector<MountNode> MountReader::mounts(Gva name_space, ViewStatus &status) const {
  std::vector<MountNode> found;
  WalkResult walk;
  for (std::size_t attempt = 0; attempt < attempts; ++attempt) {
    found.clear();
    walk = walk_namespace(name_space, found);
    if (walk.consistent())
      return found;
    ++status.retries;
  }
  status.raced = true;
  status.truncated |= walk.end != WalkEnd::complete;
  status.warn(linux_guest::describe(walk, "the collection of mounts"));
  return found;
}

std::string MountReader::text(Gva object, const FieldLocation &pointer) const {
  const auto address = kernel_->read_pointer(object, pointer);
  return address && *address ? kernel_->space().read_c_string(*address, text_limit).value_or("") : std::string();
}

std::string MountReader::options(Gva vfsmount, std::uint64_t flags) const {
  std::string result = (flags & read_only) != 0 ? "ro" : "rw";
  add_flags(result, flags, mount_flags);
  if (f_->id_mapping && !f_->no_id_mapping.empty()) {
    const auto mapping = kernel_->read_pointer(vfsmount, *f_->id_mapping);
    const auto super_block = kernel_->read_pointer(vfsmount, f_->super);
    const auto own = super_block && f_->super_user_namespace
                         ? kernel_->read_pointer(*super_block, *f_->super_user_namespace)
                         : std::nullopt;
    if (mapping && *mapping && mapping != own &&
        std::ranges::find(f_->no_id_mapping, *mapping) == f_->no_id_mapping.end())
      result += ",idmapped";
  }
  return result;
}

std::optional<Mount> MountReader::describe(const MountNode &node, const Root &root) const {
  const auto place = paths_.resolve_below(root.vfsmount, root.dentry, node.vfsmount, node.root);
  const auto super_block = kernel_->read_pointer(node.vfsmount, f_->super);
  const auto flags = kernel_->read_field(node.vfsmount, f_->flags);
  if (!place || !super_block || !flags)
    return std::nullopt;
  Mount result;
  const auto number = [&](Gva object, const FieldLocation &field) {
    return static_cast<std::uint32_t>(kernel_->read_field(object, field).value_or(0));
  };
  result.id = number(node.mount, f_->id);
  result.parent_id = number(node.parent, f_->id);
  if (f_->namespace_number)
    result.mount_namespace = number(root.name_space, *f_->namespace_number);
  const auto device = device_number(kernel_->read_field(*super_block, vfs_->super_device).value_or(0));
  result.device_major = device.major;
  result.device_minor = device.minor;
  result.mount_point = place->text;
  result.filesystem = vfs_->filesystem_of(*kernel_, *super_block);
  if (result.filesystem == "nsfs") {
    if (const auto name = paths_.pseudo_name(node.root))
      result.root = name->text;
  } else if (const auto inside = paths_.within_filesystem(node.root)) {
    result.root = inside->text;
    if (paths_.is_deleted(node.root))
      result.root += "//deleted";
  }
  if (vfs_->super_subtype)
    if (const std::string subtype = text(*super_block, *vfs_->super_subtype); !subtype.empty())
      result.filesystem += "." + subtype;
  result.options = options(node.vfsmount, *flags);
  // IS_MNT_SHARED() and so on, in fs/pnode.h. propagate_from, which depends on who asks, is left out.
  constexpr std::uint64_t shared = 1, unbindable = 2; // T_SHARED, T_UNBINDABLE; MNT_ ones are 12 bits higher
  const std::uint64_t propagation =
      f_->propagation ? kernel_->read_field(node.mount, *f_->propagation).value_or(0) : *flags >> 12;
  const auto add = [&](const std::string &word) {
    result.propagation += (result.propagation.empty() ? "" : " ") + word;
  };
  if ((propagation & shared) != 0)
    add(fmt::format("shared:{}", number(node.mount, f_->group)));
  if (const auto master = kernel_->read_pointer(node.mount, f_->master); master && *master)
    add(fmt::format("master:{}", number(*master, f_->group)));
  if ((propagation & unbindable) != 0)
    add("unbindable");
  result.source = text(node.mount, f_->device_name);
  if (const auto name = kernel_->read_pointer(node.mount, f_->device_name); !name || !*name)
    result.source = "none";
  const std::uint64_t of_super = kernel_->read_field(*super_block, vfs_->super_flags).value_or(0);
  result.super_options = (of_super & super_read_only) != 0 ? "ro" : "rw";
  add_flags(result.super_options, of_super, super_flags);
  return result;
}

Result<View<Mount>> read_mounts(const Kernel &kernel, std::optional<std::int32_t> pid) {
  View<Mount> view;
  TRY_ASSIGN(const auto groups, list_task_groups(kernel, pid.value_or(1), view.status));
  TRY_ASSIGN(const auto reader, MountReader::create(kernel));
  std::optional<MountReader::Root> root;
  for (const Gva task : groups.front().tasks)
    if ((root = reader.root_of(task)))
      break;
  if (!root)
    return fail(ErrorCode::not_found, fmt::format("process {} has no mount namespace any more", pid.value_or(1)));
  for (const MountNode &node : reader.mounts(root->name_space, view.status))
    if (auto mount = reader.describe(node, *root))
      view.items.push_back(*std::move(mount));
  return view;
}

} // namespace lararium::linux_guest
