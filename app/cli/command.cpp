#include "command.h"

#include <algorithm>

namespace lararium::cli {
namespace {

// The linker defines these for a section whose name is a C identifier.
// NOLINTBEGIN(bugprone-reserved-identifier,readability-identifier-naming)
extern "C" const CommandEntry *const __start_lararium_commands[];
extern "C" const CommandEntry *const __stop_lararium_commands[];
// NOLINTEND(bugprone-reserved-identifier,readability-identifier-naming)

} // namespace

std::vector<const CommandEntry *> all_commands() {
  std::vector<const CommandEntry *> commands(__start_lararium_commands, __stop_lararium_commands);
  std::ranges::sort(commands, {}, [](const CommandEntry *entry) { return std::string_view(entry->name); });
  return commands;
}

const CommandEntry *find_command(std::string_view name) {
  const auto commands = all_commands();
  const auto found = std::ranges::find(commands, name, [](const CommandEntry *entry) { return entry->name; });
  return found == commands.end() ? nullptr : *found;
}

} // namespace lararium::cli
