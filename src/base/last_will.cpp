#include "lararium/base/last_will.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

namespace lararium {
namespace {

// Closes all but these and the standard streams.
void close_others(std::vector<int> kept) {
  std::ranges::sort(kept);
  unsigned next = 3;
  for (const int descriptor : kept) {
    const auto number = static_cast<unsigned>(descriptor);
    if (number > next)
      ::syscall(SYS_close_range, next, number - 1, 0U);
    next = std::max(next, number + 1);
  }
  ::syscall(SYS_close_range, next, ~0U, 0U);
}

[[noreturn]] void wait_and_act(int pipe, std::vector<int> kept, const std::function<void()> &act) {
  ::setsid();
  sigset_t all;
  sigfillset(&all);
  ::sigprocmask(SIG_BLOCK, &all, nullptr);
  // Whoever reads what we print shall not wait for this process.
  if (const int null = ::open("/dev/null", O_RDWR); null >= 0)
    for (const int stream : {0, 1, 2})
      ::dup2(null, stream);
  // The other end of the pipe, too, or it would never end.
  kept.push_back(pipe);
  close_others(std::move(kept));
  char byte = 0;
  ssize_t count = 0;
  while ((count = ::read(pipe, &byte, 1)) < 0 && errno == EINTR) {
  }
  if (count == 0)
    act();
  ::_exit(0);
}

} // namespace

Result<LastWill> LastWill::make(std::span<const int> kept, std::function<void()> act) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0)
    return fail_errno("cannot make a pipe", errno);
  UniqueFd read_end(ends[0]), write_end(ends[1]);
  const pid_t child = ::fork();
  if (child < 0)
    return fail_errno("cannot start a process", errno);
  if (child == 0)
    wait_and_act(read_end.get(), {kept.begin(), kept.end()}, act);
  return LastWill(std::move(write_end), child);
}

void LastWill::revoke() {
  if (!pipe_)
    return;
  const char byte = 1;
  while (::write(pipe_.get(), &byte, 1) < 0 && errno == EINTR) {
  }
  end();
}

void LastWill::execute() {
  if (pipe_)
    end();
}

void LastWill::end() {
  pipe_.reset();
  while (::waitpid(child_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

} // namespace lararium
