// Starting a program.
#include "lararium/gate/hook.h"

#include <fmt/format.h>

namespace lararium::gate {
namespace {

Result<std::vector<HookPoint>> points(const linux_guest::Kernel &kernel) {
  return points_at(kernel, {{"security_bprm_check",
                             {},
                             {keep_path_of_file(1, {{"linux_binprm", "file"}}),
                              keep_member(1, {{"linux_binprm", "file"}}),
                              keep_member(1, {{"linux_binprm", "filename"}}),
                              {KeepKind::text, 1, {{"linux_binprm", "filename"}, {}}},
                              keep_member(1, {{"linux_binprm", "mm"}}),
                              keep_member(1, {{"linux_binprm", "p"}}),
                              keep_member(1, {{"linux_binprm", "argc"}}),
                              {KeepKind::user_arguments, 1}}}});
}

// struct linux_binprm: the arguments are on the new program's stack already.
Meaning tell(const CallReader &reader, const HookedCall &call) {
  const Gva program = call.pointer(1);
  const auto file = reader.pointer(program, "linux_binprm", "file");
  const std::string path = file ? reader.path_of_file(*file) : std::string();
  const auto named = reader.pointer(program, "linux_binprm", "filename");
  Meaning meaning{fmt::format("executes {}", path)};
  meaning.with("path", path).with("filename", named ? reader.text(*named) : std::string());
  const auto memory = reader.pointer(program, "linux_binprm", "mm");
  const auto arguments = reader.number(program, "linux_binprm", "p"),
             count = reader.number(program, "linux_binprm", "argc");
  std::string line;
  if (memory && arguments && count)
    for (const std::string &argument : reader.user_strings(*memory, Gva{*arguments}, *count))
      line += (line.empty() ? "" : " ") + argument;
  meaning.with("argv", line).with("argc", count.value_or(0));
  return meaning;
}

LARARIUM_HOOK(
    exec, "exec", "a program is started",
    "Each file that execve() is about to run, the interpreter of a script after the script. Rules match `path`, the "
    "file itself, whatever link or name led to it, and `argv`. A memfd has a path such as /memfd:name.",
    true, points, tell)

} // namespace
} // namespace lararium::gate
