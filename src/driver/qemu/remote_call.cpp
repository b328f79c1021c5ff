#include "remote_call.h"

#include <algorithm>
#include <cerrno>
#include <cpuid.h>
#include <cstring>
#include <elf.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/ucontext.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace lararium::qemu {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr std::uint64_t user_code_segment = 0x33;
constexpr std::size_t largest_code = 64 << 20;   // of one mapping that is searched
constexpr std::size_t largest_xstate = 64 << 10; // AMX has 11 KiB
constexpr int foreign_stops = 64;                // signals that may arrive meanwhile
constexpr auto stop_limit = 250ms;
constexpr auto call_limit = 2s; // only a machine without any time for the process gets there

// <sys/ptrace.h> and <linux/ptrace.h> disagree on some names; these are the kernel's.
constexpr long option_tracesysgood = 1;
constexpr long option_suspend_seccomp = 1 << 21;

long trace(int request, pid_t thread, std::uint64_t address, std::uint64_t data) {
  return ::ptrace(static_cast<__ptrace_request>(request), thread, reinterpret_cast<void *>(address),
                  reinterpret_cast<void *>(data));
}
long trace(int request, pid_t thread, std::uint64_t address, void *data) {
  return trace(request, thread, address, reinterpret_cast<std::uint64_t>(data));
}

std::optional<std::size_t> find(std::span<const std::byte> code, std::initializer_list<unsigned char> wanted) {
  const auto at = std::ranges::search(code, wanted, [](std::byte a, unsigned char b) { return a == std::byte{b}; });
  if (at.empty())
    return std::nullopt;
  return static_cast<std::size_t>(at.begin() - code.begin());
}

// How much of what PTRACE_GETREGSET gives rt_sigreturn expects of this thread: without tile data, unless it uses them.
// What is longer it would take for damaged, and restore the legacy part alone.
std::size_t frame_size_of(std::span<const std::byte> xstate) {
  constexpr std::size_t features_offset = 464, in_use_offset = 512, least = 576;
  constexpr unsigned tile_data = 18;
  std::uint64_t features = 0, in_use = 0;
  if (xstate.size() <= least)
    return xstate.size();
  std::memcpy(&features, xstate.data() + features_offset, sizeof features);
  std::memcpy(&in_use, xstate.data() + in_use_offset, sizeof in_use);
  if ((features >> tile_data & 1) == 0 || (in_use >> tile_data & 1) != 0)
    return xstate.size();
  std::size_t size = least;
  for (unsigned i = 2; i < 63; ++i) {
    unsigned length = 0, offset = 0, rest = 0, rest_too = 0;
    if (i != tile_data && (features >> i & 1) != 0 &&
        __get_cpuid_count(0xd, i, &length, &offset, &rest, &rest_too) != 0)
      size = std::max<std::size_t>(size, std::size_t{offset} + length);
  }
  return std::min(size, xstate.size());
}

} // namespace

Result<CallSite> find_call_site(const Process &process) {
  TRY_ASSIGN(const auto mappings, process.mappings());
  const UniqueFd memory(::open(process.path("mem").c_str(), O_RDONLY | O_CLOEXEC));
  if (!memory)
    return fail_errno(fmt::format("cannot read the code of process {}", process.pid()), errno);
  CallSite site;
  // The C library's code has both; of a program without one, the program's own.
  std::vector<const HostMapping *> candidates;
  for (const auto &mapping : mappings)
    if (mapping.executable && mapping.readable && !mapping.writable && mapping.path.starts_with('/') &&
        mapping.size() <= largest_code)
      candidates.push_back(&mapping);
  std::ranges::stable_partition(candidates,
                                [](const auto *mapping) { return mapping->path.find("/libc") != std::string::npos; });
  std::vector<std::byte> code;
  for (const auto *mapping : candidates) {
    code.resize(mapping->size());
    const auto count = ::pread(memory.get(), code.data(), code.size(), static_cast<off_t>(mapping->begin.value));
    if (count <= 0)
      continue;
    const auto bytes = std::span(code).first(static_cast<std::size_t>(count));
    if (!site.system_call)
      if (const auto at = find(bytes, {0x0f, 0x05, 0xc3}))
        site.system_call = mapping->begin + *at;
    if (!site.sigreturn)
      for (const auto &pattern : {std::initializer_list<unsigned char>{0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05},
                                  {0xb8, 15, 0, 0, 0, 0x0f, 0x05}})
        if (const auto at = find(bytes, pattern); at && !site.sigreturn)
          site.sigreturn = mapping->begin + *at;
    if (site.system_call && site.sigreturn)
      return site;
  }
  return fail(ErrorCode::unsupported,
              "the code of the VM's process has no place from which a system call could be made safely");
}

