// Tasks: the walk through the task list, and what `ps` shows of each.
#pragma once

#include "lararium/os/common/operating_system.h"
#include "lararium/os/linux/kernel.h"
#include "lararium/os/linux/list.h"

#include <functional>
#include <optional>
#include <vector>

namespace lararium::linux_guest {

struct TaskEntry {
  Gva task;
  std::int32_t pid = 0, tgid = 0;
};

// All thread group leaders, init_task (pid 0) left out, in the list's order; with `threads`, all threads; those of the
// processes `only`, where it names some. The walk is repeated up to 4 times when the guest changed the list meanwhile;
// `status` tells.
[[nodiscard]] Result<std::vector<TaskEntry>> list_tasks(const Kernel &kernel, bool threads, ViewStatus &status,
                                                        std::span<const std::int32_t> only = {});

// The task_struct of a process (of its leader), or not_found.
[[nodiscard]] Result<Gva> find_task(const Kernel &kernel, std::int32_t pid);

// The page table of a process' user half; nothing for kernel threads and dead processes.
[[nodiscard]] std::optional<x86_64::PageTableRoot> user_page_table(const Kernel &kernel, Gva task);

// The timekeeper of the system's clocks.
[[nodiscard]] std::optional<Gva> timekeeper_address(const Kernel &kernel);

// Wall clock minus the clock of task start times, in ns: add it to a time since boot.
[[nodiscard]] std::optional<std::int64_t> boot_time_ns(const Kernel &kernel);

// How many bytes the texts (paths, arguments) of one view may have together: far more than any real guest's, and in
// proportion to its memory, since crafted structures can name one long text as often as they like.
[[nodiscard]] std::size_t view_text_limit(const Kernel &kernel);

// From a task's `comm`.
[[nodiscard]] std::string task_comm(const Kernel &kernel, Gva task);

// Who a task is, by as few reads as that takes: for moments in which somebody waits.
struct TaskBrief {
  Gva task;
  std::int32_t pid = 0, tgid = 0, ppid = 0; // ppid: of the process
  std::uint32_t uid = 0;                    // effective
  std::string comm;
};
// The task that a CPU runs, pid 0 (a CPU's idle task) too; nothing where it cannot be read.
[[nodiscard]] std::optional<TaskBrief> running_task(const Kernel &kernel, std::uint32_t cpu);

// The process of one task, without its arguments and memory; nothing where it cannot be read. For moments in which
// somebody waits: no list is walked.
[[nodiscard]] std::optional<Process> process_of_task(const Kernel &kernel, Gva task);
// A task's real_parent's process; nothing for the first and where it cannot be read.
[[nodiscard]] std::optional<Gva> parent_of_task(const Kernel &kernel, Gva task);

// The id of the container that a control group (struct kernfs_node) belongs to, empty if it belongs to none; nothing
// where it is no longer the group with this number.
[[nodiscard]] std::optional<std::string> container_of_group(const Kernel &kernel, Gva node, std::uint64_t number);

[[nodiscard]] Result<View<Process>> read_processes(const Kernel &kernel, const ProcessQuery &query);
[[nodiscard]] Result<View<ProcessMark>> read_process_marks(const Kernel &kernel);

} // namespace lararium::linux_guest
