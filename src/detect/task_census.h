// The tasks that each of the kernel's records of them has: who hides leaves some and needs others.
#pragma once

#include "lararium/os/linux/kernel.h"

#include <cstdint>
#include <map>
#include <string>

namespace lararium::detect {

enum TaskSource : std::uint8_t {
  task_list,
  pid_table,
  current_task,
  run_queue,
  control_groups,
  task_memory, // the pages of which the kernel allocates tasks: all of them, whatever they left
  task_source_count
};
inline constexpr const char *task_source_names[] = {"the list of tasks",       "the table of pids",
                                                    "the CPUs' current tasks", "the run queues",
                                                    "the control groups",      "the memory of tasks"};

struct SeenTask {
  std::int32_t pid = 0, tgid = 0;
  std::uint8_t in = 0; // bits of TaskSource
};

struct TaskCensus {
  std::map<Gva, SeenTask> tasks;         // threads too
  bool complete[task_source_count] = {}; // false: what is missing in that record says nothing
  std::string unseen;                    // of the memory of tasks: a sentence
};

[[nodiscard]] Result<TaskCensus> take_task_census(const linux_guest::Kernel &kernel);

// Whether a task neither ended nor is about to. One that has memory of its own has not ended yet, whatever its flags
// say.
[[nodiscard]] bool is_alive(const linux_guest::Kernel &kernel, Gva task);

} // namespace lararium::detect