ThreadStatus parse_thread_status(std::string_view text) {
  ThreadStatus status;
  const auto value_of = [&](std::string_view key) {
    const auto at = text.find(key);
    if (at == std::string_view::npos)
      return std::string_view();
    auto value = text.substr(at + key.size());
    value = value.substr(0, value.find('\n'));
    value.remove_prefix(std::min(value.find_first_not_of(" \t"), value.size()));
    return value;
  };
  if (const auto value = value_of("\nSeccomp:"); !value.empty())
    status.seccomp = value[0] - '0';
  const auto tracer = value_of("\nTracerPid:");
  status.traced = !tracer.empty() && tracer != "0";
  status.shadow_stack = value_of("\nx86_Thread_features:").find("shstk") != std::string_view::npos;
  return status;
}

void restart_system_call(user_regs_struct &registers) {
  // include/linux/errno.h
  constexpr std::int64_t restart_sys = -512, restart_no_intr = -513, restart_no_hand = -514, restart_block = -516;
  constexpr std::uint64_t instruction = 2;
  if (static_cast<std::int64_t>(registers.orig_rax) >= 0) {
    const auto result = static_cast<std::int64_t>(registers.rax);
    if (result == restart_sys || result == restart_no_intr || result == restart_no_hand) {
      registers.rip -= instruction;
      registers.rax = registers.orig_rax;
    } else if (result == restart_block) {
      registers.rip -= instruction;
      registers.rax = SYS_restart_syscall;
    }
  }
  registers.orig_rax = ~0ULL; // or the kernel would do it once more
}

SignalFrame make_signal_frame(const user_regs_struct &registers, std::uint64_t signal_mask,
                              std::span<const std::byte> xstate, Hva sigreturn) {
  // arch/x86/include/uapi/asm/sigcontext.h, ucontext.h
  struct Context {
    std::uint64_t r8, r9, r10, r11, r12, r13, r14, r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags;
    std::uint16_t cs, gs, fs, ss;
    std::uint64_t err, trapno, oldmask, cr2, fpstate, reserved[8];
  };
  struct Frame {
    std::uint64_t return_address, flags, link;
    std::uint64_t stack_pointer, stack_flags, stack_size; // sigaltstack: disabled stays as it is, below
    Context context;
    std::uint64_t signal_mask;
  };
  static_assert(sizeof(Context) == 256);
  struct Software { // struct _fpx_sw_bytes, in the last 48 bytes of the legacy area
    std::uint32_t magic1, extended_size;
    std::uint64_t features;
    std::uint32_t size, padding[7];
  };
  static_assert(sizeof(Software) == 48);
  constexpr std::uint64_t has_xstate = 1, saves_ss = 2, strict_ss = 4; // uc_flags
  constexpr std::uint64_t red_zone = 128, xstate_alignment = 64;
  constexpr std::uint32_t magic1 = 0x46505853, magic2 = 0x46505845; // FP_XSTATE_MAGIC1, 2
  constexpr std::size_t software_offset = 464;

  SignalFrame result;
  const std::uint64_t state_begin =
      (registers.rsp - red_zone - (xstate.size() + sizeof magic2)) & ~(xstate_alignment - 1);
  result.begin = Hva{((state_begin - sizeof(Frame)) & ~15ULL) - 8}; // as if it had been called
  const std::uint64_t state_offset = state_begin - result.begin.value;
  result.bytes.resize(state_offset + xstate.size() + sizeof magic2);

  Frame frame{};
  frame.return_address = sigreturn.value;
  frame.flags = saves_ss | strict_ss | (xstate.empty() ? 0 : has_xstate);
  frame.stack_flags = ~0ULL; // no valid request: rt_sigreturn ignores that, and leaves the alternate stack alone
  Context &to = frame.context;
  const user_regs_struct &from = registers;
  to.r8 = from.r8;
  to.r9 = from.r9;
  to.r10 = from.r10;
  to.r11 = from.r11;
  to.r12 = from.r12;
  to.r13 = from.r13;
  to.r14 = from.r14;
  to.r15 = from.r15;
  to.rdi = from.rdi;
  to.rsi = from.rsi;
  to.rbp = from.rbp;
  to.rbx = from.rbx;
  to.rdx = from.rdx;
  to.rax = from.rax;
  to.rcx = from.rcx;
  to.rsp = from.rsp;
  to.rip = from.rip;
  to.eflags = from.eflags;
  to.cs = static_cast<std::uint16_t>(from.cs);
  to.ss = static_cast<std::uint16_t>(from.ss);
  to.fpstate = xstate.empty() ? 0 : state_begin;
  frame.signal_mask = signal_mask;
  std::memcpy(result.bytes.data(), &frame, sizeof frame);

  if (!xstate.empty()) {
    std::byte *const state = result.bytes.data() + state_offset;
    std::memcpy(state, xstate.data(), xstate.size());
    Software software{};
    // The kernel gives the mask of features that it saves at the start of this area.
    if (xstate.size() >= software_offset + sizeof software)
      std::memcpy(&software.features, state + software_offset, sizeof software.features);
    software.magic1 = magic1;
    software.size = static_cast<std::uint32_t>(xstate.size());
    software.extended_size = software.size + sizeof magic2;
    std::memcpy(state + software_offset, &software, sizeof software);
    std::memcpy(state + xstate.size(), &magic2, sizeof magic2);
  }
  return result;
}

