// Changing a few bytes of memory that other CPUs read, or run, at the same moment: they see all of it or nothing.
#pragma once

#include "lararium/base/bytes.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>

namespace lararium::gate {

// Puts `bytes` into a page, at `offset`, by one store of eight bytes, where `expected` stands there; false where that
// is not so, or no eight bytes within a cache line hold all that differs. Processors store that as a whole (Intel SDM
// 3A, 9.1.1; what runs there may be the distance of a call, which compilers of other languages change in the same way).
// That eight bytes need not be aligned is why this is no std::atomic_ref.
[[nodiscard]] inline bool replace_as_a_whole(std::span<std::byte> page, std::uint64_t offset, Bytes expected,
                                             Bytes bytes) {
  constexpr std::size_t word = 8, line = 64;
  if (expected.size() != bytes.size() || offset > page.size() || bytes.size() > page.size() - offset)
    return false;
  std::size_t first = 0, last = bytes.size();
  while (first < last && expected[first] == bytes[first])
    ++first;
  while (last > first && expected[last - 1] == bytes[last - 1])
    --last;
  if (first == last)
    return true;
  const std::size_t begin = offset + first, end_of_line = begin / line * line + line;
  if (offset + last > end_of_line || last - first > word)
    return false;
  const std::size_t place = std::min(begin, end_of_line - word);
  std::byte *const target = page.data() + place;
  std::uint64_t was = 0, is = 0;
  std::memcpy(&was, target, word);
  is = was;
  if (std::memcmp(reinterpret_cast<const std::byte *>(&was) + (begin - place), expected.data() + first, last - first) !=
      0)
    return false;
  std::memcpy(reinterpret_cast<std::byte *>(&is) + (begin - place), bytes.data() + first, last - first);
  bool done = false;
  __asm__ volatile("lock cmpxchgq %[is], (%[target])"
                   : "=@ccz"(done), "+a"(was)
                   : [is] "r"(is), [target] "r"(target)
                   : "memory");
  return done;
}

} // namespace lararium::gate
