#include "task_census.h"

#include "lararium/os/linux/list.h"
#include "lararium/os/linux/tasks.h"
#include "lararium/os/linux/xarray.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <set>
#include <vector>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;
using linux_guest::LayoutResolver;
using linux_guest::WalkResult;

constexpr std::size_t task_limit = 1 << 22;
constexpr std::uint64_t frame_limit = 1 << 24; // of RAM, whose page structures are read in one look: 64 GiB
// The kernel makes room for as much of the last member, the registers, as the CPU has.
constexpr std::uint64_t largest_slab = 1 << 10, smallest_task = 1 << 10, largest_task = 1 << 16;
constexpr std::uint32_t stack_end_magic = 0x57ac6e9d; // STACK_END_MAGIC
constexpr std::uint64_t task_dead = 0x80, task_new = 0x800;

struct Layout {
  FieldLocation pid, tgid, mm, flags, exit_state;
  std::optional<FieldLocation> pid_link, pid_tasks, namespace_idr;
  std::optional<FieldLocation> queue_current, queue_tasks, queue_link;
  std::optional<FieldLocation> set_tasks, set_moving, set_dying, set_link, set_hash;
  std::optional<FieldLocation> slab_cache, cache_size, cache_pad, cache_order, cache_least_order;
  std::optional<FieldLocation> state, stack, thread_pid, numbers, number;
  std::uint64_t page_struct_size = 0;

  static Result<Layout> resolve(const Kernel &kernel) {
    LayoutResolver layout(kernel.types());
    Layout f;
    f.pid = layout.require("task_struct", "pid");
    f.tgid = layout.require("task_struct", "tgid");
    f.mm = layout.require("task_struct", "mm");
    f.flags = layout.require("task_struct", "flags");
    f.exit_state = layout.require("task_struct", "exit_state");
    f.pid_link = layout.optional("task_struct", "pid_links");
    f.pid_tasks = layout.optional("pid", "tasks");
    f.namespace_idr = layout.optional("pid_namespace", "idr");
    f.queue_current = layout.optional("rq", "curr");
    f.queue_tasks = layout.optional("rq", "cfs_tasks");
    f.queue_link = layout.optional("task_struct", "se.group_node");
    f.set_tasks = layout.optional("css_set", "tasks");
    f.set_moving = layout.optional("css_set", "mg_tasks");
    f.set_dying = layout.optional("css_set", "dying_tasks"); // 5.3, c03cd7738a83
    f.set_link = layout.optional("task_struct", "cg_list");
    f.set_hash = layout.optional("css_set", "hlist");
    f.slab_cache = layout.optional("slab", "slab_cache"); // 5.17, d122019bf061
    if (!f.slab_cache)
      f.slab_cache = layout.optional("page", "slab_cache");
    f.cache_size = layout.optional("kmem_cache", "size");
    f.cache_pad = layout.optional("kmem_cache", "red_left_pad");
    f.cache_order = layout.optional("kmem_cache", "oo.x");
    f.cache_least_order = layout.optional("kmem_cache", "min.x");
    f.state = layout.optional_any("task_struct", {"__state", "state"}); // 5.14, 2f064a59a11f
    f.stack = layout.optional("task_struct", "stack");
    f.thread_pid = layout.optional("task_struct", "thread_pid");
    f.numbers = layout.optional("pid", "numbers");
    f.number = layout.optional("upid", "nr");
    f.page_struct_size = kernel.types().size_of("page").value_or(0);
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
    from_memory();
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
    constexpr std::size_t set_limit = 1 << 16;
    // Not many more than other records have; made-up ones would go on for long.
    const std::size_t visit_limit = 2 * census.tasks.size() + (1 << 16);
    std::size_t sets = 0, visits = 0;
    bool whole = true;
    for (std::uint64_t bucket = 0; bucket < buckets; ++bucket) {
      const auto first = kernel.read_pointer(*table + 8 * bucket);
      if (!first) {
        whole = false;
        continue;
      }
      const WalkResult chain = linux_guest::walk_chain(kernel, *first, 0, set_limit, [&](Gva node) {
        const Gva set = node - f.set_hash->offset;
        for (const auto &list : {f.set_tasks, f.set_moving, f.set_dying})
          if (list)
            whole &= linux_guest::walk_list(kernel, set + list->offset, task_limit, [&](Gva link) {
                       see(link - f.set_link->offset, control_groups);
                       return ++visits < visit_limit;
                     }).consistent();
        return ++sets < set_limit && visits < visit_limit;
      });
      whole &= chain.consistent();
    }
    const auto count = kernel.symbol("css_set_count");
    census.complete[control_groups] =
        whole && visits < visit_limit && count && kernel.read<std::uint32_t>(*count) == sets;
  }

