#include "output.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

namespace lararium::dump {
namespace {

bool exists(const std::string &path) {
  struct stat status{};
  return ::lstat(path.c_str(), &status) == 0;
}

std::unexpected<Error> file_exists(const std::string &path) {
  return fail(ErrorCode::usage, fmt::format("{} exists and is not overwritten", path));
}

} // namespace

Result<Output> Output::create(const std::string &path, bool overwrite) {
  // Asked early too, so that nobody waits for a dump that cannot get its name.
  if (!overwrite && exists(path))
    return file_exists(path);
  Output output;
  output.path_ = path;
  output.overwrite_ = overwrite;
  std::string temporary = path + ".partial-XXXXXX";
  output.file_ = UniqueFd(::mkostemp(temporary.data(), O_CLOEXEC));
  if (!output.file_)
    return fail_errno(fmt::format("cannot create a file beside {}", path), errno);
  output.temporary_ = std::move(temporary);
  output.descriptor_ = output.file_.get();
  return output;
}

Output Output::to_descriptor(int descriptor) {
  Output output;
  output.descriptor_ = descriptor;
  const off_t position = ::lseek(descriptor, 0, SEEK_CUR);
  const int flags = ::fcntl(descriptor, F_GETFL);
  struct stat status{};
  // Holes only where nothing lies that would show through, and not where all writes go to the end.
  output.seekable_ = position >= 0 && flags >= 0 && (flags & O_APPEND) == 0 && ::fstat(descriptor, &status) == 0 &&
                     S_ISREG(status.st_mode) && status.st_size <= position;
  output.origin_ = output.seekable_ ? static_cast<std::uint64_t>(position) : 0;
  return output;
}

Output::~Output() {
  if (file_ && !temporary_.empty())
    ::unlink(temporary_.c_str());
}

std::unexpected<Error> Output::failed(int error_number) const {
  const std::string name = path_.empty() ? "the output" : path_;
  if (error_number == ENOSPC || error_number == EDQUOT)
    return fail(ErrorCode::io, fmt::format("no space left for {} after {} MiB", name, position_ >> 20));
  if (error_number == EFAULT)
    return fail(ErrorCode::gone, "the memory vanished while it was written");
  if (error_number == EFBIG)
    return fail(ErrorCode::io, fmt::format("{} is larger than its file system or the limits allow", name));
  return fail_errno(fmt::format("cannot write {}", name), error_number);
}

Result<void> Output::write(Bytes bytes) {
  while (!bytes.empty()) {
    const ssize_t written =
        seekable_ ? ::pwrite(descriptor_, bytes.data(), bytes.size(), static_cast<off_t>(origin_ + position_))
                  : ::write(descriptor_, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR)
      continue;
    if (written <= 0)
      return failed(written < 0 ? errno : EIO);
    position_ += static_cast<std::uint64_t>(written);
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
  return {};
}

Result<void> Output::skip(std::uint64_t size) {
  if (seekable_) {
    position_ += size;
    return {};
  }
  static constexpr std::byte zeros[65536] = {};
  for (; size != 0;) {
    const auto length = std::min<std::uint64_t>(size, sizeof(zeros));
    TRY(write({zeros, length}));
    size -= length;
  }
  return {};
}

Result<void> Output::rewrite(std::uint64_t offset, Bytes bytes) {
  const std::uint64_t position = std::exchange(position_, offset);
  const Result<void> result = seekable_ ? write(bytes) : fail(ErrorCode::usage, "the output cannot seek");
  position_ = position;
  return result;
}

Result<void> Output::commit() {
  if (!seekable_)
    return {};
  // A hole at the end leaves no bytes behind, so the size is set.
  const auto end = static_cast<off_t>(origin_ + position_);
  if (::ftruncate(descriptor_, end) != 0)
    return failed(errno);
  if (!file_)
    return ::lseek(descriptor_, end, SEEK_SET) < 0 ? Result<void>(failed(errno)) : Result<void>();

  // Some file systems (NFS) tell of a full disk only here.
  if (::close(file_.release()) != 0) {
    const int error_number = errno;
    ::unlink(temporary_.c_str());
    return failed(error_number);
  }
  int result = overwrite_ ? ::rename(temporary_.c_str(), path_.c_str())
                          : ::renameat2(AT_FDCWD, temporary_.c_str(), AT_FDCWD, path_.c_str(), RENAME_NOREPLACE);
  // File systems without RENAME_NOREPLACE: a hard link fails too where the name is taken.
  if (result != 0 && !overwrite_ && (errno == EINVAL || errno == ENOSYS)) {
    result = ::link(temporary_.c_str(), path_.c_str());
    if (result == 0)
      ::unlink(temporary_.c_str());
  }
  if (result != 0) {
    const int error_number = errno;
    ::unlink(temporary_.c_str());
    return error_number == EEXIST ? Result<void>(file_exists(path_)) : Result<void>(failed(error_number));
  }
  return {};
}

} // namespace lararium::dump
