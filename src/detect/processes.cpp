// Processes that are in one of the kernel's records and not in another: who hides from `ps` leaves the list of tasks or
// the table of pids; who wants to run stays on a run queue.

#include "lararium/detect/check.h"
#include "lararium/os/linux/list.h"
#include "lararium/os/linux/tasks.h"
#include "lararium/os/linux/xarray.h"

#include <algorithm>
#include <fmt/format.h>
#include <map>
#include <optional>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;
using linux_guest::LayoutResolver;
using linux_guest::WalkResult;

enum Source : std::uint8_t { task_list, pid_table, current_task, run_queue, control_groups, source_count };
constexpr const char *source_names[] = {"the list of tasks", "the table of pids", "the CPUs' current tasks",
                                        "the run queues", "the control groups"};
constexpr std::size_t task_limit = 1 << 22;

struct Seen {
  std::int32_t pid = 0, tgid = 0;
  std::uint8_t in = 0; // bits of Source
};

struct Layout {
  FieldLocation pid, tgid, state, flags, exit_state, comm;
  std::optional<FieldLocation> pid_link, pid_tasks, namespace_idr;
  std::optional<FieldLocation> queue_current, queue_tasks, queue_link;
  std::optional<FieldLocation> set_tasks, set_dying, set_link, set_hash;

  static Result<Layout> resolve(const Kernel &kernel) {
    LayoutResolver layout(kernel.types());
    Layout f;
    f.pid = layout.require("task_struct", "pid");
    f.tgid = layout.require("task_struct", "tgid");
    f.flags = layout.require("task_struct", "flags");
    f.exit_state = layout.require("task_struct", "exit_state");
    f.comm = layout.require("task_struct", "comm");
    f.pid_link = layout.optional("task_struct", "pid_links");
    f.pid_tasks = layout.optional("pid", "tasks");
    f.namespace_idr = layout.optional("pid_namespace", "idr");
    f.queue_current = layout.optional("rq", "curr");
    f.queue_tasks = layout.optional("rq", "cfs_tasks");
    f.queue_link = layout.optional("task_struct", "se.group_node");
    f.set_tasks = layout.optional("css_set", "tasks");
    f.set_link = layout.optional("task_struct", "cg_list");
    f.set_hash = layout.optional("css_set", "hlist");
    TRY(layout.check());
    return f;
  }
};

class Processes final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override {
    const Kernel &kernel = scene.kernel();
    TRY_ASSIGN(const Layout *layout, kernel.layout<Layout>());
    Look look{scene, kernel, *layout, {}, {}};
    TRY(look.gather());
    look.report(findings);
    return {};
  }

