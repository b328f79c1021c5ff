// Ids and capabilities that change.
#include "lararium/gate/hook.h"

#include <fmt/format.h>

namespace lararium::gate {
namespace {

constexpr std::uint16_t cred_bytes = 88; // ids and capabilities lie at its beginning

Result<std::vector<HookPoint>> points(const linux_guest::Kernel &kernel) {
  const std::vector<Keep> keeps{{KeepKind::bytes, 1, {}, KeepRole::none, 0, cred_bytes},
                                {KeepKind::bytes, 2, {}, KeepRole::none, 0, cred_bytes}};
  return points_at(kernel, {{"security_task_fix_setuid", {}, keeps},
                            {"security_task_fix_setgid", {}, keeps},
                            {"security_capset", {}, keeps}});
}

// (new, old, ...) each. security_capset(new, old, effective, ...) is asked before `new` has them.
Meaning tell(const CallReader &reader, const HookedCall &call) {
  const Gva now = call.pointer(1), before = call.pointer(2);
  const bool is_capset = call.function == "security_capset";
  const auto id = [&](Gva cred, std::string_view member) { return reader.number(cred, "cred", member).value_or(0); };
  // 64 bits in one word, or in two before 6.3 (f122a08b197d).
  const auto word = [&](Gva at) { return reader.kernel().read<std::uint64_t>(at).value_or(0); };
  const auto field = reader.kernel().types().field("cred", "cap_effective");
  const auto capabilities = [&](Gva cred) { return field ? word(cred + field->offset) : 0; };
  const std::uint64_t old_capabilities = capabilities(before),
                      new_capabilities = is_capset ? word(call.pointer(3)) : capabilities(now);
  Meaning meaning;
  if (is_capset) {
    meaning.sentence = fmt::format("changes its capabilities from {:#x} to {:#x}", old_capabilities, new_capabilities);
  } else if (call.function == "security_task_fix_setgid") {
    meaning.sentence = fmt::format("changes its group from {} to {}", id(before, "egid.val"), id(now, "egid.val"));
  } else {
    meaning.sentence = fmt::format("changes its user from {} to {}", id(before, "euid.val"), id(now, "euid.val"));
  }
  meaning.with("old_uid", id(before, "uid.val")).with("new_uid", id(now, "uid.val"));
  meaning.with("old_euid", id(before, "euid.val")).with("new_euid", id(now, "euid.val"));
  meaning.with("old_egid", id(before, "egid.val")).with("new_egid", id(now, "egid.val"));
  meaning.with("old_capabilities", old_capabilities).with("new_capabilities", new_capabilities);
  return meaning;
}

LARARIUM_HOOK(credentials, "credentials", "a process changes its user, groups or capabilities",
              "By setuid(2) and its relatives, and by capset(2). What a program gets by its file (setuid bit, file "
              "capabilities) is seen by `exec`; what code in the kernel gives itself, by `lararium check`.",
              true, points, tell)

} // namespace
} // namespace lararium::gate
