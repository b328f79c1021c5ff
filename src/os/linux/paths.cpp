#include "lararium/os/linux/paths.h"

#include <fmt/format.h>
#include <vector>

namespace lararium::linux_guest {
namespace {

constexpr std::size_t name_limit = 255;      // NAME_MAX
constexpr std::size_t depth_limit = 512;     // components and mounts; PATH_MAX allows 2048, real paths have tens
constexpr std::size_t text_limit = 16 << 10; // four times PATH_MAX

// Joins components that were collected from the leaf up.
std::string join(const std::vector<std::string> &components) {
  std::string text;
  for (auto part = components.rbegin(); part != components.rend(); ++part)
    (text += '/') += *part;
  return text.empty() ? "/" : text;
}

} // namespace

struct PathLayout {
  FieldLocation path_mnt, path_dentry;
  FieldLocation dentry_parent, dentry_name, dentry_name_length, dentry_inode, dentry_hash, dentry_super, dentry_ops;
  FieldLocation dname_op;
  FieldLocation vfsmount_root, mount_vfsmount, mount_parent, mount_mountpoint;
  FieldLocation inode_number, super_type, type_name;
  std::optional<FieldLocation> kernfs_parent, kernfs_name;
  std::optional<FieldLocation> inode_private, namespace_ops, namespace_name, dentry_private, dma_buffer_name;

