#include "task_census.h"

#include "lararium/os/linux/list.h"
#include "lararium/os/linux/tasks.h"
#include "lararium/os/linux/xarray.h"

#include <optional>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;
using linux_guest::LayoutResolver;
using linux_guest::WalkResult;

constexpr std::size_t task_limit = 1 << 22;

struct Layout {
  FieldLocation pid, tgid, flags, exit_state;
  std::optional<FieldLocation> pid_link, pid_tasks, namespace_idr;
  std::optional<FieldLocation> queue_current, queue_tasks, queue_link;
  std::optional<FieldLocation> set_tasks, set_link, set_hash;

  static Result<Layout> resolve(const Kernel &kernel) {
    LayoutResolver layout(kernel.types());
    Layout f;
    f.pid = layout.require("task_struct", "pid");
    f.tgid = layout.require("task_struct", "tgid");
    f.flags = layout.require("task_struct", "flags");
    f.exit_state = layout.require("task_struct", "exit_state");
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

struct Gatherer {
  const Kernel &kernel;
  const Layout &f;
  TaskCensus census{};

  void see(Gva task, TaskSource source) {
    if (!kernel.is_kernel_address(task) || census.tasks.size() >= task_limit)
      return;
    auto [entry, is_new] = census.tasks.try_emplace(task);
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
    census.complete[task_list] = !status.raced && !status.truncated;
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
    census.complete[pid_table] = walk.consistent();
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
};

} // namespace

Result<TaskCensus> take_task_census(const Kernel &kernel) {
  TRY_ASSIGN(const Layout *layout, kernel.layout<Layout>());
  Gatherer gatherer{kernel, *layout};
  TRY(gatherer.gather());
  return std::move(gatherer.census);
}

bool is_alive(const Kernel &kernel, Gva task) {
  constexpr std::uint64_t pf_exiting = 4;
  const auto layout = kernel.layout<Layout>();
  // Each record is left in turn when a task ends.
  return layout && kernel.read_field(task, (*layout)->exit_state).value_or(1) == 0 &&
         (kernel.read_field(task, (*layout)->flags).value_or(0) & pf_exiting) == 0;
}

} // namespace lararium::detect
