// Mounts of a mount namespace: /proc/PID/mountinfo.
#pragma once

#include "lararium/os/common/views.h"
#include "lararium/os/linux/list.h"
#include "vfs.h"

#include <optional>
#include <vector>

namespace lararium::linux_guest {

struct MountNode { // one struct mount, with the links that say where it hangs
  Gva mount;
  Gva vfsmount;         // what struct path holds
  Gva parent;           // struct mount; itself for the root of all
  Gva mountpoint, root; // dentries: what it covers, and what is seen instead
};

struct MountLayout;

// Reads mount namespaces (struct mnt_namespace).
class MountReader {
public:
  [[nodiscard]] static Result<MountReader> create(const Kernel &kernel);

  struct Root { // of a task: its root directory and mount namespace
    Gva name_space, vfsmount, dentry;
  };
  [[nodiscard]] std::optional<Root> root_of(Gva task) const;

  // The mounts of a namespace in the kernel's order: from the tree since 6.8, from the list before. Walked again, up to
  // four times, when the guest changes them meanwhile; `status` tells.
  [[nodiscard]] std::vector<MountNode> mounts(Gva name_space, ViewStatus &status) const;
  // As a process with that root sees it; nothing when the mount is not below its root, or cannot be read.
  [[nodiscard]] std::optional<Mount> describe(const MountNode &node, const Root &root) const;

private:
  MountReader(const Kernel &kernel, const MountLayout &layout, const VfsLayout &vfs, PathResolver paths)
      : kernel_(&kernel), f_(&layout), vfs_(&vfs), paths_(paths) {}
  [[nodiscard]] std::optional<MountNode> node(Gva mount) const;
  [[nodiscard]] WalkResult walk_namespace(Gva name_space, std::vector<MountNode> &found) const;
  [[nodiscard]] std::string options(Gva vfsmount, std::uint64_t flags) const;
  [[nodiscard]] std::string text(Gva object, const FieldLocation &pointer) const;

  const Kernel *kernel_;
  const MountLayout *f_; // kept by the kernel
  const VfsLayout *vfs_;
  PathResolver paths_;
};

// With `pid`, of that process' namespace, as it sees them; else of the first process.
//
// super_options holds what every file system has (ro, rw, sync, dirsync, mand, lazytime). The options of one file
// system alone (size=, mode=, subvol=) are printed by its own code from its own structures and are not rebuilt; nor is
// the device name where a file system overrides it (NFS, btrfs).
[[nodiscard]] Result<View<Mount>> read_mounts(const Kernel &kernel, std::optional<std::int32_t> pid);

} // namespace lararium::linux_guest
