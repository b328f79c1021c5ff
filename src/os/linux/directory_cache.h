// Looking paths up in the guest's cache of directory entries, as the kernel's path walk does.
#pragma once

#include "lararium/os/linux/paths.h"
#include "mounts.h"
#include "page_cache.h"
#include "vfs.h"

#include <string_view>
#include <unordered_map>
#include <vector>

namespace lararium::linux_guest {

struct DirectoryLayout;

// A snapshot of one process' mounts; make one per view. Finds what is in the cache: files that were used since boot and
// not forgotten for want of memory. What was never looked up by the guest cannot be found without its file systems.
class DirectoryCache {
public:
  // As `task` sees the tree.
  [[nodiscard]] static Result<DirectoryCache> create(const Kernel &kernel, Gva task);

  // The inodes that an absolute path leads to: one. Follows symbolic links (not those of /proc) and mounts. `deleted`:
  // of files of that name that were unlinked and are still in use; there can be several.
  [[nodiscard]] Result<std::vector<Gva>> find(std::string_view path, bool deleted) const;

private:
  DirectoryCache(const Kernel &kernel, const DirectoryLayout &layout, const VfsLayout &vfs, PathResolver paths,
                 PageCache pages)
      : kernel_(&kernel), f_(&layout), vfs_(&vfs), paths_(paths), pages_(pages) {}
  struct Position {
    Gva mount, dentry;
    bool operator==(const Position &) const = default;
  };
  struct Children {
    std::vector<Gva> linked, unlinked;
  };
  [[nodiscard]] Children children(Gva directory, std::string_view name) const;
  [[nodiscard]] Position enter_mounts(Position at) const;
  [[nodiscard]] Position up(Position at) const;
  [[nodiscard]] Result<std::string> link_target(Gva inode) const;

  const Kernel *kernel_;
  const DirectoryLayout *f_; // kept by the kernel
  const VfsLayout *vfs_;
  PathResolver paths_;
  PageCache pages_;
  Position root_;
  std::unordered_map<std::uint64_t, MountNode> mounts_;           // by address
  std::unordered_multimap<std::uint64_t, std::uint64_t> covered_; // mountpoint -> mount
};

} // namespace lararium::linux_guest
