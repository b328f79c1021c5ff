// The file of a dump: mapped, and reassembled where it is in makedumpfile's flattened format.
#pragma once

#include "extents.h"

#include "lararium/base/mapping.h"
#include "lararium/base/unique_fd.h"

#include <memory>
#include <span>
#include <string>

namespace lararium::dump {

// Offsets are those of the plain file. A flattened file is a sequence of {offset, size, bytes}, made for pipes, from
// which the plain file could be put together (makedumpfile's IMPLEMENTATION, "The flattened format"; QEMU writes its
// kdump formats so). Such a file is indexed once: 24 bytes of memory for each record, of which QEMU writes one for
// every 16 KiB.
class DumpFile {
public:
  [[nodiscard]] static Result<std::shared_ptr<DumpFile>> open(const std::string &path);
  [[nodiscard]] static Result<std::shared_ptr<DumpFile>> from_image(Bytes image);

  [[nodiscard]] bool flattened() const { return flattened_; }
  // False where the file ends inside a flattened record or without the record that ends it.
  [[nodiscard]] bool complete() const { return complete_; }
  [[nodiscard]] std::uint64_t size() const { return size_; }

  // The bytes in place at `offset`, at most `limit`; fewer where they are not contiguous. Empty where there are none.
  [[nodiscard]] Bytes view(std::uint64_t offset, std::uint64_t limit) const;
  // Fills `out` or fails where the file ends before. What no record of a complete flattened file covers is zeros.
  [[nodiscard]] bool read(std::uint64_t offset, std::span<std::byte> out) const;
  template <class T> [[nodiscard]] bool read_object(std::uint64_t offset, T &object) const {
    return read(offset, writable_bytes_of(object));
  }
  // Appends to `out` where the bytes of [offset, offset + size) lie in the mapped image, each as an extent whose start
  // is counted from `start`; what the file does not hold is left out. Returns the bytes appended.
  std::uint64_t locate(std::uint64_t offset, std::uint64_t size, std::uint64_t start, std::vector<Extent> &out) const;

  // The file as it lies on the disk; sources of extents point into it.
  [[nodiscard]] Bytes image() const { return image_; }
  // Parts of [begin, end) of the image that are not holes of a sparse file; all of it where that cannot be told.
  [[nodiscard]] std::vector<Extent> data_parts(std::uint64_t begin, std::uint64_t end) const;

private:
  [[nodiscard]] Result<void> index();

  UniqueFd descriptor_;
  Mapping mapping_;
  Bytes image_;
  bool flattened_ = false, complete_ = true;
  std::uint64_t size_ = 0;
  ExtentMap records_; // plain: one
};

} // namespace lararium::dump
