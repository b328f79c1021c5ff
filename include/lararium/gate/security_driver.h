// Lares' security driver: between the gate, which carries events and verdicts, and the security tool, which decides. It
// gives the tool what an event means, carries its verdict out, and keeps the record.
#pragma once

#include "lararium/gate/jump_module.h"
#include "lararium/os/common/operating_system.h"
#include "lararium/record/record.h"

#include <chrono>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

namespace lararium::gate {

struct Verdict {
  int error = 0;            // 0: go on; an errno: fail with it
  std::string decided_by{}; // for people: "the rule exec path=/tmp/**"; empty: nobody had an objection
};

// Who decides. The guest's thread waits meanwhile: an implementation has a limit of time, and keeps it.
class SecurityTool {
public:
  virtual ~SecurityTool() = default;
  [[nodiscard]] virtual Verdict decide(const HookEntry &hook, const Record &record) = 0;
};

struct DriverCounts {
  std::uint64_t events = 0, denied = 0;
  std::chrono::nanoseconds waited{}, longest_wait{}; // of the guest's threads, from when we saw an event
};

class SecurityDriver {
public:
  // All must outlive the driver.
  SecurityDriver(JumpModule &gate, OperatingSystem &system, SecurityTool &tool)
      : gate_(gate), system_(system), tool_(tool) {}

  // Waits for events, at most that long, has them decided, and adds their records. Errors are the gate's.
  [[nodiscard]] Result<void> step(std::chrono::microseconds timeout, std::vector<Record> &out);
  [[nodiscard]] const DriverCounts &counts() const { return counts_; }

private:
  struct Known { // a process that was met before, as long as it is the same
    std::uint64_t start_time = 0;
    std::uint64_t program = 0; // its file
    Actor actor;
    std::string parents;
  };
  [[nodiscard]] Record record_of(const GateEvent &event);
  [[nodiscard]] Record record_of(const Tampering &tampering);
  [[nodiscard]] const Known *process_of(Gva task);

  JumpModule &gate_;
  OperatingSystem &system_;
  SecurityTool &tool_;
  DriverCounts counts_;
  std::unordered_map<std::uint64_t, Known> known_; // by task
  std::vector<GateEvent> events_;
  std::vector<Tampering> tamperings_;
};

} // namespace lararium::gate