StoppedThread::StoppedThread(StoppedThread &&other) noexcept
    : process_(other.process_), thread_(std::exchange(other.thread_, 0)), redirected_(other.redirected_),
      since_(other.since_), site_(other.site_), frame_(other.frame_), registers_(other.registers_),
      signal_mask_(other.signal_mask_) {}

Result<StoppedThread> StoppedThread::stop(const Process &process, const CallSite &site) {
  // The first thread waits in poll() most of the time, and no vCPU waits for it.
  constexpr int tries = 8;
  Error last{ErrorCode::not_found, Space::none, 0, "the VM's process has no threads"};
  for (int attempt = 0; attempt < tries; ++attempt) {
    StoppedThread stopped;
    stopped.site_ = site;
    if (const auto seized = stopped.seize(process, process.pid()); !seized) {
      if (seized.error().code != ErrorCode::timeout)
        return process.explain(seized.error());
      last = seized.error();
      continue;
    }
    const bool in_system_call = static_cast<std::int64_t>(stopped.registers_.orig_rax) >= 0;
    if (in_system_call || attempt + 1 == tries) {
      TRY(stopped.prepare());
      return stopped;
    }
    // In the middle of its own code it could be in a restartable sequence, whose end would not be noticed.
    stopped.resume();
    std::this_thread::sleep_for(2ms);
  }
  return std::unexpected(std::move(last));
}

Result<void> StoppedThread::seize(const Process &process, pid_t thread) {
  const auto text = read_small_file(process.path(fmt::format("task/{}/status", thread)), 64 << 10);
  if (!text)
    return process.explain(text.error());
  const auto status = parse_thread_status(*text);
  if (status.traced)
    return fail(ErrorCode::unsupported, "a debugger is attached to the VM's process");
  if (status.shadow_stack)
    return fail(ErrorCode::unsupported, "the VM's process has a shadow stack, under which no call can be made safely");
  // A filter that does not know the call could end the process. It is suspended for this thread, while we hold it.
  const long options = option_tracesysgood | (status.seccomp != 0 ? option_suspend_seccomp : 0);
  if (trace(PTRACE_SEIZE, thread, 0, static_cast<std::uint64_t>(options)) != 0) {
    const int error = errno;
    if (status.seccomp != 0 && (error == EPERM || error == EINVAL))
      return fail(
          ErrorCode::unsupported,
          "the VM's process has a seccomp filter that could end it for a call it does not expect, and this host "
          "does not let us suspend it (that takes CAP_SYS_ADMIN, no filter on Lararium itself, and "
          "CONFIG_CHECKPOINT_RESTORE)");
    return fail_errno(fmt::format("cannot stop process {}", process.pid()), error);
  }
  process_ = process.pid();
  thread_ = thread;
  since_ = Clock::now();
  if (trace(PTRACE_INTERRUPT, thread, 0, std::uint64_t{0}) != 0)
    return fail_errno("cannot stop a thread", errno);
  for (int i = 0; i < foreign_stops; ++i) {
    TRY_ASSIGN(const int stop, wait_for_stop(stop_limit));
    if (stop >> 16 == PTRACE_EVENT_STOP && ((stop >> 8) & 0xff) == SIGTRAP) {
      if (trace(PTRACE_GETREGS, thread_, 0, &registers_) != 0)
        return fail_errno("cannot read registers", errno);
      return {};
    }
    // A signal on its way to the thread goes on to it; a process that was stopped by one stays so.
    const int signal = stop >> 16 == 0 ? (stop >> 8) & 0xff : 0;
    if (trace(PTRACE_CONT, thread_, 0, static_cast<std::uint64_t>(signal)) != 0)
      return fail_errno("cannot continue a thread", errno);
  }
  return fail(ErrorCode::timeout, "the VM's process is busy with signals");
}

