// Kernel threads whose function is nobody's, and what those of them do that take works.

#include "handler.h"
#include "lararium/os/linux/list.h"
#include "lararium/os/linux/tasks.h"

#include <fmt/format.h>
#include <optional>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;
using linux_guest::LayoutResolver;

constexpr std::size_t work_limit = 1 << 16;
constexpr std::uint64_t kernel_thread_flag = 0x00200000; // PF_KTHREAD

class KernelThreads final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override {
    const Kernel &kernel = scene.kernel();
    LayoutResolver layout(kernel.types());
    const auto flags = layout.require("task_struct", "flags");
    // Its struct kthread: in a member of its own since 5.17 (e32cf5dfbe22), before that in one for user threads.
    const auto own = layout.require_any("task_struct", {"worker_private", "set_child_tid"});
    const auto function = layout.require("kthread", "threadfn"); // earlier kernels (5.4) forget it
    const auto data = layout.require("kthread", "data");
    TRY(layout.check());
    const auto takes_works = kernel.symbol("kthread_worker_fn");
    Budget budget(work_limit);
    const auto &tasks = scene.tasks();
    if (!tasks)
      return std::unexpected(tasks.error());
    for (const auto &entry : tasks->items) {
      if ((kernel.read_field(entry.task, flags).value_or(0) & kernel_thread_flag) == 0)
        continue;
      const auto thread = kernel.read_pointer(entry.task, own);
      if (!thread || !kernel.is_kernel_address(*thread))
        continue; // one that runs a program soon, and has no function of its own
      const Gva at = *thread + function.offset;
      const auto target = kernel.read_pointer(at);
      if (!target)
        continue;
      if (!is_lawful(scene, at, *target, Trust::any_owner))
        judge(scene,
              {.at = at,
               .target = *target,
               .what = fmt::format("the kernel thread {} ({})", entry.pid, linux_guest::task_comm(kernel, entry.task))},
              findings);
      if (takes_works && *target == *takes_works)
        if (const auto worker = kernel.read_pointer(*thread, data); worker && kernel.is_kernel_address(*worker))
          look_at_works(scene, *worker, entry.pid, budget, findings);
    }
    return {};
  }

private:
  static void look_at_works(const Scene &scene, Gva worker, std::int32_t pid, Budget &budget, Findings &findings) {
    const Kernel &kernel = scene.kernel();
    const Types &types = kernel.types();
    const auto node = types.field("kthread_work", "node"), function = types.field("kthread_work", "func");
    if (!node || !function)
      return;
    const auto look_at = [&](Gva work) {
      const Gva at = work + function->offset;
      if (const auto target = kernel.read_pointer(at); target && !is_lawful(scene, at, *target, Trust::any_owner))
        judge(scene,
              {.at = at,
               .target = *target,
               .what = fmt::format("the work at {:#x} of kernel thread {}", work.value, pid)},
              findings);
    };
    for (const std::string_view member : {"work_list", "delayed_work_list"})
      if (const auto list = types.field("kthread_worker", member))
        linux_guest::walk_list(kernel, worker + list->offset, work_limit, [&](Gva link) {
          look_at(link - node->offset);
          return budget.take();
        });
    if (const auto current = types.field("kthread_worker", "current_work"))
      if (const auto work = kernel.read_pointer(worker, *current); work && kernel.is_kernel_address(*work))
        look_at(*work);
  }
};

LARARIUM_CHECK(
    KernelThreads, "kernel_threads", "T1014 T1564", "kernel threads whose function is nobody's",
    "The function of every kernel thread, and of the works that such threads take, must lie in the kernel or a "
    "module. Old kernels (5.4) do not keep the function. A thread that a rootkit hides from the list of "
    "tasks is found by the check processes.")

} // namespace
} // namespace lararium::detect
