// Read-only memory mappings of files and of other processes' memory files.
#pragma once

#include "lararium/base/bytes.h"
#include "lararium/base/result.h"

#include <cstddef>
#include <cstdint>
#include <string>

namespace lararium {

// Owns a read-only mapping. A page of it that cannot be delivered when it is touched (the file was truncated, the
// huge page pool is empty) would kill the process with SIGBUS; instead that page reads as zeros from then on, and
// lost_pages() counts it. The handler for this is installed with the first mapping and hands every SIGBUS that is not
// in one of our mappings to whoever was there before.
class Mapping {
public:
  Mapping() = default;
  Mapping(Mapping &&other) noexcept;
  Mapping &operator=(Mapping &&other) noexcept;
  Mapping(const Mapping &) = delete;
  Mapping &operator=(const Mapping &) = delete;
  ~Mapping();

  // Maps [offset, offset + length) of the file; offset a multiple of the file's page size (2 MiB or 1 GiB on
  // hugetlbfs).
  [[nodiscard]] static Result<Mapping> map_file(int descriptor, std::uint64_t offset, std::size_t length);

  [[nodiscard]] Bytes bytes() const { return {data_, length_}; }

  // Pages, of all mappings of this process, that could not be delivered and now read as zeros.
  [[nodiscard]] static std::uint64_t lost_pages();

private:
  Mapping(const std::byte *data, std::size_t length) : data_(data), length_(length) {}
  const std::byte *data_ = nullptr;
  std::size_t length_ = 0;
};

// Opens and maps a whole regular file. An empty file gives an empty mapping.
[[nodiscard]] Result<Mapping> map_whole_file(const std::string &path);

} // namespace lararium
