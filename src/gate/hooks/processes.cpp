// Processes and threads that begin and end.
#include "lararium/gate/hook.h"

#include <fmt/format.h>

namespace lararium::gate {
namespace {

Result<std::vector<HookPoint>> fork_points(const linux_guest::Kernel &kernel) {
  return points_at(kernel, {{"wake_up_new_task",
                             {},
                             {keep_member(1, {{"task_struct", "pid"}}), keep_member(1, {{"task_struct", "tgid"}})}}});
}

Meaning tell_fork(const CallReader &reader, const HookedCall &call) {
  const Gva child = call.pointer(1);
  const std::uint64_t pid = reader.number(child, "task_struct", "pid").value_or(0),
                      tgid = reader.number(child, "task_struct", "tgid").value_or(0);
  Meaning meaning{pid == tgid ? fmt::format("starts process {}", pid)
                              : fmt::format("starts thread {} of process {}", pid, tgid)};
  meaning.with("child_pid", pid).with("child_tgid", tgid).with("thread", pid != tgid);
  return meaning;
}

LARARIUM_HOOK(fork_hook, "fork", "a process or thread begins",
              "When it is ready to run, so that its pid is known; too late to be denied. Kernel threads, too.", false,
              fork_points, tell_fork)

// taskstats_exit(tsk, group_dead) is called by do_exit() alone, when the exit code is set.
Result<std::vector<HookPoint>> exit_points(const linux_guest::Kernel &kernel) {
  return points_at(kernel, {{"taskstats_exit", {}, {keep_member(1, {{"task_struct", "exit_code"}})}}});
}

Meaning tell_exit(const CallReader &reader, const HookedCall &call) {
  const Gva task = call.pointer(1);
  const std::uint64_t code = reader.number(task, "task_struct", "exit_code").value_or(0);
  constexpr std::uint64_t signal_mask = 0x7f;
  const bool whole = (call.arguments[1] & 0xff) != 0;
  Meaning meaning{(code & signal_mask) != 0 ? fmt::format("ends by signal {}", code & signal_mask)
                                            : fmt::format("ends with {}", code >> 8 & 0xff)};
  meaning.with("exit_status", code >> 8 & 0xff).with("signal", code & signal_mask).with("last_thread", whole);
  return meaning;
}

LARARIUM_HOOK(exit_hook, "exit", "a process or thread ends",
              "By itself or by a signal. `last_thread` tells whether the process ended with it. Cannot be denied.",
              false, exit_points, tell_exit)

} // namespace
} // namespace lararium::gate
