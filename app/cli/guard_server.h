// Serves the hooks of one VM in a thread of its own, which waits for nothing but them: through reboots, until the VM
// ends or nobody wants it any more.
#pragma once

#include "live_records.h"
#include "session.h"

#include "lararium/gate/budget.h"
#include "lararium/gate/gate.h"
#include "lararium/gate/security_driver.h"
#include "lararium/gate/shared_protection.h"
#include "lararium/policy/tool_process.h"

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

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

class GuardServer {
public:
  // All must outlive the server.
  GuardServer(Host &host, Target &target, GuardSetup setup, Outbox &outbox);
  GuardServer(const GuardServer &) = delete;
  GuardServer &operator=(const GuardServer &) = delete;
  ~GuardServer() { stop(); }

  [[nodiscard]] Result<void> start();
  void stop();                                        // takes the hooks out
  [[nodiscard]] bool ended() const { return ended_; } // the VM
  // When it stands.
  [[nodiscard]] const gate::DriverCounts &driver_counts() const { return driver_counts_; }
  [[nodiscard]] const gate::GateCounts &gate_counts() const { return gate_counts_; }
  [[nodiscard]] const gate::SimCounts &sim_counts() const { return sim_counts_; }
  [[nodiscard]] const gate::GuardCounts &memory_counts() const { return memory_counts_; }

private:
  Result<void> take_up();
  void tell_protection(const gate::MemoryGuard &guard);
  void serve();
  void take_out();
  void keep_budget();
  void take_new_memory();
  void let_go();
  void end();
  void add_counts();
  void notice(std::string sentence);
  void tell(Record record);
  void put(std::vector<Record> &records);

  Host &host_;
  Target &target_;
  GuardSetup setup_;
  Outbox &outbox_;
  Guest guest_;
  ProtectionStart protection_;
  std::unique_ptr<gate::SharedProtection> shared_; // of that
  std::unique_ptr<gate::JumpModule> gate_;
  std::shared_ptr<const gate::Remains> before_; // of the guest's kernel before a reset
  std::unique_ptr<gate::SecurityDriver> driver_;
  std::thread thread_;
  std::atomic<bool> stopping_ = false, ended_ = false;
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
