#include "recover.h"

#include "directory_cache.h"
#include "files.h"
#include "lararium/os/linux/fdtable.h"
#include "maps.h"
#include "page_cache.h"
#include "vfs.h"

#include <algorithm>
#include <charconv>
#include <fmt/format.h>
#include <set>
#include <unordered_set>

namespace lararium::linux_guest {
namespace {

constexpr std::string_view deleted_mark = " (deleted)";
constexpr std::uint64_t dax_inode = 1 << 13;                                        // S_DAX, include/linux/fs.h
constexpr std::uint64_t hugetlbfs_magic = 0x958458f6, overlayfs_magic = 0x794c7630; // uapi/linux/magic.h
constexpr std::size_t super_block_limit = 1 << 20;

// Decimal numbers with colons between them, all of the text.
std::optional<std::vector<std::uint64_t>> numbers(std::string_view text) {
  std::vector<std::uint64_t> result;
  while (result.size() < 4) {
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc())
      return std::nullopt;
    result.push_back(value);
    text.remove_prefix(static_cast<std::size_t>(end - text.data()));
    if (text.empty())
      return result;
    if (!text.starts_with(':'))
      return std::nullopt;
    text.remove_prefix(1);
  }
  return std::nullopt;
}

struct Found {
  Gva inode;
  Gva mapping;
};

class Finder {
public:
  Finder(const Kernel &kernel, const VfsLayout &vfs) : kernel_(kernel), f_(vfs) {}

  Result<Found> find(std::string_view what) const {
    if (what.starts_with("fd:"))
      return by_descriptor(what.substr(3));
    if (what.starts_with("inode:"))
      return by_inode(what.substr(6));
    return by_path(what);
  }

private:
  Result<Found> of_inode(Gva inode) const {
    const auto mapping = kernel_.read_pointer(inode, f_.inode_mapping);
    if (!mapping)
      return fault(inode);
    return Found{inode, *mapping};
  }

  Result<Found> by_descriptor(std::string_view text) const {
    const auto parts = numbers(text);
    if (!parts || parts->size() != 2 || parts->at(0) > INT32_MAX || parts->at(1) > INT32_MAX)
      return fail(ErrorCode::usage, "a descriptor is given as fd:PID:NUMBER");
    ViewStatus status;
    TRY_ASSIGN(const auto groups, list_task_groups(kernel_, static_cast<std::int32_t>(parts->at(0)), status));
    TRY_ASSIGN(const auto tables, DescriptorTables::create(kernel_));
    std::optional<Gva> file;
    for (const Gva task : groups.front().tasks) {
      if (!tables.files_of(task))
        continue;
      (void)tables.for_each(task, [&](const FileDescriptor &descriptor) {
        if (static_cast<std::uint64_t>(descriptor.number) == parts->at(1))
          file = descriptor.file;
        return !file.has_value();
      });
      break;
    }
    if (!file)
      return fail(ErrorCode::not_found, fmt::format("process {} has no descriptor {}", parts->at(0), parts->at(1)));
    const auto inode = kernel_.read_pointer(*file, f_.file_inode);
    const auto mapping = kernel_.read_pointer(*file, f_.file_mapping);
    if (!inode || !mapping || !kernel_.is_kernel_address(*inode))
      return fault(*file);
    return Found{*inode, *mapping};
  }

  // Regular files of that number, of all file systems or of one device, each with how much of it is cached.
  Result<Found> by_inode(std::string_view text) const {
    const auto parts = numbers(text);
    if (!parts || (parts->size() != 1 && parts->size() != 3))
      return fail(ErrorCode::usage, "an inode is given as inode:NUMBER or inode:MAJOR:MINOR:NUMBER");
    const auto list = kernel_.symbol("super_blocks");
    if (!list)
      return fail(ErrorCode::not_found, "the kernel has no symbol super_blocks");
    LayoutResolver layout(kernel_.types());
    const auto super_node = layout.require("super_block", "s_list");
    const auto inodes = layout.require("super_block", "s_inodes");
    const auto inode_node = layout.require("inode", "i_sb_list");
    const auto cached_pages = layout.require("address_space", "nrpages");
    TRY(layout.check());
    std::vector<Found> with_pages, without;
    const std::size_t limit = object_limit(kernel_, f_.inode_bytes);
    std::size_t looked_at = 0;
    walk_list(kernel_, *list, super_block_limit, [&](Gva link) {
      const Gva super_block = link - super_node.offset;
      const auto device = device_number(kernel_.read_field(super_block, f_.super_device).value_or(0));
      if (parts->size() == 3 && (device.major != parts->at(0) || device.minor != parts->at(1)))
        return true;
      walk_list(kernel_, super_block + inodes.offset, limit, [&](Gva node) {
        const Gva inode = node - inode_node.offset;
        if (++looked_at > limit)
          return false;
        if (kernel_.read_field(inode, f_.inode_number) != parts->back() ||
            (kernel_.read_field(inode, f_.inode_mode).value_or(0) & file_mode::mask) != file_mode::regular)
          return true;
        if (const auto found = of_inode(inode))
          (kernel_.read_field(found->mapping, cached_pages).value_or(0) != 0 ? with_pages : without).push_back(*found);
        return true;
      });
      return looked_at <= limit;
    });
    const auto &found = with_pages.empty() ? without : with_pages;
    if (found.empty())
      return fail(ErrorCode::not_found, "the guest has no regular file of that inode number in memory");
    if (found.size() > 1) {
      std::vector<Gva> all;
      for (const Found &each : found)
        all.push_back(each.inode);
      return the_only_one(all);
    }
    return found.front();
  }

