// Where a core is written to: a new file that appears only when it is whole, or a descriptor.
#pragma once

#include "lararium/base/bytes.h"
#include "lararium/base/result.h"
#include "lararium/base/unique_fd.h"

#include <string>

namespace lararium::dump {

// Writes forward only; what is skipped reads as zeros.
class Output {
public:
  // Creates a temporary file beside `path`.
  [[nodiscard]] static Result<Output> create(const std::string &path, bool overwrite);
  // Writes to a descriptor that stays the caller's, from its current position on.
  [[nodiscard]] static Output to_descriptor(int descriptor);

  Output(Output &&other) noexcept = default;
  Output &operator=(Output &&) = delete;
  Output(const Output &) = delete;
  Output &operator=(const Output &) = delete;
  // Removes the temporary file, unless commit() was called.
  ~Output();

  // Bytes that change or vanish while they are written (a guest's memory) are no harm: EFAULT is an error here.
  [[nodiscard]] Result<void> write(Bytes bytes);
  // A hole where the output can seek, else zeros.
  [[nodiscard]] Result<void> skip(std::uint64_t size);
  [[nodiscard]] std::uint64_t position() const { return position_; }
  // Replaces what was written at `offset`, an offset already passed. Only for files.
  [[nodiscard]] Result<void> rewrite(std::uint64_t offset, Bytes bytes);

  // Sets the size, closes the file and gives it its name.
  [[nodiscard]] Result<void> commit();

private:
  Output() = default;
  [[nodiscard]] std::unexpected<Error> failed(int error_number) const;

  UniqueFd file_;
  int descriptor_ = -1;
  bool seekable_ = true, overwrite_ = false;
  std::uint64_t origin_ = 0, position_ = 0;
  std::string path_, temporary_; // empty: a descriptor of the caller
};

} // namespace lararium::dump
