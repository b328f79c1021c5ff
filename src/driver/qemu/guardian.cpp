#include "guardian.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <optional>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

namespace lararium::qemu {
namespace {

constexpr char on_guard = 'g', marking = 'm', dismissal = 'd';

// All that is open from 3 on, but `keep`. Our end of the line is among it: with that, the line would never go dead.
void close_all_but(std::vector<int> keep) {
  std::ranges::sort(keep);
  unsigned next = 3;
  for (const int descriptor : keep) {
    const auto number = static_cast<unsigned>(descriptor);
    if (number > next)
      ::syscall(SYS_close_range, next, number - 1, 0U);
    next = std::max(next, number + 1);
  }
  ::syscall(SYS_close_range, next, ~0U, 0U);
}

// Whoever reads what we print shall not wait for this process; what is opened later shall not become its output.
void let_go_of_the_terminal() {
  ::setsid();
  const int nothing = ::open("/dev/null", O_RDWR);
  for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    ::dup2(nothing, descriptor);
  if (nothing > STDERR_FILENO)
    ::close(nothing);
}

// Nothing when the other end is gone.
std::optional<char> next_byte(int line) {
  char byte = 0;
  ssize_t count = 0;
  while ((count = ::read(line, &byte, 1)) < 0 && errno == EINTR) {
  }
  return count == 1 ? std::optional(byte) : std::nullopt;
}

} // namespace

Result<Guardian> Guardian::start(std::initializer_list<int> keep, const std::function<void(bool)> &put_right) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
    return fail_errno("cannot create a socket", errno);
  UniqueFd ours(ends[0]);
  UniqueFd theirs(ends[1]);
  std::vector<int> kept(keep);
  kept.push_back(theirs.get());
  sigset_t all, before;
  sigfillset(&all);
  ::pthread_sigmask(SIG_BLOCK, &all, &before);
  const pid_t child = ::fork();
  if (child == 0) {
    let_go_of_the_terminal();
    close_all_but(std::move(kept));
    static_cast<void>(::send(theirs.get(), &on_guard, 1, MSG_NOSIGNAL));
    auto word = next_byte(theirs.get());
    const bool marked = word == marking;
    if (marked)
      word = next_byte(theirs.get());
    if (word != dismissal)
      put_right(marked);
    ::_exit(0);
  }
  const int error = errno;
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (child < 0)
    return fail_errno("cannot start a process", error);
  theirs.reset();
  Guardian guardian(std::move(ours), child);
  if (next_byte(guardian.line_.get()) != on_guard)
    return fail(ErrorCode::io, "a process that was started to put things right ended at once");
  return guardian;
}

void Guardian::send(char word) {
  // A child that somebody killed hears nothing, and has nothing to hear.
  static_cast<void>(::send(line_.get(), &word, 1, MSG_NOSIGNAL));
}

void Guardian::mark() { send(marking); }

void Guardian::dismiss() {
  send(dismissal);
  hang_up();
}

void Guardian::put_right() { hang_up(); }

void Guardian::hang_up() {
  line_.reset();
  while (child_ > 0 && ::waitpid(child_, nullptr, 0) < 0 && errno == EINTR) {
  }
  child_ = -1;
}

} // namespace lararium::qemu
