// Files that are opened, removed and renamed, and file systems that are mounted.
#include "lararium/gate/hook.h"

#include <fmt/format.h>

namespace lararium::gate {
namespace {

constexpr std::uint64_t access_mask = 3, write_only = 1, read_write = 2; // O_ACCMODE, O_WRONLY, O_RDWR

Result<std::vector<HookPoint>> open_points(const linux_guest::Kernel &kernel) {
  return points_at(kernel, {{"security_file_open", {}, {keep_path_of_file(1), keep_member(1, {{"file", "f_flags"}})}}});
}

Meaning tell_open(const CallReader &reader, const HookedCall &call) {
  const Gva file = call.pointer(1);
  const std::string path = reader.path_of_file(file);
  const std::uint64_t flags = reader.number(file, "file", "f_flags").value_or(0);
  const std::uint64_t access = flags & access_mask;
  const bool writes = access == write_only || access == read_write;
  Meaning meaning{fmt::format("opens {} for {}", path, writes ? "writing" : "reading")};
  meaning.with("path", path).with("flags", flags).with("write", writes);
  return meaning;
}

LARARIUM_HOOK(
    open_hook, "open", "a file is opened",
    "Whatever way leads to it (open, openat2, io_uring, execve, the kernel itself), before it succeeds; a file that is "
    "to be made is made by then. Rules match `path`, `write` (yes or no) and `flags`. It happens often: where cost "
    "counts, leave it out of --hooks.",
    true, open_points, tell_open)

Keep keep_path_below(std::uint8_t directory, std::uint8_t dentry) {
  return {KeepKind::path_below, directory, {}, KeepRole::path, dentry};
}

Result<std::vector<HookPoint>> unlink_points(const linux_guest::Kernel &kernel) {
  const std::vector<Keep> keeps{keep_path_below(1, 2)};
  return points_at(kernel, {{"security_path_unlink", {}, keeps}, {"security_path_rmdir", {}, keeps}});
}

Meaning tell_unlink(const CallReader &reader, const HookedCall &call) {
  const std::string path = reader.path_below(call.pointer(1), call.pointer(2));
  Meaning meaning{fmt::format("removes {}", path)};
  meaning.with("path", path).with("directory", call.function.ends_with("rmdir"));
  return meaning;
}

LARARIUM_HOOK(unlink_hook, "unlink", "a file or directory is removed",
              "By a system call; what file servers in the kernel remove is not seen.", true, unlink_points, tell_unlink)

Result<std::vector<HookPoint>> rename_points(const linux_guest::Kernel &kernel) {
  return points_at(kernel, {{"security_path_rename", {}, {keep_path_below(1, 2), keep_path_below(3, 4)}}});
}

Meaning tell_rename(const CallReader &reader, const HookedCall &call) {
  const std::string from = reader.path_below(call.pointer(1), call.pointer(2)),
                    to = reader.path_below(call.pointer(3), call.pointer(4));
  Meaning meaning{fmt::format("renames {} to {}", from, to)};
  meaning.with("path", from).with("new_path", to);
  return meaning;
}

LARARIUM_HOOK(rename_hook, "rename", "a file or directory is renamed", "By a system call. `path` is the old name.",
              true, rename_points, tell_rename)

Result<std::vector<HookPoint>> mount_points(const linux_guest::Kernel &kernel) {
  return points_at(
      kernel,
      {{"security_sb_mount", {}, {{KeepKind::path, 2, {}, KeepRole::path}, {KeepKind::text, 1}, {KeepKind::text, 3}}},
       {"security_move_mount", {}, {{KeepKind::path, 2, {}, KeepRole::path}, {KeepKind::path, 1}}}});
}

// security_sb_mount(dev_name, path, type, flags, data), security_move_mount(from_path, to_path)
Meaning tell_mount(const CallReader &reader, const HookedCall &call) {
  if (call.function == "security_move_mount") {
    const std::string from = reader.path(call.pointer(1)), to = reader.path(call.pointer(2));
    Meaning meaning{fmt::format("mounts {} at {}", from, to)};
    meaning.with("path", to).with("source", from).with("filesystem", std::string());
    return meaning;
  }
  const std::string source = reader.text(call.pointer(1)), path = reader.path(call.pointer(2)),
                    type = reader.text(call.pointer(3));
  Meaning meaning{fmt::format("mounts {} ({}) at {}", source, type, path)};
  meaning.with("path", path).with("source", source).with("filesystem", type).with("flags", call.arguments[3]);
  return meaning;
}

LARARIUM_HOOK(mount_hook, "mount", "a file system is mounted, moved or remounted",
              "By mount(2) or move_mount(2). `path` is where.", true, mount_points, tell_mount)

} // namespace
} // namespace lararium::gate