  Result<Found> by_path(std::string_view path) const {
    ViewStatus status;
    TRY_ASSIGN(const auto first, list_task_groups(kernel_, 1, status));
    TRY_ASSIGN(const auto cache, DirectoryCache::create(kernel_, first.front().tasks.front()));
    auto inodes = cache.find(path, false);
    if (inodes)
      return the_only_one(*inodes);
    if (inodes.error().code != ErrorCode::not_found)
      return std::unexpected(std::move(inodes).error());
    const bool marked = path.ends_with(deleted_mark);
    const std::string_view name = marked ? path.substr(0, path.size() - deleted_mark.size()) : path;
    auto deleted = cache.find(name, true);
    if (deleted)
      return the_only_one(*deleted);
    if (deleted.error().code != ErrorCode::not_found)
      return std::unexpected(std::move(deleted).error());
    return by_name_in_use(name, std::move(inodes).error());
  }

  // Of several files, none: which one is meant is for the person to say.
  Result<Found> the_only_one(const std::vector<Gva> &inodes) const {
    if (inodes.size() == 1)
      return of_inode(inodes.front());
    constexpr std::size_t shown = 8;
    std::string names;
    for (std::size_t i = 0; i < inodes.size() && i < shown; ++i) {
      const auto device = f_.device_of(kernel_, inodes[i]);
      names += fmt::format("{}inode:{}:{}:{}", i == 0 ? "" : ", ", device.major, device.minor,
                           kernel_.read_field(inodes[i], f_.inode_number).value_or(0));
    }
    return fail(ErrorCode::ambiguous, fmt::format("{} files are meant by that, name one: {}{}", inodes.size(), names,
                                                  inodes.size() > shown ? ", ..." : ""));
  }

  // What has no place in the first process' tree: memfds, files of other mount namespaces. Somebody holds them open or
  // has them mapped.
  Result<Found> by_name_in_use(std::string_view name, Error otherwise) const {
    std::set<Gva> inodes;
    TRY_ASSIGN(const auto open_files, read_open_files(kernel_, std::nullopt));
    for (const OpenFile &file : open_files.items)
      if (file.path == name)
        if (const auto inode = kernel_.read_pointer(file.file, f_.file_inode))
          inodes.insert(*inode);
    TRY_ASSIGN(const auto paths, PathResolver::create(kernel_));
    TRY_ASSIGN(const auto areas, AreaReader::create(kernel_));
    ViewStatus status;
    TRY_ASSIGN(const auto groups, list_task_groups(kernel_, std::nullopt, status));
    const auto mm_member = kernel_.types().field("task_struct", "mm");
    std::unordered_set<std::uint64_t> seen;
    for (const TaskGroup &group : groups) {
      const auto mm = mm_member ? group.first(kernel_, *mm_member, status, "memory") : std::nullopt;
      if (!mm || !seen.insert(mm->value).second)
        continue;
      for (const AreaReader::Area &area : areas.areas(*mm, status)) {
        const auto file = areas.file_of(area.address);
        if (!file || !seen.insert(file->value).second)
          continue;
        const auto path = paths.resolve(f_.shown_path(kernel_, *file));
        if (path && path->text == name)
          if (const auto inode = kernel_.read_pointer(*file, f_.file_inode))
            inodes.insert(*inode);
      }
    }
    if (inodes.empty())
      return std::unexpected(std::move(otherwise));
    return the_only_one({inodes.begin(), inodes.end()});
  }

  const Kernel &kernel_;
  const VfsLayout &f_;
};

} // namespace

Result<CachedFile> recover_file(const Kernel &kernel, std::string_view what,
                                const std::function<Result<void>(std::uint64_t, Bytes)> &sink) {
  TRY_ASSIGN(const VfsLayout *kept, kernel.layout<VfsLayout>());
  const VfsLayout &layout = *kept;
  TRY_ASSIGN(const auto pages, PageCache::create(kernel));
  TRY_ASSIGN(const Found found, Finder(kernel, layout).find(what));
  const auto mode = kernel.read_field(found.inode, layout.inode_mode).value_or(0) & file_mode::mask;
  if (mode != file_mode::regular && mode != file_mode::block)
    return fail(ErrorCode::unsupported, std::string(what) + " is no regular file");
  const auto super_block = kernel.read_pointer(found.inode, layout.inode_super);
  const auto magic = super_block ? kernel.read_field(*super_block, layout.super_magic).value_or(0) : 0;
  if (magic == hugetlbfs_magic)
    return fail(ErrorCode::unsupported, "files of hugetlbfs are not supported");
  if (magic == overlayfs_magic)
    return fail(ErrorCode::unsupported,
                "overlayfs keeps no pages itself: give the file's path in the layer that holds it");
  if ((kernel.read_field(found.inode, layout.inode_flags).value_or(0) & dax_inode) != 0)
    return fail(ErrorCode::unsupported, "the file is mapped from its device (DAX) and has no cached pages");
  // The inode of a block device's node is not the one that counts its bytes.
  const auto host_member = kernel.types().field("address_space", "host");
  const auto host = host_member ? kernel.read_pointer(found.mapping, *host_member) : std::nullopt;
  const auto size = kernel.read_field(host.value_or(found.inode), layout.inode_size);
  if (!size || *size >> 63 != 0)
    return fault(found.inode);
  CachedFile result;
  result.path = what;
  result.inode = kernel.read_field(found.inode, layout.inode_number).value_or(0);
  TRY(pages.read(found.mapping, *size, sink, result));
  return result;
}

} // namespace lararium::linux_guest
