// Lares' jump module: carries events from the guest's hooks to the security driver, and its verdicts back. How differs:
// `Gate` by code in the guest and memory that the host holds, `BreakpointModule` by breakpoints.
#pragma once

#include "lararium/gate/hook.h"
#include "lararium/gate/sim.h"
#include "lararium/os/linux/tasks.h"

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace lararium::gate {

// A hooked call that waits for its verdict.
struct GateEvent {
  std::uint32_t cpu = 0;
  std::uint64_t number = 0; // of this CPU's events
  const HookEntry *hook = nullptr;
  HookedCall call;
  Gva stack, caller;
  bool rang = false; // else it was seen before it rang, by a monitor that was awake
  std::chrono::steady_clock::time_point seen;
};

// Something in the guest was changed that is ours, or an event was made up.
struct Tampering {
  std::string what; // for people: "the call of security_bprm_check in exec_binprm"
  Gva address;      // where the guest has it
  std::vector<std::byte> expected, found;
  bool put_back = false;
  std::optional<std::uint32_t> vcpu; // who wrote, where that is known, and what it ran then
  std::optional<linux_guest::TaskBrief> task{};
  std::chrono::microseconds after{}; // from the moment it was seen to the moment it was put back
  // To when memory had it again, where more was needed: a VM that keeps translations of code must forget them.
  std::optional<std::chrono::microseconds> in_memory_after{};
};

struct GateSite {
  const HookEntry *hook = nullptr;
  std::string function;
  Gva address; // of the call that leads to us, or of the breakpoint
};

struct GateCounts {
  std::uint64_t events = 0, rings = 0; // answered; of them those that rang
  std::uint64_t faults = 0;            // of all kinds; stops, with breakpoints
  std::uint64_t tampered = 0, forged = 0;
};

class JumpModule {
public:
  JumpModule() = default;
  JumpModule(const JumpModule &) = delete;
  JumpModule &operator=(const JumpModule &) = delete;
  virtual ~JumpModule() = default; // without remove(): what is in the guest stays, and does nothing

  // Waits for events, at most that long. Each must be answered. `gone`: the VM ended; `unknown_os`: the kernel that was
  // hooked runs no more.
  [[nodiscard]] virtual Result<void> wait(std::chrono::microseconds timeout, std::vector<GateEvent> &events,
                                          std::vector<Tampering> &tamperings) = 0;
  // Calls that were seen and are over, since the last time; in each CPU's order.
  virtual void take_seen(std::vector<SeenCall> & /*seen*/) {}
  [[nodiscard]] virtual SimCounts sim_counts() const { return {}; }
  // Lets it go on (0), or makes it fail with an errno. Answering what was answered already does nothing.
  [[nodiscard]] virtual Result<void> answer(const GateEvent &event, int verdict) = 0;
  // Takes everything out: the guest is what it was. `left` says what could not be, and why.
  [[nodiscard]] virtual Result<void> remove(std::vector<std::string> &left) = 0;

  [[nodiscard]] virtual const std::vector<GateSite> &sites() const = 0;
  [[nodiscard]] virtual const std::vector<std::string> &limitations() const = 0;
  [[nodiscard]] virtual const GateCounts &counts() const = 0;
  [[nodiscard]] virtual std::chrono::nanoseconds stopped() const = 0; // all vCPUs, when the hooks were put in
  [[nodiscard]] virtual const CallReader &reader() const = 0;
};

} // namespace lararium::gate
