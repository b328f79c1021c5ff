#include "directory_cache.h"

#include <algorithm>
#include <deque>
#include <fmt/format.h>

namespace lararium::linux_guest {
namespace {

constexpr std::size_t attempts = 4;
constexpr std::size_t link_limit = 40;        // MAXSYMLINKS
constexpr std::size_t component_limit = 4096; // twice what PATH_MAX allows, for what links add
constexpr std::size_t mount_depth_limit = 256;
constexpr std::size_t target_limit = 4096; // PATH_MAX

void prepend(std::deque<std::string> &parts, std::string_view path) {
  std::vector<std::string> found;
  while (!path.empty()) {
    const auto slash = path.find('/');
    if (const auto part = path.substr(0, slash); !part.empty() && part != ".")
      found.emplace_back(part);
    path = slash == std::string_view::npos ? std::string_view() : path.substr(slash + 1);
  }
  parts.insert(parts.begin(), found.begin(), found.end());
}

} // namespace

struct DirectoryLayout {
  FieldLocation name_length, link_text;
  std::optional<FieldLocation> hash_list, hash_node, list, list_node;
  std::uint64_t dentry_size = 0;

  static Result<DirectoryLayout> resolve(const Kernel &kernel) {
    LayoutResolver layout(kernel.types());
    DirectoryLayout f;
    f.dentry_size = layout.require_size("dentry");
    f.name_length = layout.require("dentry", "d_name.len");
    f.link_text = layout.require("inode", "i_link");
    // A directory's children: a hash list since 6.8 (da549bdd15c2), a list before.
    f.hash_list = layout.optional("dentry", "d_children");
    if (f.hash_list) {
      f.hash_node = layout.require("dentry", "d_sib");
    } else {
      f.list = layout.require("dentry", "d_subdirs");
      f.list_node = layout.require("dentry", "d_child");
    }
    TRY(layout.check());
    return f;
  }
};

Result<DirectoryCache> DirectoryCache::create(const Kernel &kernel, Gva task) {
  TRY_ASSIGN(const DirectoryLayout *layout, kernel.layout<DirectoryLayout>());
  TRY_ASSIGN(const VfsLayout *vfs, kernel.layout<VfsLayout>());
  TRY_ASSIGN(const auto paths, PathResolver::create(kernel));
  TRY_ASSIGN(const auto pages, PageCache::create(kernel));
  TRY_ASSIGN(const auto mounts, MountReader::create(kernel));
  DirectoryCache r(kernel, *layout, *vfs, paths, pages);
  const auto root = mounts.root_of(task);
  if (!root)
    return fail(ErrorCode::not_found, "the process has no root directory any more");
  ViewStatus status;
  for (const MountNode &node : mounts.mounts(root->name_space, status)) {
    r.mounts_.emplace(node.mount.value, node);
    r.covered_.emplace(node.mountpoint.value, node.mount.value);
    if (node.vfsmount == root->vfsmount)
      r.root_.mount = node.mount;
  }
  r.root_.dentry = root->dentry;
  if (!r.root_.mount)
    return fail(ErrorCode::corrupt, "the process' root directory is on none of its mounts");
  return r;
}

DirectoryCache::Children DirectoryCache::children(Gva directory, std::string_view name) const {
  Children found;
  for (std::size_t attempt = 0; attempt < attempts; ++attempt) {
    found = {};
    const auto consider = [&](Gva dentry) {
      const auto length = kernel_->read_field(dentry, f_->name_length);
      const auto inode = paths_.inode_of(dentry);
      if (length == name.size() && inode && *inode && paths_.name_of(dentry) == name)
        (paths_.is_deleted(dentry) ? found.unlinked : found.linked).push_back(dentry);
      return true;
    };
    WalkResult walk;
    if (f_->hash_list) {
      const auto first = kernel_->read_pointer(directory, *f_->hash_list); // hlist_head holds one pointer
      walk = walk_chain(*kernel_, first.value_or(Gva{}), 0, object_limit(*kernel_, f_->dentry_size),
                        [&](Gva link) { return consider(link - f_->hash_node->offset); });
    } else {
      walk = walk_list(*kernel_, directory + f_->list->offset, object_limit(*kernel_, f_->dentry_size),
                       [&](Gva link) { return consider(link - f_->list_node->offset); });
    }
    if (walk.consistent())
      break;
  }
  return found;
}

// Down through what is mounted on a directory, and on the root of that, and so on.
DirectoryCache::Position DirectoryCache::enter_mounts(Position at) const {
  for (std::size_t depth = 0; depth < mount_depth_limit; ++depth) {
    const auto [begin, end] = covered_.equal_range(at.dentry.value);
    const auto next = std::find_if(begin, end, [&](const auto &entry) {
      const MountNode &node = mounts_.at(entry.second);
      return node.parent == at.mount && node.mount != at.mount;
    });
    if (next == end)
      break;
    const MountNode &node = mounts_.at(next->second);
    at = {node.mount, node.root};
  }
  return at;
}

DirectoryCache::Position DirectoryCache::up(Position at) const {
  for (std::size_t depth = 0; depth < mount_depth_limit && at != root_; ++depth) {
    const auto mount = mounts_.find(at.mount.value);
    if (mount == mounts_.end())
      return at;
    if (at.dentry != mount->second.root) {
      at.dentry = kernel_->read_pointer(at.dentry, vfs_->dentry_parent).value_or(at.dentry);
      break;
    }
    if (mount->second.parent == at.mount)
      break;
    at = {mount->second.parent, mount->second.mountpoint};
  }
  return at == root_ ? at : enter_mounts(at);
}

Result<std::string> DirectoryCache::link_target(Gva inode) const {
  if (const auto text = kernel_->read_pointer(inode, f_->link_text); text && kernel_->is_kernel_address(*text))
    if (auto target = kernel_->space().read_c_string(*text, target_limit); target && !target->empty())
      return *std::move(target);
  // Long links of file systems on disks lie in the page cache.
  const auto mapping = kernel_->read_pointer(inode, vfs_->inode_mapping);
  const auto size = kernel_->read_field(inode, vfs_->inode_size);
  std::string target;
  if (mapping && kernel_->is_kernel_address(*mapping) && size && *size <= target_limit) {
    CachedFile cached;
    TRY(pages_.read(
        *mapping, *size,
        [&](std::uint64_t, Bytes bytes) -> Result<void> {
          target.append(reinterpret_cast<const char *>(bytes.data()), bytes.size());
          return {};
        },
        cached));
  }
  if (target.empty() || (size && target.size() != *size))
    return fail(ErrorCode::unsupported, "the target of a symbolic link on the way is not in memory");
  return target;
}

Result<std::vector<Gva>> DirectoryCache::find(std::string_view path, bool deleted) const {
  if (!path.starts_with('/'))
    return fail(ErrorCode::usage, "the path is not absolute");
  std::deque<std::string> parts;
  prepend(parts, path);
  Position at = enter_mounts(root_);
  std::string walked;
  std::size_t links = 0;
  for (std::size_t steps = 0; !parts.empty(); ++steps) {
    if (steps >= component_limit)
      return fail(ErrorCode::usage, "the path has too many components");
    const std::string name = std::move(parts.front());
    parts.pop_front();
    if (name == "..") {
      at = up(at);
      walked += "/..";
      continue;
    }
    walked += "/" + name;
    const Children found = children(at.dentry, name);
    // A deleted file can lie in a deleted directory. Of a directory's name that is used again, the one in use is meant.
    const auto &candidates = deleted && (parts.empty() || found.linked.empty()) ? found.unlinked : found.linked;
    if (candidates.empty())
      return fail(ErrorCode::not_found,
                  fmt::format("{}{} is not in the guest's directory cache", walked, deleted ? " (deleted)" : ""));
    if (parts.empty() && candidates.size() > 1) {
      std::vector<Gva> inodes;
      for (const Gva dentry : candidates)
        if (const auto inode = paths_.inode_of(dentry); inode && *inode)
          inodes.push_back(*inode);
      return inodes;
    }
    const Position next = enter_mounts({at.mount, candidates.front()});
    const auto inode = paths_.inode_of(next.dentry);
    if (!inode || !kernel_->is_kernel_address(*inode))
      return fail(ErrorCode::not_found, walked + " went away while it was looked up");
    const auto mode = kernel_->read_field(*inode, vfs_->inode_mode).value_or(0);
    if ((mode & file_mode::mask) == file_mode::link) {
      if (++links > link_limit)
        return fail(ErrorCode::usage, walked + " has too many symbolic links");
      TRY_ASSIGN(const std::string target, link_target(*inode));
      prepend(parts, target);
      if (target.starts_with('/')) {
        at = enter_mounts(root_);
        walked.clear();
      }
      continue; // else relative to the directory that holds the link: `at` stays
    }
    at = next;
  }
  const auto inode = paths_.inode_of(at.dentry);
  if (!inode || !*inode)
    return fail(ErrorCode::not_found, "the path is not in the guest's directory cache");
  return std::vector{*inode};
}

} // namespace lararium::linux_guest
