// The gate: hooks in a running guest's kernel whose events reach the monitor at once, and wait for its verdict (Lares'
// hook, trampoline and jump module; DESIGN.md, section 3).
//
// An event: the hooked call leads to a stub in pages of ours, whose code writes the arguments to the CPU's slot and
// then to a page that the host holds, its bell. There the CPU stands until it is answered. A CPU has several bells and
// rings them in turn, so that the next event always meets a held one: one fault an event, and no moment in which an
// event passes unseen.
//
// Kill safety: everything that is in the guest works without a monitor. Bells that nobody holds are plain memory; a CPU
// that rings one waits for a bounded time, once, and takes the default verdict from then on.
#pragma once

#include "lararium/gate/hook.h"
#include "lararium/os/common/operating_system.h"
#include "lararium/os/linux/kernel.h"
#include "lararium/vm/code_writer.h"
#include "lararium/vm/physical_memory.h"
#include "lararium/vm/protection.h"
#include "lararium/vm/vcpu.h"

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
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
  std::optional<std::uint32_t> vcpu; // who wrote, where that is known
  std::chrono::microseconds after{}; // from the moment it was seen to the moment it was put back
};

struct GateSite {
  const HookEntry *hook = nullptr;
  std::string function;
  Gva address; // of the call that leads to us
};

struct GateOptions {
  std::vector<const HookEntry *> hooks;
  int default_verdict = 0;                  // an errno, or 0: when nobody answers
  std::chrono::microseconds patience{5000}; // how long a CPU waits for a monitor that is gone, once
  std::chrono::microseconds awake{0};       // how long we look at the slots after an event before we sleep; 0: never
  std::chrono::microseconds poll{100'000};  // between looks at what is not held
  // The vCPUs' registers, by a thread of its own: they say whether the kernel that was hooked still runs, before
  // anything is put back. Empty: they cannot be had.
  std::function<std::future<Result<std::vector<VcpuRegisters>>>()> registers{};
};

struct GateCounts {
  std::uint64_t events = 0, rings = 0; // answered; of them those that rang
  std::uint64_t faults = 0;            // of all kinds
  std::uint64_t tampered = 0, forged = 0;
};

class Gate {
public:
  // Puts the hooks in. `system`, of Linux, and the ports must outlive the gate; all vCPUs stand still for as long as
  // `stopped()` tells afterwards. What an earlier monitor left is taken out first. An error: the guest is as it was.
  [[nodiscard]] static Result<std::unique_ptr<Gate>> install(OperatingSystem &system, PhysicalMemory &memory,
                                                             WriteProtection &protection, CodeWriter &writer,
                                                             GateOptions options);
  Gate(const Gate &) = delete;
  Gate &operator=(const Gate &) = delete;
  ~Gate(); // without remove(): leaves the hooks in the guest, where they do nothing

  // Waits for events, at most that long. Each must be answered. `gone`: the VM ended; `unknown_os`: the kernel that was
  // hooked runs no more.
  [[nodiscard]] Result<void> wait(std::chrono::microseconds timeout, std::vector<GateEvent> &events,
                                  std::vector<Tampering> &tamperings);
  // Lets it go on (0), or makes it fail with an errno. Answering what was answered already does nothing.
  [[nodiscard]] Result<void> answer(const GateEvent &event, int verdict);

  // Takes everything out: the guest's memory is byte for byte what it was. `left` says what could not be, and why.
  [[nodiscard]] Result<void> remove(std::vector<std::string> &left);

  [[nodiscard]] const std::vector<GateSite> &sites() const;
  [[nodiscard]] const std::vector<std::string> &limitations() const;
  [[nodiscard]] const GateCounts &counts() const;
  [[nodiscard]] std::chrono::nanoseconds stopped() const; // all vCPUs, when the hooks were put in
  [[nodiscard]] const CallReader &reader() const;

private:
  class State;
  explicit Gate(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// What an earlier monitor left in this guest: hooks that do nothing. Nothing: there is none.
struct LeftGate {
  Gva window;
  std::size_t sites = 0;
};
[[nodiscard]] std::optional<LeftGate> find_left_gate(const linux_guest::Kernel &kernel);
// Takes that out.
[[nodiscard]] Result<void> remove_left_gate(OperatingSystem &system, CodeWriter &writer,
                                            std::vector<std::string> &left);

} // namespace lararium::gate
