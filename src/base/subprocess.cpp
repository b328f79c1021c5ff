#include "lararium/base/subprocess.h"

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
#include <unistd.h>

extern char **environ;

namespace lararium {
namespace {

using Clock = std::chrono::steady_clock;

struct Pipe {
  UniqueFd read_end, write_end;
};

Result<Pipe> make_pipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0)
    return fail_errno("cannot create a pipe", errno);
  return Pipe{UniqueFd(ends[0]), UniqueFd(ends[1])};
}

// A file, not a pipe: nobody has to feed it while we read.
Result<UniqueFd> make_input(std::string_view input) {
  UniqueFd file(::memfd_create("lararium", MFD_CLOEXEC));
  if (!file)
    return fail_errno("cannot make a file for a program's input", errno);
  while (!input.empty()) {
    const auto count = ::write(file.get(), input.data(), input.size());
    if (count <= 0)
      return fail_errno("cannot write a program's input", errno);
    input.remove_prefix(static_cast<std::size_t>(count));
  }
  if (::lseek(file.get(), 0, SEEK_SET) != 0)
    return fail_errno("cannot write a program's input", errno);
  return file;
}

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

} // namespace

Result<SubprocessResult> run_subprocess(const std::vector<std::string> &arguments, const SubprocessLimits &limits,
                                        const SubprocessOptions &options) {
  const auto deadline = Clock::now() + limits.time;
  const std::string title(options.title.empty() ? std::string_view(arguments[0]) : options.title);
  TRY_ASSIGN(const UniqueFd input, make_input(options.input));
  TRY_ASSIGN(Pipe output, make_pipe());
  Pipe errors;
  if (options.gather_errors) {
    TRY_ASSIGN(errors, make_pipe());
  }
  std::vector<char *> words;
  for (const auto &argument : arguments)
    words.push_back(const_cast<char *>(argument.c_str()));
  words.push_back(nullptr);

  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, input.get(), STDIN_FILENO);
  ::posix_spawn_file_actions_adddup2(&actions, output.write_end.get(), STDOUT_FILENO);
  if (errors.write_end)
    ::posix_spawn_file_actions_adddup2(&actions, errors.write_end.get(), STDERR_FILENO);
  pid_t pid = 0;
  const int error = ::posix_spawnp(&pid, words[0], &actions, nullptr, words.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  if (error != 0)
    return fail_errno(fmt::format("cannot run {}", arguments[0]), error);
  Child child(pid);
  output.write_end.reset();
  errors.write_end.reset();

  SubprocessResult result;
  std::array<char, 65536> buffer;
  const std::array<UniqueFd *, 2> ends = {&output.read_end, &errors.read_end};
  const std::array<std::string *, 2> texts = {&result.text, &result.errors};
  while (*ends[0] || *ends[1]) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    std::array<pollfd, 2> polled = {pollfd{ends[0]->get(), POLLIN, 0}, pollfd{ends[1]->get(), POLLIN, 0}};
    const int ready = left <= 0 ? 0 : ::poll(polled.data(), polled.size(), static_cast<int>(left));
    if (ready == 0)
      return fail(ErrorCode::timeout, fmt::format("{} does not end", title));
    if (ready < 0 && errno != EINTR)
      return fail_errno("cannot wait for a program", errno);
    for (std::size_t i = 0; ready > 0 && i < polled.size(); i++) {
      if (polled[i].revents == 0)
        continue;
      const auto count = ::read(ends[i]->get(), buffer.data(), buffer.size());
      if (count < 0 && (errno == EINTR || errno == EAGAIN))
        continue;
      if (count <= 0)
        ends[i]->reset();
      else
        texts[i]->append(buffer.data(), static_cast<std::size_t>(count));
      if (texts[i]->size() > limits.bytes)
        return fail(ErrorCode::protocol, fmt::format("{} prints more than {} bytes", title, limits.bytes));
    }
  }
  result.status = child.wait(); // it closed both; that it then lingers is no case worth a thread
  return result;
}

} // namespace lararium
