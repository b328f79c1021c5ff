#include "lararium/gate/hook.h"

#include <algorithm>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <string_view>

// Set by the linker around all that LARARIUM_HOOK registered.
extern "C" const lararium::gate::HookEntry *const __start_lararium_hooks[];
extern "C" const lararium::gate::HookEntry *const __stop_lararium_hooks[];

namespace lararium::gate {

std::vector<const HookEntry *> all_hooks() {
  std::vector<const HookEntry *> hooks(__start_lararium_hooks, __stop_lararium_hooks);
  std::ranges::sort(hooks, {}, [](const HookEntry *entry) { return std::string_view(entry->name); });
  return hooks;
}

} // namespace lararium::gate
