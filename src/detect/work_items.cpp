// What the kernel's workers do and will do: works that run, that are queued, and that wait until their queue lets them.

#include "handler.h"
#include "lararium/os/linux/list.h"
#include "lararium/os/linux/xarray.h"

#include <fmt/format.h>
#include <optional>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;
using linux_guest::LayoutResolver;

constexpr std::size_t pool_limit = 1 << 14, queue_limit = 1 << 14, work_limit = 1 << 17;

class WorkLook {
public:
  WorkLook(const Scene &scene, Findings &findings)
      : scene_(scene), kernel_(scene.kernel()), findings_(findings), layout_(kernel_.types()) {}

  bool look_at_pools() {
    const auto pools = kernel_.symbol("worker_pool_idr");
    const auto queued = layout_.optional("worker_pool", "worklist"),
               workers = layout_.optional("worker_pool", "workers");
    const auto node = layout_.optional("worker", "node");
    if (!pools || !queued || !workers || !node || !entry_ || !function_)
      return false;
    auto reader = linux_guest::XarrayReader::create(kernel_);
    if (!reader)
      return false;
    reader->for_each_of_idr(*pools, pool_limit, [&](const linux_guest::XarrayEntry &pool) {
      if (pool.is_value || !kernel_.is_kernel_address(pool.pointer()))
        return true;
      look_at_works(pool.pointer() + queued->offset);
      linux_guest::walk_list(kernel_, pool.pointer() + workers->offset, work_limit, [&](Gva link) {
        look_at_worker(link - node->offset);
        return budget_.take();
      });
      return !budget_.is_spent();
    });
    return true;
  }

  bool look_at_queues() {
    const auto queues = kernel_.symbol("workqueues");
    const auto list = layout_.optional("workqueue_struct", "list"),
               parts = layout_.optional("workqueue_struct", "pwqs"),
               rescuer = layout_.optional("workqueue_struct", "rescuer");
    // 5.15 gave the works that are over a queue's limit their present name.
    const auto node = layout_.optional("pool_workqueue", "pwqs_node"),
               waiting = layout_.optional_any("pool_workqueue", {"inactive_works", "delayed_works"});
    if (!queues || !list || !parts || !node || !waiting || !entry_ || !function_)
      return false;
    linux_guest::walk_list(kernel_, *queues, queue_limit, [&](Gva link) {
      const Gva queue = link - list->offset;
      linux_guest::walk_list(kernel_, queue + parts->offset, queue_limit, [&](Gva part_link) {
        look_at_works(part_link - node->offset + waiting->offset);
        return budget_.take();
      });
      if (const auto worker = rescuer ? kernel_.read_pointer(queue, *rescuer) : std::nullopt; worker && *worker)
        look_at_worker(*worker);
      return budget_.take();
    });
    return true;
  }

private:
  void look_at_works(Gva head) {
    linux_guest::walk_list(kernel_, head, work_limit, [&](Gva link) {
      const Gva work = link - entry_->offset;
      look_at(work + function_->offset, fmt::format("the queued work at {:#x}", work.value));
      return budget_.take();
    });
  }

  void look_at_worker(Gva worker) {
    if (scheduled_)
      look_at_works(worker + scheduled_->offset);
    // The work itself may be gone: its function is allowed to free it.
    if (running_)
      look_at(worker + running_->offset, fmt::format("the work that the worker at {:#x} does", worker.value));
  }

  void look_at(Gva at, const std::string &what) {
    const auto function = kernel_.read_pointer(at);
    if (function && !is_lawful(scene_, at, *function, Trust::any_owner))
      judge(scene_, {.at = at, .target = *function, .what = what}, findings_);
  }

  const Scene &scene_;
  const Kernel &kernel_;
  Findings &findings_;
  LayoutResolver layout_;
  Budget budget_{work_limit};
  const std::optional<FieldLocation> entry_ = layout_.optional("work_struct", "entry"),
                                     function_ = layout_.optional("work_struct", "func"),
                                     running_ = layout_.optional("worker", "current_func"),
                                     scheduled_ = layout_.optional("worker", "scheduled");
};

class WorkItems final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override {
    WorkLook look(scene, findings);
    const bool pools = look.look_at_pools(), queues = look.look_at_queues();
    if (!pools && !queues)
      return fail(ErrorCode::not_found, "this kernel does not show its workers");
    return {};
  }
};

LARARIUM_CHECK(
    WorkItems, "work_items", "T1014", "works that run or are queued",
    "Every work that a worker does, that is queued, or that waits until its queue lets it, must lead into the "
    "kernel or a module. A work that takes a moment can come and go between two looks; one that waits for its "
    "timer is found by the check timers.")

} // namespace
} // namespace lararium::detect
