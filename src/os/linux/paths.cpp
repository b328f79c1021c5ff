#include "paths.h"

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

Result<PathResolver> PathResolver::create(const Kernel &kernel) {
  PathResolver resolver(kernel);
  LayoutResolver layout(kernel.types());
  resolver.path_mnt_ = layout.require("path", "mnt");
  resolver.path_dentry_ = layout.require("path", "dentry");
  resolver.dentry_parent_ = layout.require("dentry", "d_parent");
  resolver.dentry_name_ = layout.require("dentry", "d_name.name");
  resolver.dentry_name_length_ = layout.require("dentry", "d_name.len");
  resolver.dentry_inode_ = layout.require("dentry", "d_inode");
  resolver.dentry_hash_ = layout.require("dentry", "d_hash.pprev");
  resolver.dentry_super_ = layout.require("dentry", "d_sb");
  resolver.dentry_ops_ = layout.require("dentry", "d_op");
  resolver.dname_op_ = layout.require("dentry_operations", "d_dname");
  resolver.vfsmount_root_ = layout.require("vfsmount", "mnt_root");
  resolver.mount_vfsmount_ = layout.require("mount", "mnt");
  resolver.mount_parent_ = layout.require("mount", "mnt_parent");
  resolver.mount_mountpoint_ = layout.require("mount", "mnt_mountpoint");
  resolver.mount_namespace_ = layout.require("mount", "mnt_ns");
  resolver.inode_number_ = layout.require("inode", "i_ino");
  resolver.super_magic_ = layout.require("super_block", "s_magic");
  resolver.super_type_ = layout.require("super_block", "s_type");
  resolver.type_name_ = layout.require("file_system_type", "name");
  resolver.kernfs_parent_ = layout.optional_any("kernfs_node", {"__parent", "parent"}); // renamed in 6.15, 633488947ef6
  resolver.kernfs_name_ = layout.optional("kernfs_node", "name");
  TRY(layout.check());
  return resolver;
}

std::string PathResolver::name_of(Gva dentry) const {
  const auto length = kernel_->read_field(dentry, dentry_name_length_);
  const auto name = kernel_->read_pointer(dentry, dentry_name_);
  if (!length || !name)
    return "?";
  std::string text(std::min<std::size_t>(*length, name_limit), '\0');
  if (!kernel_->space().read(*name, std::as_writable_bytes(std::span(text))))
    return "?";
  return text;
}

std::optional<Gva> PathResolver::inode_of(Gva dentry) const { return kernel_->read_pointer(dentry, dentry_inode_); }

std::optional<ResolvedPath> PathResolver::resolve(Gva path) const {
  const auto mnt = kernel_->read_pointer(path, path_mnt_);
  const auto dentry = kernel_->read_pointer(path, path_dentry_);
  if (!mnt || !dentry || !*mnt || !*dentry)
    return std::nullopt;
  return resolve(*mnt, *dentry);
}

std::optional<ResolvedPath> PathResolver::resolve(Gva vfsmount, Gva dentry) const {
  ResolvedPath result;
  const auto hash = kernel_->read_pointer(dentry, dentry_hash_);
  const auto first_parent = kernel_->read_pointer(dentry, dentry_parent_);
  if (!hash || !first_parent)
    return std::nullopt;
  result.deleted = !*hash && *first_parent != dentry;

  // Pseudo file systems name their own files (dentry_operations.d_dname): pipefs, sockfs, anon_inodefs, nsfs, dma-buf;
  // and shmem's for memfd and shared anonymous memory. A hashed or parented dentry with d_dname is an ordinary one.
  if (const auto ops = kernel_->read_pointer(dentry, dentry_ops_); ops && *ops && *first_parent == dentry) {
    if (const auto dname = kernel_->read_pointer(*ops, dname_op_); dname && *dname) {
      const auto super = kernel_->read_pointer(dentry, dentry_super_);
      const auto type = super ? kernel_->read_pointer(*super, super_type_) : std::nullopt;
      const auto type_name = type ? kernel_->read_pointer(*type, type_name_) : std::nullopt;
      const std::string filesystem = type_name ? kernel_->space().read_c_string(*type_name, 32).value_or("") : "";
      const auto inode = inode_of(dentry);
      const std::uint64_t number = inode ? kernel_->read_field(*inode, inode_number_).value_or(0) : 0;
      if (filesystem == "sockfs")
        result.text = fmt::format("socket:[{}]", number);
      else if (filesystem == "pipefs")
        result.text = fmt::format("pipe:[{}]", number);
      else if (filesystem == "anon_inodefs")
        result.text = fmt::format("anon_inode:{}", name_of(dentry));
      else if (filesystem == "nsfs")
        result.text = fmt::format("{}:[{}]", name_of(dentry) == "/" ? "ns" : name_of(dentry), number);
      else
        result.text = fmt::format("/{}", name_of(dentry));
      result.deleted =
          filesystem != "sockfs" && filesystem != "pipefs" && filesystem != "anon_inodefs" && filesystem != "nsfs";
      return result;
    }
  }

  std::vector<std::string> components;
  std::size_t length = 0;
  Gva mount = vfsmount - mount_vfsmount_.offset;
  for (std::size_t depth = 0;; ++depth) {
    if (depth >= depth_limit || length > text_limit) {
      result.truncated = true;
      break;
    }
    const auto root = kernel_->read_pointer(mount + mount_vfsmount_.offset, vfsmount_root_);
    const auto parent = kernel_->read_pointer(dentry, dentry_parent_);
    if (!root || !parent) {
      result.truncated = true;
      break;
    }
    if (dentry == *root || dentry == *parent) {
      const auto parent_mount = kernel_->read_pointer(mount, mount_parent_);
      const auto mountpoint = kernel_->read_pointer(mount, mount_mountpoint_);
      if (!parent_mount || !mountpoint) {
        result.truncated = true;
        break;
      }
      if (*parent_mount == mount || dentry != *root)
        break; // the namespace's root, or a dentry outside its mount
      mount = *parent_mount;
      dentry = *mountpoint;
      continue;
    }
    components.push_back(name_of(dentry));
    length += components.back().size() + 1;
    dentry = *parent;
  }
  result.text = join(components);
  if (result.truncated)
    result.text = "..." + result.text;
  return result;
}

std::optional<ResolvedPath> PathResolver::within_filesystem(Gva dentry) const {
  ResolvedPath result;
  std::vector<std::string> components;
  std::size_t length = 0;
  while (true) {
    const auto parent = kernel_->read_pointer(dentry, dentry_parent_);
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
  if (!kernfs_parent_ || !kernfs_name_)
    return std::nullopt;
  std::vector<std::string> components;
  while (components.size() < depth_limit) {
    const auto parent = kernel_->read_pointer(node, *kernfs_parent_);
    if (!parent)
      return std::nullopt;
    if (!*parent)
      return join(components);
    const auto name = kernel_->read_pointer(node, *kernfs_name_);
    components.push_back(name ? kernel_->space().read_c_string(*name, name_limit).value_or("?") : "?");
    node = *parent;
  }
  return std::nullopt;
}

} // namespace lararium::linux_guest
