// Sorted runs of addresses and where their bytes lie: the index of every kind of dump file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lararium::dump {

// Addresses [start, start + size), which never wraps, hold the bytes at `source` of the file, or zeros.
struct Extent {
  static constexpr std::uint64_t zeros = UINT64_MAX;
  std::uint64_t start = 0, size = 0, source = zeros;

  [[nodiscard]] std::uint64_t end() const { return start + size; }
  [[nodiscard]] bool in_file() const { return source != zeros; }
};

// Non-overlapping extents, found in O(log n).
class ExtentMap {
public:
  ExtentMap() = default;
  // Takes extents in any order. Where they overlap, the one that comes later in the vector wins. Empty ones are
  // dropped, and neighbours whose bytes are neighbours too become one.
  explicit ExtentMap(std::vector<Extent> extents);

  // The extent that holds `address`, else the first one after it, else null.
  [[nodiscard]] const Extent *at_or_after(std::uint64_t address) const;
  // The extent that holds `address`, else null.
  [[nodiscard]] const Extent *at(std::uint64_t address) const {
    const Extent *extent = at_or_after(address);
    return extent != nullptr && extent->start <= address ? extent : nullptr;
  }
  [[nodiscard]] const std::vector<Extent> &all() const { return extents_; }

private:
  std::vector<Extent> extents_;
};

} // namespace lararium::dump
