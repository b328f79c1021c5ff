// Rules as the code in the guest can have them (gate/sim.h).
//
// What a rule says of anything but hook, uid, port, process, its ancestors and the beginning of a path, nobody can tell
// in the guest. Such a rule becomes one that fits more: about verdicts, the call then waits at the gate, where the
// whole rule decides; about records, the record is made, and left out here.
#pragma once

#include "lararium/gate/sim.h"
#include "lararium/policy/rules.h"

#include <span>

namespace lararium::policy {

// Adds to `options` what `rules` say: their number is their place in the list, from 1 on. Hooks that none of `hooks` is
// are left out.
void add_sim_rules(gate::SimOptions &options, std::span<const Rule> rules,
                   const std::vector<const gate::HookEntry *> &hooks);

} // namespace lararium::policy
