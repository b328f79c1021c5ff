#include "watched_functions.h"

#include <algorithm>
#include <fmt/format.h>

namespace lararium::gate {
namespace {

bool fits(const ArgumentFilter &filter, const std::array<std::uint64_t, 6> &arguments) {
  if (filter.argument == 0)
    return true;
  const std::uint64_t value = arguments[filter.argument - 1U] & filter.mask;
  return value == filter.value || value == filter.other_value;
}

} // namespace

const HookEntry *WatchedFunction::hook_for(const std::array<std::uint64_t, 6> &arguments) const {
  const auto found =
      std::ranges::find_if(watchers, [&](const Watcher &watcher) { return fits(watcher.filter, arguments); });
  return found == watchers.end() ? nullptr : found->hook;
}

Result<std::vector<WatchedFunction>> watched_functions(const linux_guest::Kernel &kernel,
                                                       const std::vector<const HookEntry *> &hooks) {
  std::vector<WatchedFunction> functions;
  for (const HookEntry *hook : hooks) {
    auto points = hook->points(kernel);
    if (!points)
      return wrap(std::move(points).error(), fmt::format("the hook {}", hook->name));
    for (HookPoint &point : *points) {
      const auto address = kernel.symbol(point.function);
      if (!address)
        return fail(ErrorCode::unsupported,
                    fmt::format("the hook {}: the kernel has no function {}", hook->name, point.function));
      auto known = std::ranges::find(functions, *address, &WatchedFunction::address);
      if (known == functions.end())
        known = functions.insert(functions.end(), {point.function, *address, {}});
      known->watchers.push_back({hook, point.filter, std::move(point.keeps)});
    }
  }
  return functions;
}

} // namespace lararium::gate