  static Result<PathLayout> resolve(const Kernel &kernel) {
    LayoutResolver layout(kernel.types());
    PathLayout f;
    f.path_mnt = layout.require("path", "mnt");
    f.path_dentry = layout.require("path", "dentry");
    f.dentry_parent = layout.require("dentry", "d_parent");
    f.dentry_name = layout.require("dentry", "d_name.name");
    f.dentry_name_length = layout.require("dentry", "d_name.len");
    f.dentry_inode = layout.require("dentry", "d_inode");
    f.dentry_hash = layout.require("dentry", "d_hash.pprev");
    f.dentry_super = layout.require("dentry", "d_sb");
    f.dentry_ops = layout.require("dentry", "d_op");
    f.dname_op = layout.require("dentry_operations", "d_dname");
    f.vfsmount_root = layout.require("vfsmount", "mnt_root");
    f.mount_vfsmount = layout.require("mount", "mnt");
    f.mount_parent = layout.require("mount", "mnt_parent");
    f.mount_mountpoint = layout.require("mount", "mnt_mountpoint");
    f.inode_number = layout.require("inode", "i_ino");
    f.super_type = layout.require("super_block", "s_type");
    f.type_name = layout.require("file_system_type", "name");
    f.kernfs_parent = layout.optional_any("kernfs_node", {"__parent", "parent"}); // renamed in 6.15, 633488947ef6
    f.kernfs_name = layout.optional("kernfs_node", "name");
    f.inode_private = layout.optional("inode", "i_private");
    f.namespace_ops = layout.optional("ns_common", "ops");
    f.namespace_name = layout.optional("proc_ns_operations", "name");
    f.dentry_private = layout.optional("dentry", "d_fsdata");
    f.dma_buffer_name = layout.optional("dma_buf", "name");
    TRY(layout.check());
    return f;
  }
};

Result<PathResolver> PathResolver::create(const Kernel &kernel) {
  TRY_ASSIGN(const PathLayout *layout, kernel.layout<PathLayout>());
  return PathResolver(kernel, *layout);
}

std::string PathResolver::name_of(Gva dentry) const {
  const auto length = kernel_->read_field(dentry, f_->dentry_name_length);
  const auto name = kernel_->read_pointer(dentry, f_->dentry_name);
  if (!length || !name)
    return "?";
  std::string text(std::min<std::size_t>(*length, name_limit), '\0');
  if (!kernel_->space().read(*name, std::as_writable_bytes(std::span(text))))
    return "?";
  return text;
}

std::optional<Gva> PathResolver::inode_of(Gva dentry) const { return kernel_->read_pointer(dentry, f_->dentry_inode); }

std::optional<ResolvedPath> PathResolver::resolve(Gva path) const {
  const auto mnt = kernel_->read_pointer(path, f_->path_mnt);
  const auto dentry = kernel_->read_pointer(path, f_->path_dentry);
  if (!mnt || !dentry || !*mnt || !*dentry)
    return std::nullopt;
  return resolve(*mnt, *dentry);
}

bool PathResolver::is_deleted(Gva dentry) const {
  const auto hash = kernel_->read_pointer(dentry, f_->dentry_hash);
  const auto parent = kernel_->read_pointer(dentry, f_->dentry_parent);
  return hash && parent && !*hash && *parent != dentry;
}

std::optional<ResolvedPath> PathResolver::pseudo_name(Gva dentry) const {
  const auto ops = kernel_->read_pointer(dentry, f_->dentry_ops);
  const auto dname = ops && *ops ? kernel_->read_pointer(*ops, f_->dname_op) : std::nullopt;
  if (!dname || !*dname)
    return std::nullopt;
  const auto super = kernel_->read_pointer(dentry, f_->dentry_super);
  const auto type = super ? kernel_->read_pointer(*super, f_->super_type) : std::nullopt;
  const auto type_name = type ? kernel_->read_pointer(*type, f_->type_name) : std::nullopt;
  const std::string filesystem = type_name ? kernel_->space().read_c_string(*type_name, 32).value_or("") : "";
  const auto inode = inode_of(dentry);
  const std::uint64_t number = inode ? kernel_->read_field(*inode, f_->inode_number).value_or(0) : 0;
  // A short text that hangs off `object` by two pointers.
  const auto text_at = [&](const std::optional<Gva> &object, const std::optional<FieldLocation> &member) {
    const auto text = object && *object && member ? kernel_->read_pointer(*object, *member) : std::nullopt;
    return text && *text ? kernel_->space().read_c_string(*text, name_limit).value_or("") : std::string();
  };
  ResolvedPath result;
  if (filesystem == "sockfs") {
    result.text = fmt::format("socket:[{}]", number);
  } else if (filesystem == "pipefs") {
    result.text = fmt::format("pipe:[{}]", number);
  } else if (filesystem == "anon_inodefs") {
    result.text = "anon_inode:" + name_of(dentry);
  } else if (filesystem == "pidfs") { // since 6.9, cb12fd8e0dab; before, pidfds were anonymous inodes
    result.text = "anon_inode:[pidfd]";
  } else if (filesystem == "nsfs") {
    const auto ns = inode && f_->inode_private ? kernel_->read_pointer(*inode, *f_->inode_private) : std::nullopt;
    const auto ns_ops = ns && *ns && f_->namespace_ops ? kernel_->read_pointer(*ns, *f_->namespace_ops) : std::nullopt;
    const std::string kind = text_at(ns_ops, f_->namespace_name);
    result.text = fmt::format("{}:[{}]", kind.empty() ? "ns" : kind, number);
  } else if (filesystem == "dmabuf") {
    const auto buffer = f_->dentry_private ? kernel_->read_pointer(dentry, *f_->dentry_private) : std::nullopt;
    result.text = fmt::format("/{}:{}", name_of(dentry), text_at(buffer, f_->dma_buffer_name));
  } else { // simple_dname(): memfd, shared anonymous memory, System V segments, aio rings
    result.text = "/" + name_of(dentry);
    result.deleted = true;
  }
  return result;
}

std::optional<ResolvedPath> PathResolver::resolve(Gva vfsmount, Gva dentry) const {
  const auto parent = kernel_->read_pointer(dentry, f_->dentry_parent);
  const auto mount_root = kernel_->read_pointer(vfsmount, f_->vfsmount_root);
  if (!parent || !mount_root)
    return std::nullopt;
  // Pseudo file systems name their own files (dentry_operations.d_dname); a file of theirs that is bound to a place in
  // the tree, as `ip netns` does with a namespace, has that place's name.
  if (*parent != dentry || *mount_root != dentry)
    if (auto name = pseudo_name(dentry))
      return name;
  ResolvedPath result = climb({vfsmount, dentry}, std::nullopt).path;
  result.deleted = is_deleted(dentry);
  return result;
}

std::optional<ResolvedPath> PathResolver::resolve_below(Gva root_vfsmount, Gva root, Gva vfsmount, Gva dentry) const {
  Climb climbed = climb({vfsmount, dentry}, Place{root_vfsmount, root});
  if (!climbed.met_root && !climbed.path.truncated)
    return std::nullopt;
  climbed.path.deleted = is_deleted(dentry);
  return std::move(climbed.path);
}

// prepend_path() in fs/d_path.c.
PathResolver::Climb PathResolver::climb(Place from, std::optional<Place> root) const {
  Climb result;
  std::vector<std::string> components;
  std::size_t length = 0;
  Gva mount = from.vfsmount - f_->mount_vfsmount.offset;
  Gva dentry = from.dentry;
  for (std::size_t depth = 0;; ++depth) {
    if (root && *root == Place{mount + f_->mount_vfsmount.offset, dentry}) {
      result.met_root = true;
      break;
    }
    if (depth >= depth_limit || length > text_limit) {
      result.path.truncated = true;
      break;
    }
    const auto mount_root = kernel_->read_pointer(mount + f_->mount_vfsmount.offset, f_->vfsmount_root);
    const auto parent = kernel_->read_pointer(dentry, f_->dentry_parent);
    if (!mount_root || !parent) {
      result.path.truncated = true;
      break;
    }
    if (dentry == *mount_root || dentry == *parent) {
      const auto parent_mount = kernel_->read_pointer(mount, f_->mount_parent);
      const auto mountpoint = kernel_->read_pointer(mount, f_->mount_mountpoint);
      if (!parent_mount || !mountpoint) {
        result.path.truncated = true;
        break;
      }
      if (*parent_mount == mount || dentry != *mount_root)
        break; // the namespace's root, or a dentry outside its mount
      mount = *parent_mount;
      dentry = *mountpoint;
      continue;
    }
    components.push_back(name_of(dentry));
    length += components.back().size() + 1;
    dentry = *parent;
  }
  result.path.text = (result.path.truncated ? "..." : "") + join(components);
  return result;
}

std::optional<ResolvedPath> PathResolver::within_filesystem(Gva dentry) const {
  ResolvedPath result;
  std::vector<std::string> components;
  std::size_t length = 0;
  while (true) {
    const auto parent = kernel_->read_pointer(dentry, f_->dentry_parent);
    if (!parent || components.size() >= depth_limit || length > text_limit) {
      result.truncated = true;
      break;
    }
    if (*parent == dentry)
      break;
    components.push_back(name_of(dentry));
    length += components.back().size() + 1;
    dentry = *parent;
  }
  result.text = (result.truncated ? "..." : "") + join(components);
  return result;
}

std::optional<std::string> PathResolver::kernfs_path(Gva node) const {
  if (!f_->kernfs_parent || !f_->kernfs_name)
    return std::nullopt;
  std::vector<std::string> components;
  while (components.size() < depth_limit) {
    const auto parent = kernel_->read_pointer(node, *f_->kernfs_parent);
    if (!parent)
      return std::nullopt;
    if (!*parent)
      return join(components);
    const auto name = kernel_->read_pointer(node, *f_->kernfs_name);
    components.push_back(name ? kernel_->space().read_c_string(*name, name_limit).value_or("?") : "?");
    node = *parent;
  }
  return std::nullopt;
}

} // namespace lararium::linux_guest
