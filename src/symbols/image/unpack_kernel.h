#pragma once

#include "lararium/base/bytes.h"
#include "lararium/base/result.h"

#include <vector>

namespace lararium::kernel_file {

constexpr std::size_t largest_kernel = 512U << 20; // unpacked

// Unpacks one stream, of a kernel or of a module, told by its first bytes: gzip, xz, zstd, or lz4's old format. What
// follows it is left alone (the kernel's build puts the unpacked size there).
[[nodiscard]] Result<std::vector<std::byte>> unpack(Bytes packed);

} // namespace lararium::kernel_file
