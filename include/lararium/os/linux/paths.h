// Paths from dentries and mounts, as the kernel's d_path() makes them.
#pragma once

#include "lararium/os/linux/kernel.h"

#include <string>

namespace lararium::linux_guest {

struct ResolvedPath {
  std::string text;       // without " (deleted)"
  bool deleted = false;   // the dentry is unhashed and not a root
  bool truncated = false; // deeper or longer than the limits, or a link was not readable: the text starts with "..."
};

struct PathLayout;

// Resolves paths for one kernel.
class PathResolver {
public:
  [[nodiscard]] static Result<PathResolver> create(const Kernel &kernel);

  // `path` is the address of a struct path (of file.f_path, fs.pwd, ...): its full path in its mount namespace, up to
  // the namespace's root. For a pseudo file system without a place in the tree (pipes, sockets, anon_inode, memfd) the
  // name that its file system gives, as in /proc/PID/fd: "socket:[1234]".
  [[nodiscard]] std::optional<ResolvedPath> resolve(Gva path) const;
  [[nodiscard]] std::optional<ResolvedPath> resolve(Gva vfsmount, Gva dentry) const;
  // The same, but as a process whose root directory is (root_vfsmount, root) sees it; nothing when that root is not
  // above it.
  [[nodiscard]] std::optional<ResolvedPath> resolve_below(Gva root_vfsmount, Gva root, Gva vfsmount, Gva dentry) const;
  // From the dentry to the root of its file system only.
  [[nodiscard]] std::optional<ResolvedPath> within_filesystem(Gva dentry) const;
  [[nodiscard]] std::string name_of(Gva dentry) const;
  [[nodiscard]] std::optional<Gva> inode_of(Gva dentry) const;
  // Whether the dentry was unlinked (d_unlinked()).
  [[nodiscard]] bool is_deleted(Gva dentry) const;
  // The name that a pseudo file system gives its files: "pipe:[12]", "net:[4026531840]", "/memfd:x" (deleted).
  [[nodiscard]] std::optional<ResolvedPath> pseudo_name(Gva dentry) const;

  // The path in a kernfs tree (cgroup, sysfs) from its root: "/system.slice/ssh.service".
  [[nodiscard]] std::optional<std::string> kernfs_path(Gva node) const;

private:
  PathResolver(const Kernel &kernel, const PathLayout &layout) : kernel_(&kernel), f_(&layout) {}
  const Kernel *kernel_;
  const PathLayout *f_; // kept by the kernel

  struct Place { // a position in the tree of mounts
    Gva vfsmount, dentry;
    bool operator==(const Place &) const = default;
  };
  struct Climb {
    ResolvedPath path;
    bool met_root = false; // ended at `root`
  };
  [[nodiscard]] Climb climb(Place from, std::optional<Place> root) const;
};

} // namespace lararium::linux_guest
