#include "ask_guest.h"

#include "lararium/base/unique_fd.h"

#include <array>
#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

extern char **environ;

namespace lararium::cli {
namespace {

using Clock = std::chrono::steady_clock;

// Ends and reaps the child whatever happens.
class Child {
public:
  explicit Child(pid_t pid) : pid_(pid) {}
  Child(const Child &) = delete;
  Child &operator=(const Child &) = delete;
  ~Child() {
    if (pid_ == 0)
      return;
    ::kill(pid_, SIGKILL);
    static_cast<void>(wait());
  }
  int wait() {
    int status = 0;
    while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

private:
  pid_t pid_;
};

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
  const auto deadline = Clock::now() + limits.time;
  // A file, not a pipe: nobody has to feed it while we read.
  const UniqueFd script(::memfd_create("lararium", MFD_CLOEXEC));
  if (!script)
    return fail_errno("cannot make a file for the script", errno);
  for (std::string_view rest = input; !rest.empty();) {
    const auto count = ::write(script.get(), rest.data(), rest.size());
    if (count <= 0)
      return fail_errno("cannot write the script", errno);
    rest.remove_prefix(static_cast<std::size_t>(count));
  }
  if (::lseek(script.get(), 0, SEEK_SET) != 0)
    return fail_errno("cannot write the script", errno);
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0)
    return fail_errno("cannot create a pipe", errno);
  const UniqueFd output(ends[0]);
  UniqueFd write_end(ends[1]);

  std::string shell = "sh", option = "-c", line = command;
  std::array<char *, 4> words{shell.data(), option.data(), line.data(), nullptr};
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, script.get(), STDIN_FILENO);
  ::posix_spawn_file_actions_adddup2(&actions, write_end.get(), STDOUT_FILENO);
  pid_t pid = 0;
  const int error = ::posix_spawn(&pid, "/bin/sh", &actions, nullptr, words.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  if (error != 0)
    return fail_errno("cannot run a shell", error);
  Child child(pid);
  write_end.reset();
  TRY_ASSIGN(std::string text, read_all(output.get(), deadline, limits.bytes, "the command's answer"));
  if (const int status = child.wait(); status != 0 && text.empty())
    return fail(ErrorCode::protocol, status < 0 ? std::string("the command was ended by a signal")
                                                : fmt::format("the command ended with {}", status));
  return text;
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
