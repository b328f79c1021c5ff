#include "lararium/os/linux/cached_text.h"

#include "directory_cache.h"
#include "page_cache.h"
#include "vfs.h"

#include <algorithm>

namespace lararium::linux_guest {

Result<CachedText> read_cached_text(const Kernel &kernel, Gva task, std::string_view path, std::size_t limit) {
  TRY_ASSIGN(const VfsLayout *vfs, kernel.layout<VfsLayout>());
  TRY_ASSIGN(const auto cache, DirectoryCache::create(kernel, task));
  TRY_ASSIGN(const auto inodes, cache.find(path, false));
  if (inodes.empty())
    return fail(ErrorCode::not_found, "the guest has no such file in memory");
  const Gva inode = inodes.front();
  const auto mode = kernel.read_field(inode, vfs->inode_mode).value_or(0) & file_mode::mask;
  if (mode != file_mode::regular)
    return fail(ErrorCode::not_found, std::string(path) + " is no regular file");
  CachedText result;
  result.size = kernel.read_field(inode, vfs->inode_size).value_or(0);
  const auto mapping = kernel.read_pointer(inode, vfs->inode_mapping);
  if (!mapping || !kernel.is_kernel_address(*mapping))
    return result;
  TRY_ASSIGN(const auto pages, PageCache::create(kernel));
  CachedFile file;
  std::string text;
  TRY(pages.read(
      *mapping, std::min<std::uint64_t>(result.size, limit),
      [&](std::uint64_t offset, Bytes bytes) -> Result<void> {
        if (offset == text.size())
          text.append(reinterpret_cast<const char *>(bytes.data()), bytes.size());
        return {};
      },
      file));
  if (!text.empty())
    result.text = std::move(text);
  return result;
}

} // namespace lararium::linux_guest
