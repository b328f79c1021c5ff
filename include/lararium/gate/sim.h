// SIM (Sharif et al., CCS 2009): the part of the monitor that runs inside the guest. A hooked call is judged there, by
// rules in pages that the guest cannot write to, and told of in a ring that we read later: no exit. What the rules
// leave open, or a tool is to decide, waits for us at the gate as every call does without SIM.
//
// The same hooks, and the same meanings: what a hook reads of a call (HookPoint::keeps) is kept in the call's moment.
#pragma once

#include "lararium/gate/hook.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace lararium::gate {

enum class SimAction : std::uint8_t {
  allow,
  deny,
  ask,    // the call waits at the gate
  record, // of rules about records
  skip,
};

// All that is given must hold. Rules are tried in order; the first that fits decides.
struct SimRule {
  std::vector<const HookEntry *> hooks; // empty: all
  SimAction action = SimAction::deny;
  struct Range {
    std::uint32_t low = 0, high = 0;
  };
  std::optional<Range> uid{}, port{}; // effective; of the address, or the socket
  bool uid_negated = false;
  std::optional<std::uint32_t> pid{}, below{}; // below: that process or one that descends from it
  std::optional<std::string> path{};           // the first path of the call
  bool path_begins = false;                    // the call's path begins so; else it is so
  std::optional<std::string> container{};      // its id; empty: in no container
  bool container_begins = false;
  bool contained = false;   // in any container
  std::uint32_t number = 0; // which of the user's rules it is part of, from 1 on
};

struct SimOptions {
  std::uint64_t ring_bytes = 0;           // a CPU; 0: up to 64 KiB, what there is room for
  std::string ring_block;                 // the rings lie in this RAM block, of a device that the guest does not use
  bool address_space = false;             // its data in page tables that no process has
  std::vector<SimRule> verdicts, records; // 64 together
  std::vector<const HookEntry *> ask;     // hooks whose calls wait at the gate where no rule fits
  std::vector<const HookEntry *> only;    // hooks of which only what a rule says is recorded
  int error = 1;                          // with what a denied call fails
};

// A call that was seen, and is over.
struct SeenCall {
  std::uint32_t cpu = 0;
  const HookEntry *hook = nullptr;
  HookedCall call;
  Gva caller, task;
  std::uint64_t host_time_ns = 0; // since 1970
  std::uint64_t start_time = 0, program = 0;
  std::int32_t thread = 0, pid = 0, ppid = 0;
  std::uint32_t uid = 0;
  std::uint64_t cgroup = 0; // the number of its control group; 0: not known
  Gva group;                // and its struct kernfs_node
  std::string comm;
  int verdict = 0;
  std::uint32_t rule = 0; // whose verdict it is, from 1 on; 0: nobody's
  bool is_cut = false;    // something had no room
  std::vector<Kept> kept;
};

// What one hook cost the guest so far.
struct SimHookCost {
  const HookEntry *hook = nullptr;
  bool decides = false; // by rules, or calls of it wait for a tool
  std::uint64_t calls = 0, cycles = 0;
};

struct SimCounts {
  std::uint64_t records = 0;   // read
  std::uint64_t lost = 0;      // had no room
  std::uint64_t doorbells = 0; // how often a ring that filled woke us
  std::uint64_t calls = 0;     // of hooked functions
  std::uint64_t cycles = 0;    // that the guest spent for them
  std::uint64_t cycles_per_second = 0;
};

} // namespace lararium::gate
