#include "subprocess.h"

#include "lararium/base/unique_fd.h"

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

namespace lararium::qemu {
namespace {

struct Pipe {
  UniqueFd read_end, write_end;
};

Result<Pipe> make_pipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0)
    return fail_errno("cannot create a pipe", errno);
  return Pipe{UniqueFd(ends[0]), UniqueFd(ends[1])};
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
    wait();
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

Result<ProgramOutput> run_program(const std::vector<std::string> &arguments, std::chrono::milliseconds limit,
                                  std::size_t max_output) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  TRY_ASSIGN(Pipe output, make_pipe());
  TRY_ASSIGN(Pipe errors, make_pipe());
  std::vector<char *> words;
  for (const auto &argument : arguments)
    words.push_back(const_cast<char *>(argument.c_str()));
  words.push_back(nullptr);

  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_adddup2(&actions, output.write_end.get(), STDOUT_FILENO);
  ::posix_spawn_file_actions_adddup2(&actions, errors.write_end.get(), STDERR_FILENO);
  pid_t pid = 0;
  const int error = ::posix_spawnp(&pid, words[0], &actions, nullptr, words.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  if (error != 0)
    return fail_errno(fmt::format("cannot run {}", arguments[0]), error);
  Child child(pid);
  output.write_end.reset();
  errors.write_end.reset();

  ProgramOutput result;
  std::array<char, 16384> buffer;
  std::array<UniqueFd *, 2> ends = {&output.read_end, &errors.read_end};
  std::array<std::string *, 2> texts = {&result.text, &result.errors};
  while (*ends[0] || *ends[1]) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
    std::array<pollfd, 2> polled = {pollfd{ends[0]->get(), POLLIN, 0}, pollfd{ends[1]->get(), POLLIN, 0}};
    const int ready = left <= 0 ? 0 : ::poll(polled.data(), polled.size(), static_cast<int>(left));
    if (ready == 0)
      return fail(ErrorCode::timeout, fmt::format("{} does not end", arguments[0]));
    if (ready < 0 && errno != EINTR)
      return fail_errno("cannot wait for a program", errno);
    for (std::size_t i = 0; ready > 0 && i < polled.size(); i++) {
      if (polled[i].revents == 0)
        continue;
      const auto count = ::read(ends[i]->get(), buffer.data(), buffer.size());
      if (count <= 0)
        ends[i]->reset();
      else
        texts[i]->append(buffer.data(), static_cast<std::size_t>(count));
      if (texts[i]->size() > max_output)
        return fail(ErrorCode::protocol, fmt::format("{} prints too much", arguments[0]));
    }
  }
  result.status = child.wait(); // it closed both; that it then lingers is no case worth a thread
  return result;
}

} // namespace lararium::qemu
