// One process that takes hold of another.
#include "lararium/gate/hook.h"

#include <fmt/format.h>

namespace lararium::gate {
namespace {

constexpr std::uint64_t attach = 2; // PTRACE_MODE_ATTACH
constexpr std::uint16_t comm_size = 16;

std::string name_of(const CallReader &reader, Gva task) {
  const auto field = reader.kernel().types().field("task_struct", "comm");
  std::array<std::byte, comm_size> name{};
  return field && reader.bytes(task + field->offset, name) ? std::string(c_string(name, 0)) : std::string();
}

Result<std::vector<HookPoint>> points(const linux_guest::Kernel &kernel) {
  const std::vector<Keep> keeps{keep_member(1, {{"task_struct", "tgid"}}),
                                {KeepKind::bytes, 1, {{"task_struct", "comm"}}, KeepRole::none, 0, comm_size}};
  return points_at(kernel, {{"security_ptrace_access_check", {2, attach, attach, attach}, keeps},
                            {"security_ptrace_traceme", {}, keeps}});
}

Meaning tell(const CallReader &reader, const HookedCall &call) {
  const Gva other = call.pointer(1);
  const std::uint64_t pid = reader.number(other, "task_struct", "tgid").value_or(0);
  const std::string name = name_of(reader, other);
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
