#include "guardian.h"

#include <algorithm>
#include <array>
#include <csignal>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <string>
#include <sys/wait.h>
#include <unistd.h>

namespace lararium::qemu {
namespace {

// What guardians write, and how it is read: to its end, which comes when all of them have ended.
struct Line {
  Line() {
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    read_end.reset(ends[0]);
    write_end.reset(ends[1]);
  }
  std::string all() {
    write_end.reset();
    std::string text;
    std::array<char, 64> buffer;
    pollfd polled{read_end.get(), POLLIN, 0};
    while (::poll(&polled, 1, 10'000) == 1) {
      const auto count = ::read(read_end.get(), buffer.data(), buffer.size());
      if (count <= 0)
        return text;
      text.append(buffer.data(), static_cast<std::size_t>(count));
    }
    return text + " and no end";
  }
  UniqueFd read_end, write_end;
};

Result<Guardian> writer(int to, char what) {
  return Guardian::start({to}, [to, what](bool marked) {
    const char word = marked ? static_cast<char>(what - 'a' + 'A') : what;
    static_cast<void>(::write(to, &word, 1));
  });
}

TEST(Guardian, DoesNothingWhenDismissed) {
  Line line;
  auto guardian = writer(line.write_end.get(), 'x');
  ASSERT_TRUE(guardian) << guardian.error().describe();
  guardian->mark();
  guardian->dismiss();
  EXPECT_EQ(line.all(), "");
}

TEST(Guardian, PutsRightWhenToldAndWhenForgotten) {
  Line line;
  {
    auto told = writer(line.write_end.get(), 'a'), forgotten = writer(line.write_end.get(), 'b');
    ASSERT_TRUE(told && forgotten);
    Guardian moved(std::move(*told));
    moved.put_right();
    forgotten->mark();
  }
  EXPECT_EQ(line.all(), "aB");
  EXPECT_GT(::wait(nullptr), 0);
}

TEST(Guardian, PutsRightWhenItsProcessIsKilledAtOnceWithItsGroup) {
  Line line;
  const pid_t victim = ::fork();
  if (victim == 0) {
    ::setpgid(0, 0);
    const auto one = writer(line.write_end.get(), 'a'), two = writer(line.write_end.get(), 'b');
    ::kill(0, SIGTERM); // the whole group; it comes before kill() returns
    ::pause();
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(victim, &status, 0), victim);
  EXPECT_TRUE(WIFSIGNALED(status));
  auto text = line.all();
  std::ranges::sort(text);
  EXPECT_EQ(text, "ab");
}

TEST(Guardian, HoldsNoDescriptorButThose) {
  Line line, other;
  const int to = line.write_end.get();
  auto guardian = Guardian::start({to}, [to, other_end = other.write_end.get()](bool) {
    const char word = ::fcntl(other_end, F_GETFD) == -1 && ::fcntl(STDOUT_FILENO, F_GETFD) == 0 ? 'y' : 'n';
    static_cast<void>(::write(to, &word, 1));
  });
  ASSERT_TRUE(guardian);
  EXPECT_EQ(other.all(), ""); // ends although the guardian lives
  guardian->put_right();
  EXPECT_EQ(line.all(), "y");
}

} // namespace
} // namespace lararium::qemu
