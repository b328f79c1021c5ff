#include "environment.h"

#include "vfs.h"

#include <algorithm>
#include <fmt/format.h>

namespace lararium::linux_guest {
namespace {

// execve() allows arguments and environment together three quarters of 8 MiB (_STK_LIM in fs/exec.c).
constexpr std::uint64_t bytes_limit = 6 << 20;

} // namespace

Result<View<std::string>> read_environment(const Kernel &kernel, std::int32_t pid) {
  View<std::string> view;
  TRY_ASSIGN(const auto groups, list_task_groups(kernel, pid, view.status));
  LayoutResolver layout(kernel.types());
  const auto mm_member = layout.require("task_struct", "mm");
  const auto begin_member = layout.require("mm_struct", "env_start");
  const auto end_member = layout.require("mm_struct", "env_end");
  TRY(layout.check());
  for (const Gva task : groups.front().tasks) {
    const auto mm = kernel.read_pointer(task, mm_member);
    if (!mm || !*mm)
      continue;
    const auto root = user_page_table(kernel, task);
    if (!root) {
      view.status.raced = true;
      view.status.warn(fmt::format("the memory of process {} leads out of readable kernel memory", pid));
      continue;
    }
    const auto begin = kernel.read_pointer(*mm, begin_member);
    const auto end = kernel.read_pointer(*mm, end_member);
    if (!begin || !end || *end <= *begin)
      return view;
    const std::uint64_t whole = *end - *begin;
    std::vector<std::byte> bytes(std::min(whole, bytes_limit));
    const std::size_t got = read_uncached(kernel.memory(), *root, *begin, bytes);
    if (got < whole) {
      view.status.truncated = true;
      view.status.warn(fmt::format("{} of {} bytes of the environment are in memory", got, whole));
    }
    for (std::size_t at = 0; at < got;) {
      const auto text = c_string(std::span(bytes).first(got), at);
      view.items.emplace_back(text);
      at += text.size() + 1;
    }
    return view;
  }
  return view;
}

} // namespace lararium::linux_guest
