// What an environment says of libraries to load first, and how lawful that looks.
#pragma once

#include "lararium/record/record.h"

#include <string_view>
#include <vector>

namespace lararium::detect {

struct PreloadSetting {
  std::string_view variable, value;
};

// Of "NAME=value" texts that each end with a NUL: those that set LD_PRELOAD or LD_AUDIT to something. At most 16.
[[nodiscard]] std::vector<PreloadSetting> preload_settings(std::string_view environment);

// Of a list of libraries, divided by colons and spaces: that of the one in the worst place.
[[nodiscard]] Severity preload_severity(std::string_view libraries);

} // namespace lararium::detect
