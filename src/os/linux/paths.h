// Paths from dentries and mounts, as the kernel's d_path() makes them.
#pragma once

#include "kernel.h"

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
  // From the dentry to the root of its file system only.
  [[nodiscard]] std::optional<ResolvedPath> within_filesystem(Gva dentry) const;
  [[nodiscard]] std::string name_of(Gva dentry) const;
  [[nodiscard]] std::optional<Gva> inode_of(Gva dentry) const;

  // The path in a kernfs tree (cgroup, sysfs) from its root: "/system.slice/ssh.service".
  [[nodiscard]] std::optional<std::string> kernfs_path(Gva node) const;

private:
  PathResolver(const Kernel &kernel, const PathLayout &layout) : kernel_(&kernel), f_(&layout) {}
  const Kernel *kernel_;
  const PathLayout *f_; // kept by the kernel
};

} // namespace lararium::linux_guest
