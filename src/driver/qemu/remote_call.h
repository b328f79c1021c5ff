// System calls that another process is made to make for us, while one of its threads stands still.
//
// The process must survive whatever happens to us in the middle. Before its registers are touched, a signal frame with
// its true state is put on its stack, and every call is made by an instruction behind which the thread returns into
// rt_sigreturn: if we die at any instant, it makes the call that it was about to make, and finds back by itself. None
// of its code is written to. What it may keep is the result of the call that was under way: one open descriptor, on
// which nothing waits.
#pragma once

#include "lararium/base/result.h"
#include "lararium/driver/qemu/process.h"

#include <array>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <span>
#include <sys/types.h>
#include <sys/user.h>
#include <vector>

namespace lararium::qemu {

// Two places in the code of a process, found before it is stopped.
struct CallSite {
  Hva system_call; // syscall; ret
  Hva sigreturn;   // mov $15, %eax; syscall
};
[[nodiscard]] Result<CallSite> find_call_site(const Process &process);

// What of /proc/PID/task/TID/status decides whether a call may be made.
struct ThreadStatus {
  int seccomp = 0; // 0: none; 2: a filter
  bool traced = false;
  bool shadow_stack = false; // the processor would not let it return where it did not come from
};
[[nodiscard]] ThreadStatus parse_thread_status(std::string_view text);

// A thread that stands still; goes on when this goes. It must be used by the (host) thread that made it: a debugger is
// one thread, and when that ends, the kernel lets go of all that it holds.
class StoppedThread {
public:
  // Takes a thread that waits in a system call if there is one: another is taken only where none is found.
  [[nodiscard]] static Result<StoppedThread> stop(const Process &process, const CallSite &site);
  StoppedThread(StoppedThread &&other) noexcept;
  StoppedThread &operator=(StoppedThread &&) = delete;
  StoppedThread(const StoppedThread &) = delete;
  StoppedThread &operator=(const StoppedThread &) = delete;
  ~StoppedThread() { resume(); }

  // What the call returned; negative: -errno. An error: it was not made, and the thread is let go.
  [[nodiscard]] Result<std::int64_t> call(std::int64_t number, std::array<std::uint64_t, 3> arguments);
  void resume();
  [[nodiscard]] std::chrono::steady_clock::time_point since() const { return since_; }

private:
  StoppedThread() = default;
  [[nodiscard]] Result<void> seize(const Process &process, pid_t thread);
  [[nodiscard]] Result<void> prepare();
  [[nodiscard]] Result<int> wait_for_stop(std::chrono::milliseconds limit);
  [[nodiscard]] Result<void> run_to_system_call_stop();

  pid_t process_ = 0, thread_ = 0;              // thread_ 0: none is held
  bool redirected_ = false;                     // its registers are ours
  std::chrono::steady_clock::time_point since_; // when it was asked to stop
  CallSite site_;
  Hva frame_;
  user_regs_struct registers_{}; // with which it goes on
  std::uint64_t signal_mask_ = 0;
};

// The signal frame from which rt_sigreturn restores a thread, and where its first byte is to lie. `xstate` is what
// PTRACE_GETREGSET gives for NT_X86_XSTATE. Pure, for tests.
struct SignalFrame {
  Hva begin;
  std::vector<std::byte> bytes;
};
[[nodiscard]] SignalFrame make_signal_frame(const user_regs_struct &registers, std::uint64_t signal_mask,
                                            std::span<const std::byte> xstate, Hva sigreturn);

// A system call that a signal interrupted before it did anything is begun anew, as the kernel does it.
void restart_system_call(user_regs_struct &registers);

} // namespace lararium::qemu
