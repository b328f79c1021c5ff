// Line disciplines and drivers of terminals: every key that somebody types passes through them.

#include "handler.h"
#include "lararium/os/linux/list.h"
#include "lararium/os/linux/tasks.h"
#include "symbol_room.h"

#include <algorithm>
#include <fmt/format.h>
#include <optional>
#include <unordered_set>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;
using linux_guest::LayoutResolver;

constexpr std::uint64_t discipline_limit = 64; // NR_LDISCS is 30 or 31
constexpr std::size_t driver_limit = 1 << 10, terminal_limit = 1 << 14;

class TerminalLook {
public:
  TerminalLook(const Scene &scene, Findings &findings)
      : scene_(scene), kernel_(scene.kernel()), findings_(findings), tables_(scene, findings),
        layout_(kernel_.types()) {}

  Result<void> look() {
    const auto disciplines = kernel_.symbol("tty_ldiscs");
    if (!disciplines)
      return fail(ErrorCode::not_found, "the kernel has no symbol tty_ldiscs");
    const std::uint64_t count = std::min(room_of(kernel_.profile(), "tty_ldiscs") / 8, discipline_limit);
    for (std::uint64_t number = 0; number < count; ++number)
      if (const auto table = kernel_.read_pointer(*disciplines + 8 * number); table && tables_.is_new(*table)) {
        registered_.insert(table->value);
        tables_.judge(*table, "tty_ldisc_ops", fmt::format("of line discipline {}", number));
      }
    look_at_drivers();
    look_at_controlling_terminals();
    return {};
  }

private:
  void look_at_drivers() {
    const auto drivers = kernel_.symbol("tty_drivers");
    const auto node = layout_.optional("tty_driver", "tty_drivers"), table = layout_.optional("tty_driver", "ops"),
               count = layout_.optional("tty_driver", "num"), terminals = layout_.optional("tty_driver", "ttys");
    if (!drivers || !node || !table || !count || !terminals)
      return;
    linux_guest::walk_list(kernel_, *drivers, driver_limit, [&](Gva link) {
      const Gva driver = link - node->offset;
      if (const auto operations = kernel_.read_pointer(driver, *table); operations && tables_.is_new(*operations))
        tables_.judge(*operations, "tty_operations", "of a terminal driver");
      const auto array = kernel_.read_pointer(driver, *terminals); // null: those of /dev/pts
      const auto size = std::min<std::uint64_t>(kernel_.read_field(driver, *count).value_or(0), terminal_limit);
      for (std::uint64_t i = 0; array && kernel_.is_kernel_address(*array) && i < size && budget_.take(); ++i)
        if (const auto terminal = kernel_.read_pointer(*array + 8 * i))
          look_at_terminal(*terminal);
      return budget_.take();
    });
  }

  // Those of /dev/pts are in no driver's array: they are seen by who uses them.
  void look_at_controlling_terminals() {
    const auto signals = layout_.optional("task_struct", "signal"), terminal = layout_.optional("signal_struct", "tty");
    const auto &tasks = scene_.tasks();
    if (!signals || !terminal || !tasks)
      return;
    for (const auto &entry : tasks->items)
      if (const auto shared = kernel_.read_pointer(entry.task, *signals); shared && kernel_.is_kernel_address(*shared))
        if (const auto own = kernel_.read_pointer(*shared, *terminal))
          look_at_terminal(*own);
  }

  void look_at_terminal(Gva terminal) {
    if (!discipline_ || !table_ || !kernel_.is_kernel_address(terminal) || seen_.size() >= terminal_limit ||
        !seen_.insert(terminal.value).second)
      return;
    const std::string name =
        name_ ? kernel_.space().read_c_string(terminal + name_->offset, name_->size).value_or("?") : "?";
    if (driver_table_)
      if (const auto operations = kernel_.read_pointer(terminal, *driver_table_);
          operations && tables_.is_new(*operations))
        tables_.judge(*operations, "tty_operations", "of " + name);
    const auto discipline = kernel_.read_pointer(terminal, *discipline_);
    if (!discipline || !kernel_.is_kernel_address(*discipline))
      return; // hung up
    const auto operations = kernel_.read_pointer(*discipline, *table_);
    if (!operations || !*operations || registered_.empty() || registered_.contains(operations->value))
      return;
    if (tables_.is_new(*operations))
      tables_.judge(*operations, "tty_ldisc_ops", "of " + name);
    if (findings_.is_full())
      return findings_.leave_out();
    findings_
        .add({.subject = fmt::format("the line discipline of {}", name),
              .severity = Severity::critical,
              .technique = "T1056.001",
              .sentence = fmt::format("the line discipline of {} is none that is registered: {}", name,
                                      tables_.name_of(*operations))})
        .with("address", *discipline + table_->offset)
        .with("found", *operations);
  }

  const Scene &scene_;
  const Kernel &kernel_;
  Findings &findings_;
  OperationTables tables_;
  LayoutResolver layout_;
  Budget budget_{terminal_limit};
  std::unordered_set<std::uint64_t> registered_, seen_;
  const std::optional<FieldLocation> discipline_ = layout_.optional("tty_struct", "ldisc"),
                                     driver_table_ = layout_.optional("tty_struct", "ops"),
                                     name_ = layout_.optional("tty_struct", "name"),
                                     table_ = layout_.optional("tty_ldisc", "ops");
};

class LineDisciplines final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override { return TerminalLook(scene, findings).look(); }
};

LARARIUM_CHECK(
    LineDisciplines, "line_disciplines", "T1056.001 T1014", "line disciplines and drivers of terminals",
    "The tables of all line disciplines and terminal drivers are judged by where they lie: the kernel's lead into "
    "the kernel. Each terminal must use a discipline that is registered; one in /dev/pts is seen only while "
    "it is some process' controlling terminal.")

} // namespace
} // namespace lararium::detect