// The status' upper half: the stop, and the event behind it.
Result<int> StoppedThread::wait_for_stop(std::chrono::milliseconds limit) {
  const auto begin = Clock::now();
  for (;;) {
    int status = 0;
    const pid_t which = ::waitpid(thread_, &status, __WALL | WNOHANG);
    if (which == thread_ && WIFSTOPPED(status))
      return status;
    if (which != 0 && !(which < 0 && errno == EINTR)) {
      thread_ = 0;
      return fail(ErrorCode::gone, "the thread ended");
    }
    const auto waited = Clock::now() - begin;
    if (waited > limit) // it is let go when this host thread ends
      return fail(ErrorCode::timeout, "a thread of the VM's process does not stop");
    if (waited > 500us)
      std::this_thread::sleep_for(50us);
    else
      ::sched_yield();
  }
}

Result<void> StoppedThread::prepare() {
  if (registers_.cs != user_code_segment)
    return fail(ErrorCode::unsupported, "the VM's process runs no 64-bit code");
  if (trace(PTRACE_GETSIGMASK, thread_, sizeof signal_mask_, &signal_mask_) != 0)
    return fail_errno("cannot read a thread's signal mask", errno);
  std::vector<std::byte> xstate(largest_xstate);
  iovec area{xstate.data(), xstate.size()};
  if (trace(PTRACE_GETREGSET, thread_, NT_X86_XSTATE, &area) != 0)
    return fail_errno("cannot read a thread's floating-point state", errno);
  xstate.resize(area.iov_len);
  xstate.resize(frame_size_of(xstate));
  restart_system_call(registers_);
  const auto frame = make_signal_frame(registers_, signal_mask_, xstate, site_.sigreturn);
  const iovec local{const_cast<std::byte *>(frame.bytes.data()), frame.bytes.size()};
  const iovec remote{reinterpret_cast<void *>(frame.begin.value), frame.bytes.size()};
  if (::process_vm_writev(process_, &local, 1, &remote, 1, 0) != static_cast<ssize_t>(frame.bytes.size()))
    return fail_errno("cannot write below a thread's stack", errno);
  frame_ = frame.begin;
  return {};
}

Result<std::int64_t> StoppedThread::call(std::int64_t number, std::array<std::uint64_t, 3> arguments) {
  user_regs_struct registers = registers_;
  registers.rip = site_.system_call.value;
  registers.rsp = frame_.value;
  registers.rax = static_cast<std::uint64_t>(number);
  registers.orig_rax = ~0ULL;
  registers.rdi = arguments[0];
  registers.rsi = arguments[1];
  registers.rdx = arguments[2];
  if (trace(PTRACE_SETREGS, thread_, 0, &registers) != 0)
    return fail_errno("cannot set registers", errno);
  if (!std::exchange(redirected_, true)) {
    // Signals wait, so that no handler of the process runs on our stack pointer. The frame restores the mask, too.
    std::uint64_t all = ~0ULL;
    if (trace(PTRACE_SETSIGMASK, thread_, sizeof all, &all) != 0)
      return fail_errno("cannot set a thread's signal mask", errno);
  }
  TRY(run_to_system_call_stop()); // into it
  TRY(run_to_system_call_stop()); // out of it
  if (trace(PTRACE_GETREGS, thread_, 0, &registers) != 0)
    return fail_errno("cannot read registers", errno);
  return static_cast<std::int64_t>(registers.rax);
}

Result<void> StoppedThread::run_to_system_call_stop() {
  std::uint64_t signal = 0;
  for (int i = 0; i < foreign_stops; ++i) {
    if (trace(PTRACE_SYSCALL, thread_, 0, signal) != 0)
      return fail_errno("cannot continue a thread", errno);
    TRY_ASSIGN(const int stop, wait_for_stop(call_limit));
    if (stop >> 16 == 0 && ((stop >> 8) & 0xff) == (SIGTRAP | 0x80))
      return {};
    signal = stop >> 16 == 0 ? static_cast<std::uint64_t>((stop >> 8) & 0xff) : 0; // SIGSTOP cannot be made to wait
  }
  return fail(ErrorCode::timeout, "the VM's process is busy with signals");
}

void StoppedThread::resume() {
  if (thread_ == 0)
    return;
  const pid_t thread = std::exchange(thread_, 0);
  // Each step leaves a thread that finds back by itself.
  if (redirected_) {
    trace(PTRACE_SETSIGMASK, thread, sizeof signal_mask_, &signal_mask_);
    trace(PTRACE_SETREGS, thread, 0, &registers_);
  }
  trace(PTRACE_DETACH, thread, 0, std::uint64_t{0});
}

} // namespace lararium::qemu
