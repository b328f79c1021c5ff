// How large a variable may be, as its neighbours tell: the kernel keeps its sizes nowhere.
#pragma once

#include "lararium/symbols/profile.h"

#include <cstdint>
#include <string_view>

namespace lararium::detect {

// From the symbol to the next one of another value, padding included; 0 where there is no such symbol, or none after
// it.
[[nodiscard]] std::uint64_t room_of(const Profile &profile, std::string_view symbol);

} // namespace lararium::detect
