// A file's contents from the guest's page cache.
#pragma once

#include "lararium/os/common/views.h"
#include "lararium/os/linux/kernel.h"

#include <cstdint>
#include <functional>
#include <string_view>

namespace lararium::linux_guest {

// `what` is one of
//   /a/path               as the first process sees it; also of a deleted file or memfd that some process still holds,
//                         with or without " (deleted)"
//   fd:PID:NUMBER         what a process has open
//   inode:NUMBER          of any file system; ambiguous when several have it
//   inode:MAJOR:MINOR:NUMBER
// Files of hugetlbfs, DAX and overlayfs are unsupported: their pages lie elsewhere.
[[nodiscard]] Result<CachedFile> recover_file(const Kernel &kernel, std::string_view what,
                                              const std::function<Result<void>(std::uint64_t, Bytes)> &sink);

} // namespace lararium::linux_guest
