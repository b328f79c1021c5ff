// The functions that the chosen hooks watch in one kernel. Several hooks may watch one function, each for other
// arguments.
#pragma once

#include "lararium/gate/hook.h"

#include <array>
#include <cstdint>
#include <vector>

namespace lararium::gate {

struct Watcher {
  const HookEntry *hook = nullptr;
  ArgumentFilter filter;
  std::vector<Keep> keeps;
};

struct WatchedFunction {
  std::string name;
  Gva address;
  std::vector<Watcher> watchers;

  // Whose event a call with these arguments is; null: nobody's.
  [[nodiscard]] const HookEntry *hook_for(const std::array<std::uint64_t, 6> &arguments) const;
};

[[nodiscard]] Result<std::vector<WatchedFunction>> watched_functions(const linux_guest::Kernel &kernel,
                                                                     const std::vector<const HookEntry *> &hooks);

} // namespace lararium::gate
