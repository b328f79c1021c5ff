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

#include "lararium/gate/budget.h"
#include "lararium/gate/jump_module.h"
#include "lararium/os/common/operating_system.h"
#include "lararium/os/linux/kernel.h"
#include "lararium/os/linux/tasks.h"
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

struct GateOptions {
  std::vector<const HookEntry *> hooks;
  int default_verdict = 0;                  // an errno, or 0: when nobody answers
  std::chrono::microseconds patience{5000}; // how long a CPU waits for a monitor that is gone, once
  std::chrono::microseconds awake{0};       // how long we look at the slots after an event before we sleep; 0: never
  std::chrono::microseconds poll{100'000};  // between looks at what is not held
  std::optional<SimOptions> sim{};          // what the code in the guest does; nothing: every call waits
  // The vCPUs' registers, by a thread of its own: they say whether the kernel that was hooked still runs, before
  // anything is put back. Empty: they cannot be had.
  std::function<std::future<Result<std::vector<VcpuRegisters>>>()> registers{};
  // Whether the VM was not reset since it was hooked (Vcpus::not_reset_since()): then nothing needs to be waited for.
  std::function<std::optional<bool>()> not_reset{};
};

struct Remains; // what a gate leaves behind in memory when its kernel runs no more

class Gate final : public JumpModule {
public:
  // Puts the hooks in. `system`, of Linux, and the ports must outlive the gate; all vCPUs stand still for as long as
  // `stopped()` tells afterwards. What an earlier monitor left, here or on the host from which the guest was migrated,
  // is adopted where it is just what would be put in, and taken out first where it is not. An error: the guest is as it
  // was. `before`: of a gate of this VM whose kernel runs no more.
  [[nodiscard]] static Result<std::unique_ptr<Gate>> install(OperatingSystem &system, PhysicalMemory &memory,
                                                             WriteProtection &protection, CodeWriter &writer,
                                                             GateOptions options,
                                                             const std::shared_ptr<const Remains> &before = nullptr);
  ~Gate() override; // without remove(): leaves the hooks in the guest, where they do nothing

  [[nodiscard]] Result<void> wait(std::chrono::microseconds timeout, std::vector<GateEvent> &events,
                                  std::vector<Tampering> &tamperings) override;
  void take_seen(std::vector<SeenCall> &seen) override;
  [[nodiscard]] SimCounts sim_counts() const override;
  [[nodiscard]] Result<void> answer(const GateEvent &event, int verdict) override;
  [[nodiscard]] Result<void> remove(std::vector<std::string> &left) override;
  [[nodiscard]] const std::vector<GateSite> &sites() const override;
  [[nodiscard]] const std::vector<std::string> &limitations() const override;
  [[nodiscard]] const GateCounts &counts() const override;
  [[nodiscard]] std::chrono::nanoseconds stopped() const override;
  [[nodiscard]] const CallReader &reader() const override;
  // Of SIM: what each hook costs, and with what it is told of; for a budget.
  [[nodiscard]] std::vector<SimHookCost> hook_costs() const;
  [[nodiscard]] Result<void> set_depth(const HookEntry &hook, Depth depth);
  [[nodiscard]] std::uint64_t cycles_per_second() const;
  // The guest has memory that `memory` does not know of: it was plugged in since.
  [[nodiscard]] bool memory_grew() const;
  [[nodiscard]] bool adopted() const; // the hooks were there already
  [[nodiscard]] std::shared_ptr<const Remains> remains() const;

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
// Whether a CPU that is at that address runs a gate's code: with SIM it may then have SIM's page tables.
[[nodiscard]] bool is_code_of_gate(const linux_guest::Kernel &kernel, Gva address);
// Takes that out.
[[nodiscard]] Result<void> remove_left_gate(OperatingSystem &system, CodeWriter &writer,
                                            std::vector<std::string> &left);

} // namespace lararium::gate
