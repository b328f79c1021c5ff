// One process that takes hold of another.
#include "lararium/gate/hook.h"
#include "lararium/os/linux/tasks.h"

#include <fmt/format.h>

namespace lararium::gate {
namespace {

constexpr std::uint64_t attach = 2; // PTRACE_MODE_ATTACH

Result<std::vector<HookPoint>> points(const linux_guest::Kernel &kernel) {
  return points_at(kernel,
                   {{"security_ptrace_access_check", {2, attach, attach, attach}}, {"security_ptrace_traceme"}});
}

Meaning tell(const CallReader &reader, const HookedCall &call) {
  const Gva other = call.pointer(1);
  const std::uint64_t pid = reader.number(other, "task_struct", "tgid").value_or(0);
  const std::string name = linux_guest::task_comm(reader.kernel(), other);
  const bool is_child = call.function == "security_ptrace_traceme";
  Meaning meaning{is_child ? fmt::format("lets itself be traced by {} ({})", name, pid)
                           : fmt::format("takes hold of {} ({})", name, pid)};
  meaning.with("target_pid", pid).with("target_comm", name).with("traceme", is_child);
  return meaning;
}

LARARIUM_HOOK(
    ptrace_hook, "ptrace", "a process attaches to another, or reads or writes its memory",
    "ptrace(2), process_vm_readv(2), process_vm_writev(2), pidfd_getfd(2) and writes to /proc/PID/mem ask the same "
    "question, and look the same here. What only looks (/proc/PID/maps) is left out.",
    true, points, tell)

} // namespace
} // namespace lararium::gate
