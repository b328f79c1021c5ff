#include "protection.h"
#include "remote_call.h"
#include "userfault.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <cstddef>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <functional>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <string>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

namespace lararium::qemu {
namespace {

using namespace std::chrono_literals;

constexpr std::size_t pages = 16;

// What the process under test tells of itself, in memory that both see.
struct Board {
  std::atomic<std::uint64_t> rounds, wrong, write_requests, writes;
};

// A process that waits in poll() as QEMU's first thread does, checks that its registers survive, and writes when asked.
class Victim {
public:
  enum class Memory : std::uint8_t { shared, anonymous };
  // `busy`: it computes instead of waiting.
  explicit Victim(Memory memory, bool busy = false, const std::function<bool()> &prepare = {}) {
    board_ =
        static_cast<Board *>(::mmap(nullptr, page_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    const UniqueFd file(::memfd_create("ram", MFD_CLOEXEC));
    EXPECT_EQ(::ftruncate(file.get(), pages * page_size), 0);
    ram_ = static_cast<std::byte *>(
        memory == Memory::shared
            ? ::mmap(nullptr, pages * page_size, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0)
            : ::mmap(nullptr, pages * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    std::memset(ram_, 1, pages * page_size);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (prepare && !prepare())
        ::_exit(1);
      std::memset(ram_, 1, pages * page_size); // private pages of its own
      live(busy);
    }
    until([&] { return board_->rounds > 0; });
  }
  Victim(const Victim &) = delete;
  Victim &operator=(const Victim &) = delete;
  ~Victim() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::munmap(ram_, pages * page_size);
    ::munmap(board_, page_size);
  }

  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] Board &board() const { return *board_; }
  [[nodiscard]] std::vector<GuestRegion> regions() const {
    return {{Gpa{0}, pages * page_size, Hva{reinterpret_cast<std::uintptr_t>(ram_)}, "ram"}};
  }
  [[nodiscard]] bool ended() const {
    siginfo_t info{};
    return ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0;
  }
  [[nodiscard]] bool goes_on() const {
    const std::uint64_t before = board_->rounds;
    return until([&] { return board_->rounds > before + 2; });
  }
  [[nodiscard]] std::vector<std::string> descriptors() const {
    std::vector<std::string> result;
    const auto process = Process::open(pid_);
    if (const auto list = process->descriptors())
      for (const auto &descriptor : *list)
        result.push_back(descriptor.target);
    return result;
  }

  template <class Condition> static bool until(Condition &&condition) {
    for (int i = 0; i < 5000; ++i) {
      if (condition())
        return true;
      ::usleep(1000);
    }
    return false;
  }

private:
  [[noreturn]] void live(bool busy) const {
    std::uint64_t written = 0;
    for (;;) {
      // Values in callee-saved and vector registers that must be there behind whatever was done to us.
      std::uint64_t result = 0, kept = 0;
      const std::uint64_t pattern = 0x123456789abcdef0 + board_->rounds;
      if (busy) {
        asm volatile(
            "movq %2, %%xmm7; movq %2, %%r12; mov $20000, %%ecx; 1: dec %%ecx; jnz 1b; movq %%xmm7, %0; movq %%r12, %1"
            : "=&r"(result), "=&r"(kept)
            : "r"(pattern)
            : "rcx", "r12", "xmm7", "cc");
      } else {
        timespec time{0, 1'000'000};
        long status = SYS_ppoll;
        register long r10 asm("r10") = 0;
        asm volatile("movq %4, %%xmm7; movq %4, %%r12; syscall; movq %%xmm7, %0; movq %%r12, %1"
                     : "=&r"(result), "=&r"(kept), "+a"(status), "+r"(r10)
                     : "r"(pattern), "D"(nullptr), "S"(0), "d"(&time)
                     : "rcx", "r11", "r12", "xmm7", "memory");
        if (status != 0)
          ++board_->wrong;
      }
      if (result != pattern || kept != pattern)
        ++board_->wrong;
      while (written < board_->write_requests) {
        ram_[3 * page_size + 7] = std::byte{static_cast<unsigned char>(++written)};
        ++board_->writes;
      }
      ++board_->rounds;
    }
  }

  Board *board_;
  std::byte *ram_;
  pid_t pid_ = -1;
};

bool may_trace() { return ::geteuid() == 0; }

#define NEEDS_ROOT()                                                                                                   \
  if (!may_trace())                                                                                                    \
  GTEST_SKIP() << "taking a userfaultfd out of another process needs root"

class ProtectionTest : public ::testing::TestWithParam<Victim::Memory> {};

TEST_P(ProtectionTest, WriteIsHeldUntilReleased) {
  NEEDS_ROOT();
  const Victim victim(GetParam());
  const auto before = victim.descriptors();
  const auto process = Process::open(victim.pid());
  auto start = begin_protection(*process, victim.regions(), {{0, victim.pid()}});
  ASSERT_TRUE(start) << start.error().describe();
  EXPECT_LT(start->stopped, 100ms);
  RecordProperty("stopped_microseconds", static_cast<int>(start->stopped.count() / 1000));
  EXPECT_EQ(victim.descriptors(), before);
  auto &protection = *start->protection;
  ASSERT_TRUE(protection.protect(Gpa{3 * page_size}, page_size));
  victim.board().write_requests = 1;
  std::array<WriteFault, 4> faults;
  const auto count = protection.wait(faults, 5s);
  ASSERT_TRUE(count);
  ASSERT_EQ(*count, 1U);
  EXPECT_EQ(faults[0].address.page(), Gpa{3 * page_size});
  if (faults[0].exact) {
    EXPECT_EQ(faults[0].address.page_offset(), 7U);
  }
  EXPECT_EQ(faults[0].vcpu, 0U);
  ::usleep(20'000);
  EXPECT_EQ(victim.board().writes, 0U);
  ASSERT_TRUE(protection.release(Gpa{3 * page_size}, page_size));
  EXPECT_TRUE(Victim::until([&] { return victim.board().writes == 1; }));
  EXPECT_TRUE(victim.goes_on());
  EXPECT_EQ(victim.board().wrong, 0U);
}

TEST_P(ProtectionTest, OverwritesWhatIsProtected) {
  NEEDS_ROOT();
  const Victim victim(GetParam());
  const auto process = Process::open(victim.pid());
  auto start = begin_protection(*process, victim.regions(), {});
  ASSERT_TRUE(start) << start.error().describe();
  ASSERT_TRUE(start->protection->protect(Gpa{0}, pages * page_size));
  constexpr std::array<std::byte, 3> bytes{std::byte{7}, std::byte{8}, std::byte{9}};
  ASSERT_TRUE(start->protection->overwrite(Gpa{2 * page_size - 1}, bytes)); // across two pages
  const auto memory = QemuMemory::open(*process, victim.regions());
  ASSERT_TRUE(memory) << memory.error().describe();
  std::array<std::byte, 3> found{};
  ASSERT_TRUE((*memory)->read(Gpa{2 * page_size - 1}, found));
  EXPECT_EQ(found, bytes);
  victim.board().write_requests = 1; // still protected
  std::array<WriteFault, 4> faults;
  EXPECT_EQ(*start->protection->wait(faults, 5s), 1U);
  start->protection.reset();
  EXPECT_TRUE(Victim::until([&] { return victim.board().writes == 1; }));
}

// What is not protected is written to, too, and does not become so: it may be code that must not be held.
TEST_P(ProtectionTest, OverwritesWhatIsNotProtected) {
  NEEDS_ROOT();
  const Victim victim(GetParam());
  const auto process = Process::open(victim.pid());
  auto start = begin_protection(*process, victim.regions(), {});
  ASSERT_TRUE(start) << start.error().describe();
  constexpr std::array<std::byte, 2> bytes{std::byte{7}, std::byte{8}};
  for (const bool some_is : {false, true}) {
    if (some_is) {
      ASSERT_TRUE(start->protection->protect(Gpa{4 * page_size}, page_size));
    }
    ASSERT_TRUE(start->protection->overwrite(Gpa{4 * page_size - 1}, bytes));
    victim.board().write_requests = victim.board().write_requests + 1; // to the page before
    EXPECT_TRUE(Victim::until([&] { return victim.board().writes == victim.board().write_requests; }));
  }
}

TEST_P(ProtectionTest, EndsWithItsHolder) {
  NEEDS_ROOT();
  const Victim victim(GetParam());
  const pid_t monitor = ::fork();
  if (monitor == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const auto process = Process::open(victim.pid());
    auto start = begin_protection(*process, victim.regions(), {});
    if (!start || !start->protection->protect(Gpa{0}, pages * page_size))
      ::_exit(1);
    victim.board().write_requests = 1;
    std::array<WriteFault, 4> faults;
    if (start->protection->wait(faults, 5s) != 1U)
      ::_exit(2);
    victim.board().write_requests = 2; // says that we are ready to be killed
    for (;;)
      ::pause();
  }
  EXPECT_TRUE(Victim::until([&] { return victim.board().write_requests == 2; }));
  EXPECT_EQ(victim.board().writes, 0U);
  ::kill(monitor, SIGKILL);
  ::waitpid(monitor, nullptr, 0);
  EXPECT_TRUE(Victim::until([&] { return victim.board().writes == 2; }));
  EXPECT_TRUE(victim.goes_on());
}

INSTANTIATE_TEST_SUITE_P(Memories, ProtectionTest,
                         ::testing::Values(Victim::Memory::shared, Victim::Memory::anonymous));

TEST(Userfault, ComesOutOfAProcessWithoutRights) {
  NEEDS_ROOT();
  const Victim victim(Victim::Memory::shared, false, [] { return ::setgid(65534) == 0 && ::setuid(65534) == 0; });
  const auto setting = read_small_file("/proc/sys/vm/unprivileged_userfaultfd", 16);
  const auto process = Process::open(victim.pid());
  std::chrono::nanoseconds stopped{};
  const auto descriptor = take_userfaultfd(*process, stopped);
  EXPECT_TRUE(descriptor) << descriptor.error().describe();
  EXPECT_EQ(*read_small_file("/proc/sys/vm/unprivileged_userfaultfd", 16), *setting);
  EXPECT_TRUE(victim.goes_on());
  EXPECT_EQ(victim.board().wrong, 0U);
}

TEST(Userfault, WhatNobodySetUpIsClosed) {
  NEEDS_ROOT();
  const Victim victim(Victim::Memory::shared, false, [] { // one that is in use, two that are not
    for (const bool set_up : {false, true, false}) {
      const auto descriptor = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK));
      uffdio_api api{.api = UFFD_API, .features = 0, .ioctls = 0};
      if (descriptor < 0 || (set_up && ::ioctl(descriptor, UFFDIO_API, &api) != 0))
        return false;
    }
    return true;
  });
  const auto process = Process::open(victim.pid());
  std::chrono::nanoseconds stopped{};
  EXPECT_TRUE(take_userfaultfd(*process, stopped));
  EXPECT_EQ(std::ranges::count(victim.descriptors(), "anon_inode:[userfaultfd]"), 1);
  EXPECT_TRUE(victim.goes_on());
  EXPECT_EQ(victim.board().wrong, 0U);
}

TEST(Userfault, FeaturesOfADescriptor) {
  EXPECT_EQ(parse_userfault_features("pos:\t0\npending:\t0\ntotal:\t0\nAPI:\taa:0:800000000000003f\n"), 0U);
  EXPECT_EQ(parse_userfault_features("API:\taa:80001000:8000"), 0x80001000U);
  for (const char *text : {"", "API:\taa", "API:\taa:", "API:\taa:1", "API:\taa:x:1", "pos:\t0\n"})
    EXPECT_FALSE(parse_userfault_features(text)) << text;
}

bool end_for_userfaultfd() {
  std::array<sock_filter, 4> program{{
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  }};
  const sock_fprog filter{program.size(), program.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

TEST(Userfault, FilterThatWouldEndTheProcessDoesNot) {
  NEEDS_ROOT();
  const Victim victim(Victim::Memory::shared, false, end_for_userfaultfd);
  const auto process = Process::open(victim.pid());
  std::chrono::nanoseconds stopped{};
  const auto descriptor = take_userfaultfd(*process, stopped);
  EXPECT_TRUE(victim.goes_on());
  EXPECT_EQ(victim.board().wrong, 0U);
  if (!descriptor) { // the host does not let us suspend the filter: then nothing was tried
    EXPECT_EQ(descriptor.error().code, ErrorCode::unsupported) << descriptor.error().describe();
  }
}

// The tracer is killed at every stage of taking the descriptor, over and over: the process must live on, registers and
// all, and keep at most descriptors on which nothing waits.
void kill_while_taking(bool busy) {
  const Victim victim(Victim::Memory::anonymous, busy);
  const auto process = Process::open(victim.pid());
  const auto site = find_call_site(*process);
  ASSERT_TRUE(site);
  unsigned completed = 0, killed = 0;
  for (unsigned i = 0; i < 400; ++i) {
    int ends[2];
    ASSERT_EQ(::pipe(ends), 0);
    const pid_t tracer = ::fork();
    if (tracer == 0) {
      char go = 0;
      static_cast<void>(::write(ends[1], &go, 1));
      auto thread = StoppedThread::stop(*process, *site);
      if (!thread)
        ::_exit(3);
      const auto made = thread->call(SYS_userfaultfd, {O_CLOEXEC | O_NONBLOCK, 0, 0});
      if (!made || *made < 0 || thread->call(SYS_close, {static_cast<std::uint64_t>(*made), 0, 0}) != 0)
        ::_exit(4);
      thread->resume();
      ::_exit(0);
    }
    char go = 0;
    ASSERT_EQ(::read(ends[0], &go, 1), 1);
    for (const auto begin = std::chrono::steady_clock::now();
         std::chrono::steady_clock::now() - begin < std::chrono::microseconds(i % 200 * (busy ? 100 : 2));)
      ;
    ::kill(tracer, SIGKILL);
    int status = 0;
    ::waitpid(tracer, &status, 0);
    ::close(ends[0]);
    ::close(ends[1]);
    killed += WIFSIGNALED(status) ? 1 : 0;
    completed += WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 1 : 0;
    ASSERT_FALSE(victim.ended()) << "after " << i;
  }
  EXPECT_TRUE(victim.goes_on());
  EXPECT_EQ(victim.board().wrong, 0U);
  EXPECT_GT(killed, 20U);
  const auto left = [&] { return std::ranges::count(victim.descriptors(), "anon_inode:[userfaultfd]"); };
  ::testing::Test::RecordProperty("descriptors_left", static_cast<int>(left()));
  std::chrono::nanoseconds stopped{};
  EXPECT_TRUE(take_userfaultfd(*process, stopped));
  EXPECT_EQ(left(), 0);
  EXPECT_TRUE(victim.goes_on());
  EXPECT_EQ(victim.board().wrong, 0U);
  ::testing::Test::RecordProperty("killed", static_cast<int>(killed));
  ::testing::Test::RecordProperty("completed", static_cast<int>(completed));
}

TEST(RemoteCall, TracerIsKilledWhileTheProcessWaits) {
  NEEDS_ROOT();
  kill_while_taking(false);
}

TEST(RemoteCall, TracerIsKilledWhileTheProcessComputes) {
  NEEDS_ROOT();
  kill_while_taking(true);
}

TEST(RemoteCall, SystemCallIsBegunAnew) {
  user_regs_struct registers{};
  registers.rip = 0x1002;
  registers.orig_rax = SYS_ppoll;
  registers.rax = static_cast<unsigned long long>(-514); // ERESTARTNOHAND
  restart_system_call(registers);
  EXPECT_EQ(registers.rip, 0x1000U);
  EXPECT_EQ(registers.rax, static_cast<unsigned long long>(SYS_ppoll));
  EXPECT_EQ(registers.orig_rax, ~0ULL);
  registers = {};
  registers.rip = 0x1002;
  registers.orig_rax = SYS_futex;
  registers.rax = static_cast<unsigned long long>(-516); // ERESTART_RESTARTBLOCK
  restart_system_call(registers);
  EXPECT_EQ(registers.rip, 0x1000U);
  EXPECT_EQ(registers.rax, static_cast<unsigned long long>(SYS_restart_syscall));
  registers = {};
  registers.rip = 0x1002;
  registers.orig_rax = ~0ULL; // it was in its own code, with a value that looks like such an error
  registers.rax = static_cast<unsigned long long>(-514);
  restart_system_call(registers);
  EXPECT_EQ(registers.rip, 0x1002U);
  EXPECT_EQ(registers.rax, static_cast<unsigned long long>(-514));
}

TEST(RemoteCall, ThreadStatus) {
  const auto status = parse_thread_status("Name:\tqemu\nTracerPid:\t0\nSeccomp:\t2\nSeccomp_filters:\t1\n");
  EXPECT_EQ(status.seccomp, 2);
  EXPECT_FALSE(status.traced);
  EXPECT_FALSE(status.shadow_stack);
  EXPECT_TRUE(parse_thread_status("Name:\tqemu\nTracerPid:\t12\n").traced);
  EXPECT_TRUE(parse_thread_status("Name:\tx\nx86_Thread_features:\tshstk wrss\n").shadow_stack);
}

} // namespace
} // namespace lararium::qemu