private:
  struct Look {
    const Scene &scene;
    const Kernel &kernel;
    const Layout &f;
    std::map<Gva, Seen> tasks;
    bool complete[source_count] = {};

    void see(Gva task, Source source) {
      if (!kernel.is_kernel_address(task) || tasks.size() >= task_limit)
        return;
      auto [entry, is_new] = tasks.try_emplace(task);
      if (is_new) {
        entry->second.pid = static_cast<std::int32_t>(kernel.read_field(task, f.pid).value_or(0));
        entry->second.tgid = static_cast<std::int32_t>(kernel.read_field(task, f.tgid).value_or(0));
      }
      entry->second.in |= static_cast<std::uint8_t>(1 << source);
    }

    Result<void> gather() {
      ViewStatus status;
      TRY_ASSIGN(const auto listed, linux_guest::list_tasks(kernel, true, status));
      for (const auto &entry : listed)
        see(entry.task, task_list);
      complete[task_list] = !status.raced && !status.truncated;
      from_pid_table();
      from_cpus();
      from_control_groups();
      return {};
    }

    // The IDR of the first pid namespace: each number's struct pid, and the thread that has it (4.15, 95846ecf9dac).
    void from_pid_table() {
      const auto first_namespace = kernel.symbol("init_pid_ns");
      const auto reader = linux_guest::XarrayReader::create(kernel);
      if (!first_namespace || !f.namespace_idr || !f.pid_tasks || !f.pid_link || !reader)
        return;
      const WalkResult walk = reader->for_each_of_idr(
          *first_namespace + f.namespace_idr->offset, task_limit, [&](const linux_guest::XarrayEntry &entry) {
            // tasks[PIDTYPE_PID].first, a link in task_struct.pid_links[PIDTYPE_PID]
            const auto link = kernel.read_pointer(entry.pointer(), *f.pid_tasks);
            if (!entry.is_value && link && *link && kernel.is_kernel_address(*link))
              see(*link - f.pid_link->offset, pid_table);
            return true;
          });
      complete[pid_table] = walk.consistent();
    }

    void from_cpus() {
      if (!f.queue_current)
        return;
      const auto idle = [&](Gva task) { return kernel.read_field(task, f.pid).value_or(0) == 0; };
      for (std::uint32_t cpu = 0; cpu < kernel.cpu_count(); ++cpu) {
        const auto queue = kernel.per_cpu_symbol("runqueues", cpu);
        if (!queue)
          continue;
        if (const auto task = kernel.read_pointer(*queue, *f.queue_current);
            task && kernel.is_kernel_address(*task) && !idle(*task))
          see(*task, current_task);
        if (f.queue_tasks && f.queue_link)
          linux_guest::walk_list(kernel, *queue + f.queue_tasks->offset, task_limit, [&](Gva link) {
            see(link - f.queue_link->offset, run_queue);
            return true;
          });
      }
    }

    // css_set_table: every set of control groups, with its tasks.
    void from_control_groups() {
      const auto table = kernel.symbol("css_set_table");
      if (!table || !f.set_tasks || !f.set_link || !f.set_hash)
        return;
      constexpr std::uint64_t buckets = 128; // CSS_SET_HASH_BITS is 7
      std::size_t sets = 0;
      for (std::uint64_t bucket = 0; bucket < buckets; ++bucket) {
        const auto first = kernel.read_pointer(*table + 8 * bucket);
        if (!first)
          continue;
        constexpr std::size_t set_limit = 1 << 16;
        linux_guest::walk_chain(kernel, *first, 0, set_limit, [&](Gva node) {
          const Gva set = node - f.set_hash->offset;
          linux_guest::walk_list(kernel, set + f.set_tasks->offset, task_limit, [&](Gva link) {
            see(link - f.set_link->offset, control_groups);
            return true;
          });
          return ++sets < set_limit;
        });
      }
    }

    void report(Findings &findings) const {
      constexpr std::uint64_t pf_exiting = 4;
      for (const auto &[task, seen] : tasks) {
        // Each record is left in turn when a task ends.
        if (seen.pid <= 0 || kernel.read_field(task, f.exit_state).value_or(1) != 0 ||
            (kernel.read_field(task, f.flags).value_or(0) & pf_exiting) != 0)
          continue;
        for (const Source source : {task_list, pid_table}) {
          if (!complete[source] || (seen.in >> source & 1) != 0)
            continue;
          std::string others;
          for (std::uint8_t other = 0; other < source_count; ++other)
            if ((seen.in >> other & 1) != 0)
              others += (others.empty() ? "" : ", ") + std::string(source_names[other]);
          const std::string comm = kernel.space().read_c_string(task + f.comm.offset, f.comm.size).value_or("");
          Finding &finding =
              findings.add({.subject = fmt::format("pid {} {}", seen.pid, source_names[source]),
                            .severity = Severity::critical,
                            .technique = "T1564.001",
                            .sentence = fmt::format("process {} ({}) is in {} and not in {}: it is hidden", seen.pid,
                                                    comm, others, source_names[source])});
          finding.with("address", task).with("missing_from", std::string(source_names[source])).with("seen_in", others);
          Actor actor;
          actor.pid = seen.tgid;
          actor.comm = comm;
          for (const Process &process : scene.processes())
            if (process.task == task)
              actor = scene.actor(process);
          finding.process = std::move(actor);
        }
      }
    }
  };
};

LARARIUM_CHECK(
    Processes, "processes", "T1564.001 T1014", "processes that hide from ps",
    "Compares the list of tasks, the table of pids, what each CPU runs now, the run queues, and the tasks of "
    "the control groups. A task that is missing from the list or from the table, and is not just ending, is "
    "hidden. One that is in none of them and does not run is not seen.")

} // namespace
} // namespace lararium::detect
