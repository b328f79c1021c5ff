// Processes that are in one of the kernel's records and not in another: who hides from `ps` leaves the list of tasks or
// the table of pids; who wants to run stays on a run queue.

#include "lararium/detect/check.h"
#include "lararium/os/linux/tasks.h"
#include "task_census.h"

#include <fmt/format.h>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;

class Processes final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override {
    const Kernel &kernel = scene.kernel();
    TRY_ASSIGN(const TaskCensus census, take_task_census(kernel));
    for (const auto &[task, seen] : census.tasks)
      if (seen.pid > 0 && is_alive(kernel, task))
        report(scene, census, task, seen, findings);
    if (!census.unseen.empty())
      findings.could_not_see(census.unseen);
    return {};
  }

private:
  static void report(const Scene &scene, const TaskCensus &census, Gva task, const SeenTask &seen, Findings &findings) {
    const Kernel &kernel = scene.kernel();
    for (const TaskSource source : {task_list, pid_table, control_groups}) {
      if (!census.complete[source] || (seen.in >> source & 1) != 0)
        continue;
      std::string others;
      for (std::uint8_t other = 0; other < task_source_count; ++other)
        if ((seen.in >> other & 1) != 0)
          others += (others.empty() ? "" : ", ") + std::string(task_source_names[other]);
      const std::string comm = linux_guest::task_comm(kernel, task);
      Finding &finding = findings.add({.subject = fmt::format("pid {} {}", seen.pid, task_source_names[source]),
                                       .severity = Severity::critical,
                                       .technique = "T1564.001",
                                       .sentence = fmt::format("process {} ({}) is in {} and not in {}: it is hidden",
                                                               seen.pid, comm, others, task_source_names[source])});
      finding.with("address", task)
          .with("missing_from", std::string(task_source_names[source]))
          .with("seen_in", others);
      Actor actor;
      actor.pid = seen.tgid;
      actor.comm = comm;
      for (const Process &process : scene.processes())
        if (process.task == task)
          actor = scene.actor(process);
      finding.process = std::move(actor);
    }
  }
};

LARARIUM_CHECK(
    Processes, "processes", "T1564.001 T1014", "processes that hide from ps",
    "Compares the list of tasks with their threads, the table of pids, what each CPU runs now, the run queues, the "
    "tasks "
    "of the control groups, and all memory of which the kernel allocates tasks (in the first 64 GiB). A task that is "
    "missing from the list, the table or the control groups, and is not just ending, is hidden. One that is in no "
    "record "
    "and was copied out of the kernel's own memory of tasks is not seen.")

} // namespace
} // namespace lararium::detect
