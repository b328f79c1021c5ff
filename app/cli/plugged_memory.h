// Memory that is plugged into a VM while it is watched.
#pragma once

#include "session.h"

#include <optional>

namespace lararium::cli {

class PluggedMemory {
public:
  // The VM opened anew, when its guest has RAM of which the map of `target` knows nothing; else nothing. The host is
  // asked once for each thing that the guest says (Pulse::last_ram_page): what it says may not be so.
  [[nodiscard]] std::optional<Target> look(Host &host, const Target &target, std::optional<Gpa> last_ram_page);

private:
  std::optional<Gpa> asked_for_;
};

} // namespace lararium::cli
