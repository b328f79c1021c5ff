// The map of a guest's code, by the names that checks use.
#pragma once

#include "lararium/os/linux/code_map.h"

namespace lararium::detect {

using linux_guest::CodeMap;
using linux_guest::CodeOwner;
using linux_guest::CodeRange;
using linux_guest::name_of;

} // namespace lararium::detect
