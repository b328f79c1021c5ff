// Runs checks on one target, and tells tampering from races by looking again.
#pragma once

#include "lararium/detect/check.h"

#include <chrono>
#include <string>
#include <vector>

namespace lararium::detect {

struct Outcome {
  const CheckEntry *check = nullptr;
  std::vector<Finding> findings; // seen at every look
  std::size_t left_out = 0;
  std::optional<Error> error; // the check could not be made
  std::chrono::nanoseconds took{};
  std::uint32_t looks = 0;
};

struct Selection {
  std::vector<std::string> only, skip; // names; only empty: all
};

class Runner {
public:
  // Fails with `usage` for a name that no check has. Target and system must outlive the runner.
  [[nodiscard]] static Result<Runner> create(const Target &target, OperatingSystem &system, const Selection &selection);

  // One round. A check that finds something looks again, `looks` times in all with `pause` between them, each time at
  // fresh memory; what is not found each time was a race and is dropped.
  [[nodiscard]] Result<std::vector<Outcome>> run();

  unsigned looks = 3;
  std::chrono::milliseconds pause{15};

private:
  struct Entry {
    const CheckEntry *check;
    std::unique_ptr<Check> instance;
  };
  Runner(const Target &target, OperatingSystem &system) : target_(&target), system_(&system) {}
  const Target *target_;
  OperatingSystem *system_;
  std::vector<Entry> entries_;
};

} // namespace lararium::detect
