// The count, names and markers of kallsyms. In every layout they lie before the token table, in this order.
#pragma once

#include "lararium/base/bytes.h"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace lararium::kallsyms {

struct NameTable {
  std::uint32_t count = 0;
  std::uint8_t marker_size = 4;
  bool two_byte_lengths = true;
  std::vector<std::byte> names;                                       // a copy, which was walked and found whole
  std::size_t count_offset = 0, names_offset = 0, markers_offset = 0; // in the image
};

// One compressed name: its length, then as many codes.
struct NameCodes {
  Bytes codes;
  std::size_t next = 0; // where the next name starts
};

// Nothing where the name at `at` is empty, too long, or leaves the table.
[[nodiscard]] inline std::optional<NameCodes> codes_at(Bytes names, std::size_t at, bool two_byte_lengths,
                                                       std::size_t max_codes) {
  if (at >= names.size())
    return std::nullopt;
  std::size_t length = static_cast<std::uint8_t>(names[at++]);
  if (two_byte_lengths && (length & 0x80) != 0) {
    if (at >= names.size())
      return std::nullopt;
    length = (length & 0x7f) | std::size_t{static_cast<std::uint8_t>(names[at++])} << 7;
  }
  if (length == 0 || length > max_codes || names.size() - at < length)
    return std::nullopt;
  return NameCodes{names.subspan(at, length), at + length};
}

// The tables before a token table. `work` is how many names may still be looked at: what is spent is taken off.
[[nodiscard]] std::optional<NameTable> find_name_table(Bytes image, std::size_t token_table, std::uint64_t &work);

} // namespace lararium::kallsyms
