// The hooks as execution breakpoints: nothing is written into the guest, the whole of it stands still at each event.
// The fallback, and the yardstick.
#pragma once

#include "lararium/gate/jump_module.h"
#include "lararium/os/common/operating_system.h"
#include "lararium/vm/breakpoints.h"

#include <memory>

namespace lararium::gate {

class BreakpointModule final : public JumpModule {
public:
  // At the beginning of each function of the hooks. `system`, of Linux, and `debugger` must outlive it.
  [[nodiscard]] static Result<std::unique_ptr<BreakpointModule>> install(OperatingSystem &system, Debugger &debugger,
                                                                         const std::vector<const HookEntry *> &hooks);

  [[nodiscard]] Result<void> wait(std::chrono::microseconds timeout, std::vector<GateEvent> &events,
                                  std::vector<Tampering> &tamperings) override;
  [[nodiscard]] Result<void> answer(const GateEvent &event, int verdict) override;
  [[nodiscard]] Result<void> remove(std::vector<std::string> &left) override;
  [[nodiscard]] const std::vector<GateSite> &sites() const override { return sites_; }
  [[nodiscard]] const std::vector<std::string> &limitations() const override { return limitations_; }
  [[nodiscard]] const GateCounts &counts() const override { return counts_; }
  [[nodiscard]] std::chrono::nanoseconds stopped() const override { return stopped_; }
  [[nodiscard]] const CallReader &reader() const override { return reader_; }

  ~BreakpointModule() override;

private:
  struct Functions;
  BreakpointModule(OperatingSystem &system, const linux_guest::Kernel &kernel, Debugger &debugger,
                   const CallReader &reader);
  [[nodiscard]] std::uint32_t online_cpus() const; // 0: not known
  // A CPU that was plugged in has no breakpoints: all are set again.
  [[nodiscard]] Result<void> follow_cpus();
  // Behind the first instruction of a function, which has the effect that it would have had; with no `breakpoints` only
  // whether that can be done.
  [[nodiscard]] Result<BreakpointStep> step_over(const BreakpointHit &hit, Breakpoints *breakpoints);

  OperatingSystem &system_;
  const linux_guest::Kernel &kernel_;
  Debugger &debugger_;
  CallReader reader_;
  std::vector<Gva> addresses_;
  std::unique_ptr<Breakpoints> breakpoints_;
  std::uint32_t cpus_ = 0; // that were online
  std::chrono::steady_clock::time_point next_look_;
  std::unique_ptr<Functions> functions_;
  std::vector<GateSite> sites_;
  std::vector<std::string> limitations_;
  GateCounts counts_;
  std::chrono::nanoseconds stopped_{};
  std::optional<BreakpointHit> hit_; // that waits
  std::uint64_t number_ = 0;
};

} // namespace lararium::gate
