// What the kernel will call when time has passed: the timer wheels and high-resolution timers of each CPU, and works
// that wait for a timer of theirs. A rootkit that left no hook anywhere comes back this way.

#include "handler.h"
#include "lararium/os/linux/list.h"
#include "lararium/os/linux/rb_tree.h"
#include "symbol_room.h"

#include <algorithm>
#include <cstring>
#include <fmt/format.h>
#include <optional>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;
using linux_guest::LayoutResolver;

constexpr std::size_t timer_limit = 1 << 17; // of one look
constexpr std::size_t base_size_limit = 64 << 10;
constexpr std::uint32_t wheel_limit = 1024, clock_limit = 16;

class TimerLook {
public:
  TimerLook(const Scene &scene, Findings &findings) : scene_(scene), kernel_(scene.kernel()), findings_(findings) {}

  bool look_at_wheels() {
    LayoutResolver layout(kernel_.types());
    const auto buckets = layout.optional("timer_base", "vectors"),
               running = layout.optional("timer_base", "running_timer"), entry = layout.optional("timer_list", "entry"),
               function = layout.optional("timer_list", "function");
    const auto size = kernel_.types().size_of("timer_base");
    if (!buckets || !running || !entry || !function || !size || *size == 0 || *size > base_size_limit ||
        buckets->offset + buckets->size > *size)
      return false;
    // One, two, or (since 6.9) three, as the kernel was built.
    const std::uint64_t bases = std::clamp<std::uint64_t>(room_of(kernel_.profile(), "timer_bases") / *size, 1, 4);
    std::vector<std::byte> base(*size);
    bool seen = false;
    for (std::uint32_t cpu = 0; cpu < kernel_.cpu_count(); ++cpu) {
      const auto first = kernel_.per_cpu_symbol("timer_bases", cpu);
      for (std::uint64_t number = 0; first && number < bases; ++number) {
        if (!kernel_.space().read(*first + number * *size, base))
          break;
        seen = true;
        const auto pointer_at = [&](std::uint64_t offset) {
          Gva value;
          std::memcpy(&value.value, base.data() + offset, sizeof(value.value));
          return value;
        };
        // On no list while its function runs.
        if (const Gva timer = pointer_at(running->offset); kernel_.is_kernel_address(timer))
          look_at_timer(timer, *function);
        for (std::uint32_t i = 0; i < std::min<std::uint32_t>(buckets->size / 8, wheel_limit); ++i)
          linux_guest::walk_chain(kernel_, pointer_at(buckets->offset + 8 * i), 0, timer_limit, [&](Gva node) {
            look_at_timer(node - entry->offset, *function);
            return budget_.take();
          });
      }
    }
    return seen;
  }

  bool look_at_clocks() {
    LayoutResolver layout(kernel_.types());
    const auto clocks = layout.optional("hrtimer_cpu_base", "clock_base");
    // A tree that keeps its first element at hand (5.4), before that a plain one; newer ones have links too.
    const auto root =
        layout.optional_any("hrtimer_clock_base", {"active.rb_root.rb_root.rb_node", "active.head.rb_node"});
    const auto running = layout.optional("hrtimer_clock_base", "running");
    const auto node = layout.optional_any("hrtimer", {"node.node.node", "node.node"}),
               function = layout.optional("hrtimer", "function");
    const auto size = kernel_.types().size_of("hrtimer_clock_base");
    const auto tree = linux_guest::RbLayout::resolve(kernel_);
    if (!clocks || !root || !node || !function || !size || *size == 0 || !tree)
      return false;
    bool seen = false;
    for (std::uint32_t cpu = 0; cpu < kernel_.cpu_count(); ++cpu) {
      const auto base = kernel_.per_cpu_symbol("hrtimer_bases", cpu);
      for (std::uint64_t number = 0; base && number < std::min<std::uint64_t>(clocks->size / *size, clock_limit);
           ++number) {
        const Gva clock = *base + clocks->offset + number * *size;
        const auto first = kernel_.read_pointer(clock, *root);
        if (!first)
          break;
        seen = true;
        if (const auto timer = running ? kernel_.read_pointer(clock, *running) : std::nullopt;
            timer && kernel_.is_kernel_address(*timer))
          look_at(*timer + function->offset, *timer, "high-resolution timer");
        linux_guest::walk_rb_tree(kernel_, *tree, *first, timer_limit, [&](Gva link) {
          const Gva timer = link - node->offset;
          look_at(timer + function->offset, timer, "high-resolution timer");
          return budget_.take();
        });
      }
    }
    return seen;
  }

private:
  void look_at(Gva at, Gva object, std::string_view kind) {
    const auto function = kernel_.read_pointer(at);
    if (function && !is_lawful(scene_, at, *function, Trust::any_owner))
      judge(scene_, {.at = at, .target = *function, .what = fmt::format("the {} at {:#x}", kind, object.value)},
            findings_);
  }

  void look_at_timer(Gva timer, const FieldLocation &member) {
    const Gva at = timer + member.offset;
    const auto function = kernel_.read_pointer(at);
    if (!function)
      return;
    if (function == delayed_work_.timer_function && delayed_work_.timer && delayed_work_.function) {
      const Gva work = timer - delayed_work_.timer->offset;
      look_at(work + delayed_work_.function->offset, work, "delayed work");
    } else if (function == thread_work_.timer_function && thread_work_.timer && thread_work_.function) {
      const Gva work = timer - thread_work_.timer->offset;
      look_at(work + thread_work_.function->offset, work, "delayed work of a kernel thread");
    } else {
      look_at(at, timer, "timer");
    }
  }

  // A work whose timer the kernel starts, with a function of the kernel's that queues it.
  struct Delayed {
    std::optional<Gva> timer_function;
    std::optional<FieldLocation> timer, function;
  };

  const Scene &scene_;
  const Kernel &kernel_;
  Findings &findings_;
  Budget budget_{timer_limit};
  const Delayed delayed_work_ = {kernel_.symbol("delayed_work_timer_fn"),
                                 kernel_.types().field("delayed_work", "timer"),
                                 kernel_.types().field("delayed_work", "work.func")};
  const Delayed thread_work_ = {kernel_.symbol("kthread_delayed_work_timer_fn"),
                                kernel_.types().field("kthread_delayed_work", "timer"),
                                kernel_.types().field("kthread_delayed_work", "work.func")};
};

class Timers final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override {
    TimerLook look(scene, findings);
    const bool wheels = look.look_at_wheels(), clocks = look.look_at_clocks();
    if (!wheels && !clocks)
      return fail(ErrorCode::not_found, "this kernel shows neither timer wheels nor clocks");
    return {};
  }
};

LARARIUM_CHECK(
    Timers, "timers", "T1014 T1053", "timers and delayed work of each CPU",
    "Every timer that is set, and every work that waits for its timer, must lead into the kernel or a module. "
    "A timer that is set only for moments can come and go between two looks.")

} // namespace
} // namespace lararium::detect
