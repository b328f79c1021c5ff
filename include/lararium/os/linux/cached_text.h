// Small files that the guest has in memory.
#pragma once

#include "lararium/os/linux/kernel.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace lararium::linux_guest {

struct CachedText {
  std::uint64_t size = 0;          // of the file
  std::optional<std::string> text; // its first bytes; nothing: they are not in memory, or overlayfs has them elsewhere
};

// The file that an absolute path leads to, as `task` sees the tree. not_found: the guest has no such file, or has not
// looked for it since it forgot it last.
[[nodiscard]] Result<CachedText> read_cached_text(const Kernel &kernel, Gva task, std::string_view path,
                                                  std::size_t limit);

} // namespace lararium::linux_guest
