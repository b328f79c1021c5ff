#include "plugged_memory.h"

#include <algorithm>
#include <string>

namespace lararium::cli {

std::optional<Target> PluggedMemory::look(Host &host, const Target &target, std::optional<Gpa> last_ram_page) {
  if (!last_ram_page || last_ram_page == asked_for_ ||
      std::ranges::any_of(target.memory->ranges(), [&](const RamRange &range) {
        return *last_ram_page >= range.base && *last_ram_page - range.base < range.size;
      }))
    return std::nullopt;
  asked_for_ = last_ram_page;
  auto fresh = host.open(std::to_string(target.identity.pid));
  if (!fresh || fresh->memory->total_size() <= target.memory->total_size())
    return std::nullopt;
  return std::move(*fresh);
}

} // namespace lararium::cli
