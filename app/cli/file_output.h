// Files that commands write: readable by their owner alone, since they hold a guest's memory.
#pragma once

#include "lararium/base/bytes.h"
#include "lararium/base/result.h"
#include "lararium/base/unique_fd.h"

#include <cstdint>
#include <string>

namespace lararium::cli {

class FileOutput {
public:
  // Replaces what is there.
  [[nodiscard]] static Result<FileOutput> create(const std::string &path);
  [[nodiscard]] Result<void> write_at(std::uint64_t offset, Bytes bytes);
  // Sets the size; what was never written reads as zeros and takes no room on the disk.
  [[nodiscard]] Result<void> finish(std::uint64_t size);

private:
  FileOutput(UniqueFd file, std::string path) : file_(std::move(file)), path_(std::move(path)) {}
  UniqueFd file_;
  std::string path_;
};

} // namespace lararium::cli
