// Lares' security driver: between the gate, which carries events and verdicts, and the security tool, which decides. It
// gives the tool what an event means, carries its verdict out, and keeps the record.
#pragma once

#include "lararium/gate/jump_module.h"
#include "lararium/os/common/operating_system.h"
#include "lararium/record/record.h"

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace lararium::gate {

struct Verdict {
  int error = 0;            // 0: go on; an errno: fail with it
  std::string decided_by{}; // for people: "the rule exec path=/tmp/**"; empty: nobody had an objection
};

// What was decided in the guest, and what is worth a record.
class RecordFilter {
public:
  virtual ~RecordFilter() = default;
  [[nodiscard]] virtual bool is_recorded(const HookEntry &hook, const Record &record) = 0;
  // A rule for people, by its number from 1 on.
  [[nodiscard]] virtual std::string rule_name(std::uint32_t number) const = 0;
};

// Who decides. The guest's thread waits meanwhile: an implementation has a limit of time, and keeps it.
class SecurityTool {
public:
  virtual ~SecurityTool() = default;
  [[nodiscard]] virtual Verdict decide(const HookEntry &hook, const Record &record) = 0;
};

struct DriverCounts {
  std::uint64_t events = 0, denied = 0; // all; of them those that were decided in the guest:
  std::uint64_t seen = 0;
  std::chrono::nanoseconds waited{}, longest_wait{}; // of the guest's threads, from when we saw an event
};

class SecurityDriver {
public:
  // All must outlive the driver.
  SecurityDriver(JumpModule &gate, OperatingSystem &system, SecurityTool &tool, RecordFilter *filter = nullptr)
      : gate_(gate), system_(system), tool_(tool), filter_(filter) {}

  // Waits for events, at most that long, has them decided, and adds their records. Errors are the gate's.
  [[nodiscard]] Result<void> step(std::chrono::microseconds timeout, std::vector<Record> &out);
  // Only what was decided in the guest, as far as it is there.
  void tell_seen(std::vector<Record> &out);
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
  [[nodiscard]] Record record_of(const SeenCall &call);
  [[nodiscard]] const Known *process_of(Gva task);
  [[nodiscard]] Actor actor_of_seen(const SeenCall &call, std::string &parents);
  [[nodiscard]] std::optional<std::string> container_of(const SeenCall &call);

  JumpModule &gate_;
  OperatingSystem &system_;
  SecurityTool &tool_;
  RecordFilter *filter_; // null: all is recorded
  DriverCounts counts_;
  std::unordered_map<std::uint64_t, Known> known_;                                    // by task
  std::unordered_map<std::uint64_t, std::pair<std::uint64_t, std::string>> executed_; // by task: start time, program
  std::unordered_map<std::uint64_t, std::string> containers_;                         // by control group
  std::vector<SeenCall> seen_;
  std::vector<GateEvent> events_;
  std::vector<Tampering> tamperings_;
};

} // namespace lararium::gate
