#include "file_output.h"

#include <cerrno>
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

namespace lararium::cli {

Result<FileOutput> FileOutput::create(const std::string &path) {
  UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!file)
    return fail_errno(fmt::format("cannot create {}", path), errno);
  return FileOutput(std::move(file), path);
}

Result<void> FileOutput::write_at(std::uint64_t offset, Bytes bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(file_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR)
      continue;
    if (written < 0)
      return fail_errno(fmt::format("cannot write {}", path_), errno);
    bytes = bytes.subspan(static_cast<std::size_t>(written));
    offset += static_cast<std::uint64_t>(written);
  }
  return {};
}

Result<void> FileOutput::finish(std::uint64_t size) {
  int error = size > INT64_MAX ? EFBIG : 0;
  if (error == 0 && ::ftruncate(file_.get(), static_cast<off_t>(size)) != 0)
    error = errno;
  if (error == EFBIG) // sizes are the guest's word
    return fail(ErrorCode::corrupt,
                fmt::format("the guest gives a size of {} bytes, more than a file here can have", size));
  if (error != 0 && error != EINVAL) // EINVAL: a device, such as /dev/null, has no size to set
    return fail_errno(fmt::format("cannot give {} its size of {} bytes", path_, size), error);
  if (::close(file_.release()) != 0) // a full disk may show only here
    return fail_errno(fmt::format("cannot write {}", path_), errno);
  return {};
}

} // namespace lararium::cli
