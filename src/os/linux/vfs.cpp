#include "vfs.h"

#include <fmt/format.h>

#include <algorithm>

namespace lararium::linux_guest {
namespace {

// FMODE_BACKING in include/linux/fs.h, bit 25 since 6.5 and bit 24 since 6.14, when bit 25 became FMODE_NONOTIFY. No
// type tells which, so that either asks for the structure behind the file to prove itself.
constexpr std::uint64_t fmode_backing = 3 << 24;

} // namespace

Result<VfsLayout> VfsLayout::resolve(const Kernel &kernel) {
  LayoutResolver layout(kernel.types());
  VfsLayout f;
  f.file_path = layout.require_any("file", {"f_path", "__f_path"});
  f.file_flags = layout.require("file", "f_flags");
  f.file_mode = layout.require("file", "f_mode");
  f.file_position = layout.require("file", "f_pos");
  f.file_inode = layout.require("file", "f_inode");
  f.file_mapping = layout.require("file", "f_mapping");
  f.backing_user_path = layout.optional("backing_file", "user_path");
  f.inode_number = layout.require("inode", "i_ino");
  f.inode_mode = layout.require("inode", "i_mode");
  f.inode_size = layout.require("inode", "i_size");
  f.inode_links = layout.require_any("inode", {"i_nlink", "__i_nlink"});
  f.inode_super = layout.require("inode", "i_sb");
  f.inode_device = layout.require("inode", "i_rdev");
  f.inode_mapping = layout.require("inode", "i_mapping");
  f.inode_flags = layout.require("inode", "i_flags");
  f.super_device = layout.require("super_block", "s_dev");
  f.super_flags = layout.require("super_block", "s_flags");
  f.super_type = layout.require("super_block", "s_type");
  f.super_magic = layout.require("super_block", "s_magic");
  f.super_subtype = layout.optional("super_block", "s_subtype");
  f.type_name = layout.require("file_system_type", "name");
  f.path_mnt = layout.require("path", "mnt");
  f.path_dentry = layout.require("path", "dentry");
  f.dentry_inode = layout.require("dentry", "d_inode");
  f.dentry_parent = layout.require("dentry", "d_parent");
  f.dentry_super = layout.require("dentry", "d_sb");
  f.vfsmount_super = layout.require("vfsmount", "mnt_sb");
  f.file_size = layout.require_size("file");
  f.inode_bytes = layout.require_size("inode");
  TRY(layout.check());
  return f;
}

Gva VfsLayout::shown_path(const Kernel &kernel, Gva file) const {
  if (backing_user_path && (kernel.read_field(file, file_mode).value_or(0) & fmode_backing) != 0) {
    // A struct backing_file has a path behind its struct file: a dentry of the very file system that its mount is of.
    const Gva user_path = file + backing_user_path->offset;
    const auto mount = kernel.read_pointer(user_path, path_mnt);
    const auto dentry = kernel.read_pointer(user_path, path_dentry);
    if (mount && dentry && kernel.is_kernel_address(*mount) && kernel.is_kernel_address(*dentry)) {
      const auto of_mount = kernel.read_pointer(*mount, vfsmount_super);
      if (of_mount && *of_mount && of_mount == kernel.read_pointer(*dentry, dentry_super))
        return user_path;
    }
  }
  return file + file_path.offset;
}

DeviceNumber VfsLayout::device_of(const Kernel &kernel, Gva inode) const {
  const auto super_block = kernel.read_pointer(inode, inode_super);
  if (!super_block || !*super_block)
    return {};
  return device_number(kernel.read_field(*super_block, super_device).value_or(0));
}

std::string VfsLayout::filesystem_of(const Kernel &kernel, Gva super_block) const {
  const auto type = kernel.read_pointer(super_block, super_type);
  const auto name = type && *type ? kernel.read_pointer(*type, type_name) : std::nullopt;
  return name ? kernel.space().read_c_string(*name, 64).value_or("") : "";
}

std::optional<Gva> TaskGroup::first(const Kernel &kernel, const FieldLocation &member, ViewStatus &status,
                                    std::string_view what) const {
  for (const Gva task : tasks) {
    const auto target = kernel.read_pointer(task, member);
    if (!target || !*target)
      continue;
    if (kernel.is_kernel_address(*target) && kernel.space().read<std::uint8_t>(*target))
      return target;
    status.raced = true;
    status.warn(fmt::format("the {} of process {} leads out of readable kernel memory", what, pid));
  }
  return std::nullopt;
}

Result<std::vector<TaskGroup>> list_task_groups(const Kernel &kernel, std::optional<std::int32_t> pid,
                                                ViewStatus &status) {
  TRY_ASSIGN(const auto tasks, list_tasks(kernel, true, status));
  std::vector<TaskGroup> groups;
  for (const TaskEntry &entry : tasks) {
    if (pid && entry.tgid != *pid)
      continue;
    if (groups.empty() || groups.back().pid != entry.tgid)
      groups.push_back({entry.tgid, {}});
    auto &members = groups.back().tasks;
    members.push_back(entry.task);
    if (entry.pid == entry.tgid)
      std::swap(members.front(), members.back());
  }
  if (pid && groups.empty())
    for (const TaskEntry &entry : tasks)
      if (entry.pid == *pid)
        return std::vector{TaskGroup{entry.pid, {entry.task}}};
  if (pid && groups.empty())
    return fail(ErrorCode::not_found, "the guest has no process " + std::to_string(*pid));
  return groups;
}

std::size_t object_limit(const Kernel &kernel, std::uint64_t size) {
  return kernel.memory().total_size() / std::max<std::uint64_t>(size, 16) + 64;
}

std::string describe(const WalkResult &walk, std::string_view what) {
  switch (walk.end) {
  case WalkEnd::broken: return std::string(what) + " leads out of readable kernel memory";
  case WalkEnd::cyclic: return std::string(what) + " runs in a circle";
  case WalkEnd::limit: return std::string(what) + " is longer than this guest can have";
  case WalkEnd::complete:
  case WalkEnd::stopped: break;
  }
  return std::string(what) + " contradicts itself";
}

} // namespace lararium::linux_guest
