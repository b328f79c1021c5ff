// Whom the kernel tells of what happens: chains of notifiers, and handlers of input events. A keylogger needs no more.

#include "handler.h"
#include "lararium/os/linux/list.h"

#include <fmt/format.h>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;
using linux_guest::LayoutResolver;

constexpr std::size_t chain_limit = 1 << 12, input_limit = 1 << 10;

// The kernel's type information does not say what type a global variable has.
struct Chain {
  const char *symbol;
  const char *type; // of its head
  const char *told; // of what
  Trust trust = Trust::any_owner;
  const char *technique = "T1014";
};
constexpr const char *atomic = "atomic_notifier_head", *blocking = "blocking_notifier_head", *raw = "raw_notifier_head",
                     *sleepable_rcu = "srcu_notifier_head";
constexpr Chain chains[] = {
    {"keyboard_notifier_list", atomic, "keyboard", Trust::no_foreign, "T1056.001"},
    {"vt_notifier_list", atomic, "virtual terminal", Trust::no_foreign},
    {"die_chain", atomic, "exception", Trust::no_foreign},
    {"module_notify_list", blocking, "module", Trust::no_foreign},
    {"usb_notifier_list", blocking, "USB", Trust::no_foreign},
    {"reboot_notifier_list", blocking, "reboot"},
    {"restart_handler_list", atomic, "restart"},
    {"restart_prep_handler_list", blocking, "restart preparation"},
    {"power_off_handler_list", atomic, "power-off"},
    {"power_off_prep_handler_list", blocking, "power-off preparation"},
    {"panic_notifier_list", atomic, "panic"},
    {"task_exit_notifier", blocking, "task exit"}, // this and the next two: older kernels
    {"task_free_notifier", atomic, "task free"},
    {"munmap_notifier", blocking, "munmap"},
    {"netdev_chain", raw, "network device"},
    {"inetaddr_chain", blocking, "IPv4 address"},
    {"inet6addr_chain", atomic, "IPv6 address"},
    {"netlink_chain", blocking, "netlink"},
    {"blocking_lsm_notifier_chain", blocking, "security policy"},
    {"lease_notifier_chain", sleepable_rcu, "file lease"},
    {"crypto_chain", blocking, "crypto"},
    {"pm_chain_head", blocking, "suspend"},
    {"memory_chain", blocking, "memory hotplug"},
    {"oom_notify_list", blocking, "out-of-memory"},
    {"acpi_chain_head", blocking, "ACPI"},
    {"fb_notifier_list", blocking, "frame buffer"},
    {"cpufreq_policy_notifier_list", blocking, "CPU frequency"},
    {"xenstore_chain", blocking, "xenstore"},
    {"pvclock_gtod_chain", raw, "clock"},
};

class Notifiers final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override {
    const bool chains_seen = look_at_chains(scene, findings);
    const bool input_seen = look_at_input_handlers(scene, findings);
    if (!chains_seen && !input_seen)
      return fail(ErrorCode::not_found, "this kernel shows neither chains of notifiers nor input handlers");
    return {};
  }

private:
  static bool look_at_chains(const Scene &scene, Findings &findings) {
    const Kernel &kernel = scene.kernel();
    LayoutResolver layout(kernel.types());
    const auto call = layout.optional("notifier_block", "notifier_call"),
               next = layout.optional("notifier_block", "next");
    if (!call || !next)
      return false;
    bool seen = false;
    for (const Chain &chain : chains) {
      const auto head = kernel.symbol(chain.symbol);
      const auto first_member = layout.optional(chain.type, "head");
      const auto first = head && first_member ? kernel.read_pointer(*head, *first_member) : std::nullopt;
      if (!first)
        continue;
      seen = true;
      linux_guest::walk_chain(kernel, *first, next->offset, chain_limit, [&](Gva block) {
        const Gva at = block + call->offset;
        if (const auto function = kernel.read_pointer(at); function && !is_lawful(scene, at, *function, chain.trust))
          judge(scene,
                {.at = at,
                 .target = *function,
                 .what = fmt::format("the {} notifier at {:#x}", chain.told, block.value),
                 .technique = chain.technique,
                 .trust = chain.trust,
                 .note = fmt::format("({})", chain.symbol)},
                findings);
        return true;
      });
    }
    return seen;
  }

  // Each gets the events of the devices that it asked for: the console's keyboard driver, evdev, and keyloggers.
  static bool look_at_input_handlers(const Scene &scene, Findings &findings) {
    const Kernel &kernel = scene.kernel();
    LayoutResolver layout(kernel.types());
    const auto list = kernel.symbol("input_handler_list");
    const auto node = layout.optional("input_handler", "node"), name = layout.optional("input_handler", "name");
    if (!list || !node)
      return false;
    linux_guest::walk_list(kernel, *list, input_limit, [&](Gva link) {
      const Gva handler = link - node->offset;
      for (const std::string_view member : {"event", "events", "filter", "match", "connect", "disconnect", "start"}) {
        const auto field = layout.optional("input_handler", member);
        const auto function = field ? kernel.read_pointer(handler, *field) : std::nullopt;
        if (!function || is_lawful(scene, handler + field->offset, *function, Trust::no_foreign))
          continue;
        const auto label = name ? kernel.read_pointer(handler, *name) : std::nullopt;
        judge(scene,
              {.at = handler + field->offset,
               .target = *function,
               .what = fmt::format("{} of the input handler at {:#x}", member, handler.value),
               .technique = "T1056.001",
               .trust = Trust::no_foreign,
               .note = fmt::format("({})", label ? kernel.space().read_c_string(*label, 64).value_or("?") : "?")},
              findings);
      }
      return true;
    });
    return true;
  }
};

LARARIUM_CHECK(
    Notifiers, "notifiers", "T1014 T1056.001", "notifier chains and handlers of input events",
    "Every function that the kernel calls on a key, a reboot, a panic, a new module, a network device and so "
    "on must lie in the kernel or in a module; for keys, virtual terminals, USB, exceptions and modules in one "
    "of the kernel's own tree. Chains that modules have of their own are not seen.")

} // namespace
} // namespace lararium::detect
