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
  std::vector<std::string> unseen{}; // what the check could not look at
  std::optional<Error> error{};      // the check could not be made
  std::chrono::nanoseconds took{};   // in all looks
  std::uint32_t looks = 0;
};

// What several looks in a row agree on. A look that failed says nothing of what the others saw, but they are no longer
// in a row.
class Agreement {
public:
  // A finding must be seen at `looks` looks in a row.
  explicit Agreement(unsigned looks) : looks_(looks) {}

  // Takes one look. Whether that settles it: nothing was found, the same was found often enough, or the error is not
  // one that passes.
  [[nodiscard]] bool take(const Result<void> &result, std::vector<Finding> findings);

  [[nodiscard]] std::vector<Finding> &findings() { return findings_; }
  [[nodiscard]] std::uint32_t taken() const { return taken_; }

private:
  static constexpr unsigned most_failures = 3;
  unsigned looks_;
  unsigned taken_ = 0, agreed_ = 0, failed_ = 0;
  std::vector<Finding> findings_;
};

struct Selection {
  std::vector<std::string> only, skip; // names; only empty: all
};

class Runner {
public:
  // Fails with `usage` for a name that no check has. Target and system must outlive the runner.
  [[nodiscard]] static Result<Runner> create(const Target &target, OperatingSystem &system, const Selection &selection);

  [[nodiscard]] std::size_t size() const { return entries_.size(); }

  // One round: every check, and again those that are not settled, each time at fresh memory, after pauses that grow.
  [[nodiscard]] Result<std::vector<Outcome>> run();

  // One look of one check, for those who look at many things in turn. Nothing: look again, after again_after(). The
  // scene is of fresh memory, and may serve several checks of one moment.
  [[nodiscard]] std::optional<Outcome> look(std::size_t index, const Scene &scene);
  [[nodiscard]] std::chrono::milliseconds again_after(std::size_t index) const;

  unsigned looks = 4;    // 1: for what stands still
  References references; // what they name must outlive the runner

private:
  struct Entry {
    const CheckEntry *check;
    std::unique_ptr<Check> instance;
    std::optional<Agreement> agreement; // while it is not settled
    std::chrono::nanoseconds took{};
  };
  Runner(const Target &target, OperatingSystem &system) : target_(&target), system_(&system) {}
  const Target *target_;
  OperatingSystem *system_;
  std::vector<Entry> entries_;
};

} // namespace lararium::detect
