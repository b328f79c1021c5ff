// The places at which a kernel changes its own code, by the names that checks use.
#pragma once

#include "lararium/os/linux/code_sites.h"

namespace lararium::detect {

using linux_guest::CodeSites;
using linux_guest::is_filling_or_thunks;
using linux_guest::is_lawful_jump_label;
using linux_guest::is_long_nop;
using linux_guest::JumpLabel;
using linux_guest::length_of_jump_label;
using linux_guest::Probe;

} // namespace lararium::detect
