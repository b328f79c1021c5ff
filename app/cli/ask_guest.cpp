#include "ask_guest.h"

#include "lararium/base/subprocess.h"
#include "lararium/base/unique_fd.h"

#include <array>
#include <cerrno>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <thread>
#include <unistd.h>

namespace lararium::cli {
namespace {

using Clock = std::chrono::steady_clock;

// To the end of the file.
Result<std::string> read_all(int fd, Clock::time_point deadline, std::size_t limit, std::string_view what) {
  std::string text;
  std::array<char, 65536> buffer;
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd polled{fd, POLLIN, 0};
    const int ready = left <= 0 ? 0 : ::poll(&polled, 1, static_cast<int>(left));
    if (ready < 0 && errno == EINTR)
      continue;
    if (ready < 0)
      return fail_errno(fmt::format("cannot wait for {}", what), errno);
    if (ready == 0)
      return fail(ErrorCode::timeout, fmt::format("{} does not end", what));
    const auto count = ::read(fd, buffer.data(), buffer.size());
    if (count < 0 && (errno == EINTR || errno == EAGAIN))
      continue;
    if (count < 0)
      return fail_errno(fmt::format("cannot read {}", what), errno);
    if (count == 0)
      return text;
    text.append(buffer.data(), static_cast<std::size_t>(count));
    if (text.size() > limit)
      return fail(ErrorCode::protocol, fmt::format("{} has more than {} bytes", what, limit));
  }
}

} // namespace

Result<std::string> ask_by_command(const std::string &command, std::string_view input, const AskLimits &limits) {
  TRY_ASSIGN(SubprocessResult result,
             run_subprocess({"sh", "-c", command}, {limits.time, limits.bytes},
                            {.input = input, .gather_errors = false, .title = "the command's answer"}));
  if (result.status != 0 && result.text.empty())
    return fail(ErrorCode::protocol, result.status < 0 ? std::string("the command was ended by a signal")
                                                       : fmt::format("the command ended with {}", result.status));
  return std::move(result.text);
}

bool has_whole_answer(const std::string &path, WholePredicate is_whole, const AskLimits &limits) {
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (path == "-" || !file)
    return false;
  const auto text = read_all(file.get(), Clock::now() + limits.time, limits.bytes, path);
  return text && is_whole(*text);
}

Result<std::string> read_answer(const std::string &path, WholePredicate is_whole, const AskLimits &limits) {
  constexpr std::chrono::milliseconds pause{100};
  const auto deadline = Clock::now() + limits.time;
  if (path == "-")
    return read_all(STDIN_FILENO, deadline, limits.bytes, "standard input");
  while (true) {
    const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file && errno != ENOENT)
      return fail_errno(fmt::format("cannot read {}", path), errno);
    if (file) {
      TRY_ASSIGN(std::string text, read_all(file.get(), deadline, limits.bytes, path));
      if (is_whole(text) || Clock::now() >= deadline)
        return text;
    }
    if (Clock::now() >= deadline)
      return fail(ErrorCode::timeout, fmt::format("{} does not come", path));
    std::this_thread::sleep_for(pause);
  }
}

} // namespace lararium::cli
