// Members of the virtual file system's structures that several views read.
#pragma once

#include "lararium/os/linux/kernel.h"
#include "lararium/os/linux/paths.h"
#include "lararium/os/linux/tasks.h"

#include <cstdint>
#include <string>
#include <vector>

namespace lararium::linux_guest {

// The kernel's own dev_t (include/linux/kdev_t.h): 12 bits major, 20 bits minor.
struct DeviceNumber {
  std::uint32_t major = 0, minor = 0;
  bool operator==(const DeviceNumber &) const = default;
};
constexpr DeviceNumber device_number(std::uint64_t dev) {
  return {static_cast<std::uint32_t>(dev >> 20 & 0xfff), static_cast<std::uint32_t>(dev & 0xfffff)};
}

namespace file_mode { // S_IFMT of i_mode
inline constexpr std::uint32_t mask = 0170000, socket = 0140000, link = 0120000, regular = 0100000, block = 0060000,
                               directory = 0040000, character = 0020000, fifo = 0010000;
}

struct VfsLayout {
  FieldLocation file_path, file_flags, file_mode, file_position, file_inode, file_mapping;
  // struct backing_file, what overlayfs and others map in place of the file that was opened; since 6.8 (def3ae83da02)
  // /proc shows the latter.
  std::optional<FieldLocation> backing_user_path;
  FieldLocation inode_number, inode_mode, inode_size, inode_links, inode_super, inode_device, inode_mapping,
      inode_flags;
  FieldLocation super_device, super_flags, super_type, super_magic, type_name;
  std::optional<FieldLocation> super_subtype;
  FieldLocation path_mnt, path_dentry, dentry_inode, dentry_parent, dentry_super, vfsmount_super;
  std::uint64_t file_size = 0, inode_bytes = 0; // of the structures

  [[nodiscard]] static Result<VfsLayout> resolve(const Kernel &kernel);

  // The path that /proc shows for an open or mapped file: the address of its struct path.
  [[nodiscard]] Gva shown_path(const Kernel &kernel, Gva file) const;
  // The device that an inode lies on.
  [[nodiscard]] DeviceNumber device_of(const Kernel &kernel, Gva inode) const;
  // "ext4", "tmpfs"; empty when it cannot be read.
  [[nodiscard]] std::string filesystem_of(const Kernel &kernel, Gva super_block) const;
};

// The tasks of one process, its leader first.
struct TaskGroup {
  std::int32_t pid = 0;
  std::vector<Gva> tasks;

  // What `member`, a pointer in task_struct, points to. A leader that ended loses its memory and files while other
  // threads go on; then theirs is taken. Nothing when no task has one. A pointer that leads out of the kernel's memory
  // is left out, and the status says so.
  [[nodiscard]] std::optional<Gva> first(const Kernel &kernel, const FieldLocation &member, ViewStatus &status,
                                         std::string_view what) const;
};

// All processes; or, with `pid`, that process, or that thread alone where `pid` is a thread's. not_found when there is
// none.
[[nodiscard]] Result<std::vector<TaskGroup>> list_task_groups(const Kernel &kernel, std::optional<std::int32_t> pid,
                                                              ViewStatus &status);

// How many objects of `size` bytes the guest's memory can hold: more are a lie.
[[nodiscard]] std::size_t object_limit(const Kernel &kernel, std::uint64_t size);

// The sentence for a walk that did not end well.
[[nodiscard]] std::string describe(const WalkResult &walk, std::string_view what);

} // namespace lararium::linux_guest
