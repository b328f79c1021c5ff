#pragma once

#include "lararium/base/bytes.h"
#include "lararium/base/result.h"

#include <vector>

namespace lararium::isf {

// The text of a plain (then `storage` stays empty), gzip or xz file, by its first bytes; at most `limit` bytes.
[[nodiscard]] Result<Bytes> unpack(Bytes file, std::size_t limit, std::vector<std::byte> &storage);

} // namespace lararium::isf
