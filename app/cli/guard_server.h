// Serves the hooks of one VM.
#pragma once

#include "served_vm.h"
#include "session.h"

#include "lararium/gate/budget.h"
#include "lararium/gate/gate.h"
#include "lararium/gate/security_driver.h"
#include "lararium/gate/shared_protection.h"
#include "lararium/policy/tool_process.h"

#include <memory>
#include <mutex>
#include <optional>

namespace lararium::cli {

struct GuardSetup {
  GuestOptions guest;
  gate::GateOptions gate;
  bool breakpoints = false;
  std::optional<gate::GuardOptions> memory{}; // how the kernel's memory is protected, too; nothing: it is not
  std::optional<gate::Budget> budget{};
  gate::Depth depth = gate::Depth::full; // of SIM's hooks that rules do not decide about
  gate::SecurityTool *tool = nullptr;
  gate::RecordFilter *filter = nullptr;   // null: all is recorded
  policy::ToolProcess *process = nullptr; // null: no tool of its own
};

class GuardServer final : public ServedVm {
public:
  // All must outlive the server.
  GuardServer(Host &host, Target &target, GuardSetup setup, Outbox &outbox);
  ~GuardServer() override { stop(); }

  [[nodiscard]] Result<void> start();
  // When it stands.
  [[nodiscard]] const gate::DriverCounts &driver_counts() const { return driver_counts_; }
  [[nodiscard]] const gate::GateCounts &gate_counts() const { return gate_counts_; }
  [[nodiscard]] const gate::SimCounts &sim_counts() const { return sim_counts_; }
  [[nodiscard]] const gate::GuardCounts &memory_counts() const { return memory_counts_; }

private:
  Result<void> take_up() override;
  Result<void> step() override;
  void lose() override;
  [[nodiscard]] Record paused(const Error &why) const override;
  void finish() override { take_out(); }
  void let_go() override;
  void tell_protection(const gate::MemoryGuard &guard);
  void take_out();
  void keep_budget();
  void take_new_memory();
  void add_counts();
  void add_memory_counts(); // before its guard ends
  void notice(std::string sentence);

  Host &host_;
  GuardSetup setup_;
  Guest guest_;
  ProtectionStart protection_;
  std::unique_ptr<gate::SharedProtection> shared_; // of that
  std::unique_ptr<gate::JumpModule> gate_;
  std::shared_ptr<const gate::Remains> before_; // of the guest's kernel before a reset
  std::unique_ptr<gate::SecurityDriver> driver_;
  gate::DriverCounts driver_counts_;
  gate::GateCounts gate_counts_;
  gate::SimCounts sim_counts_;
  gate::GuardCounts memory_counts_;
  std::mutex asking_; // for registers, one at a time
  std::optional<gate::BudgetKeeper> keeper_;
  std::chrono::steady_clock::time_point measured_ = std::chrono::steady_clock::now();
  std::chrono::nanoseconds own_time_{};
};

} // namespace lararium::cli
