// Judging a pointer to code that the kernel will follow.
#pragma once

#include "lararium/detect/check.h"

#include <string>
#include <string_view>

namespace lararium::detect {

// How much a lawful module may do at the place.
enum class Trust : std::uint8_t {
  any_owner,     // whoever is known: drivers register timers, notifiers, protocols
  no_foreign,    // not a module from outside the kernel's tree (taint O or E): this is where rootkits hook
  kernel_or_own, // the kernel, or the module in whose memory the pointer stands
};

struct Handler {
  Gva at;           // where the pointer stands
  Gva target;       // where it leads
  std::string what; // "the ftrace handler of vfs_read"; begins the sentence
  std::string_view technique = "T1014";
  Trust trust = Trust::any_owner;
};

// Reports a handler that leads to nobody's code, or to that of somebody who has no business there. Null is no handler.
void judge(const Scene &scene, const Handler &handler, Findings &findings);

// Every pointer to a function in a structure of operations, by the kernel's own types.
void judge_operations(const Scene &scene, Gva operations, std::string_view type, const std::string &what, Trust trust,
                      Findings &findings);

} // namespace lararium::detect