  // Each frame of RAM that belongs to the cache of which the kernel allocates tasks, and in it each task that lives.
  void from_memory() {
    const auto cache_symbol = kernel.symbol("task_struct_cachep");
    const auto cache = cache_symbol ? kernel.read_pointer(*cache_symbol) : std::nullopt;
    const auto map_symbol = kernel.symbol("vmemmap_base"), direct_symbol = kernel.symbol("page_offset_base");
    const auto map = map_symbol ? kernel.read_pointer(*map_symbol) : std::nullopt,
               direct = direct_symbol ? kernel.read_pointer(*direct_symbol) : std::nullopt;
    if (!cache || !map || !direct || !kernel.is_kernel_address(*cache) || !f.slab_cache || !f.cache_size ||
        !f.cache_order || !f.cache_least_order || !f.state || !f.stack || !f.thread_pid || !f.numbers || !f.number ||
        f.page_struct_size < 32 || f.page_struct_size > 256) {
      census.unseen = "the kernel does not tell which memory holds its tasks";
      return;
    }
    const std::uint64_t stride = kernel.read_field(*cache, *f.cache_size).value_or(0),
                        pad = f.cache_pad ? kernel.read_field(*cache, *f.cache_pad).value_or(0) : 0,
                        order = kernel.read_field(*cache, *f.cache_order).value_or(0),
                        least = kernel.read_field(*cache, *f.cache_least_order).value_or(0) >> 16;
    // kmem_cache_order_objects: the order of a slab above, how many objects it has below.
    const std::uint64_t objects = order & 0xffff;
    if (stride < smallest_task || stride > largest_task || pad >= stride || objects == 0 || objects > largest_slab ||
        least > 10) {
      census.unseen = "what the kernel tells of the memory of its tasks contradicts itself";
      return;
    }
    // The pids of those that other records know: a task that is being made, or whose making failed, is a copy of one.
    std::set<std::int32_t> known;
    for (const auto &[task, seen] : census.tasks)
      known.insert(seen.pid);
    std::uint64_t frames = 0;
    constexpr std::uint64_t chunk_frames = 512;
    std::vector<std::byte> chunk(chunk_frames * f.page_struct_size);
    for (const RamRange &range : kernel.memory().ranges())
      for (std::uint64_t frame = range.base.value / page_size, end = frame + range.size / page_size; frame < end;) {
        const std::uint64_t count = std::min(end - frame, chunk_frames);
        if ((frames += count) > frame_limit) {
          census.unseen = "only the first 64 GiB of memory were searched for tasks";
          return;
        }
        const auto room = std::span(chunk).first(count * f.page_struct_size);
        if (kernel.space().read(*map + frame * f.page_struct_size, room))
          for (std::uint64_t i = 0; i < count; ++i) {
            if ((frame + i) % (1ULL << least) != 0)
              continue;
            std::uint64_t owner = 0;
            std::memcpy(&owner, room.data() + i * f.page_struct_size + f.slab_cache->offset, sizeof owner);
            if (owner != cache->value)
              continue;
            const Gva slab = *direct + (frame + i) * page_size;
            for (std::uint64_t object = 0; object < objects; ++object)
              see_in_memory(slab + object * stride + pad, known);
          }
        frame += count;
      }
    census.complete[task_memory] = true;
  }

  // A free object still looks like the task that it was, but has no memory, or that it was to become, but in its state.
  void see_in_memory(Gva task, const std::set<std::int32_t> &known) {
    if (census.tasks.contains(task))
      return see(task, task_memory);
    const auto pid = static_cast<std::int32_t>(kernel.read_field(task, f.pid).value_or(0));
    if (pid <= 0 || known.contains(pid) || !is_alive(kernel, task) ||
        (kernel.read_field(task, *f.state).value_or(task_dead) & (task_dead | task_new)) != 0)
      return;
    const auto number = kernel.read_pointer(task, *f.thread_pid), stack = kernel.read_pointer(task, *f.stack);
    if (number && stack && kernel.is_kernel_address(*number) && kernel.is_kernel_address(*stack) &&
        static_cast<std::int32_t>(kernel.read_field(*number + f.numbers->offset, *f.number).value_or(0)) == pid &&
        kernel.read<std::uint32_t>(*stack) == stack_end_magic)
      see(task, task_memory);
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
  if (!layout)
    return false;
  // Each record is left in turn when a task ends, after its memory.
  const Layout &f = **layout;
  return kernel.read_field(task, f.mm).value_or(0) != 0 ||
         (kernel.read_field(task, f.exit_state).value_or(1) == 0 &&
          (kernel.read_field(task, f.flags).value_or(0) & pf_exiting) == 0);
}

} // namespace lararium::detect
