// Keeps what the hooks of SIM cost within a budget: of the guest's CPUs, and of the host's. What is worth least for its
// cost is told of with less (who, but not what), then not at all, and comes back when there is room. Hooks that rules
// decide about keep deciding. Pure: fed with counters, it says what is to be changed.
#pragma once

#include "lararium/base/result.h"

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lararium::gate {

enum class Depth : std::uint8_t {
  full,
  brief, // who called, not with what
  off,
};

struct Budget {
  std::optional<double> guest; // share of all of the guest's CPUs: 0.02
  std::optional<double> host;  // processors of the host: 0.2
};
// "guest=2%,host=0.2", one or both. `usage` says what is wrong with it.
[[nodiscard]] Result<Budget> parse_budget(std::string_view text);

// A hook, from when it was put in until now.
struct HookCost {
  std::string name;
  bool may_change = true; // false: rules decide about it, or its calls wait for a tool
  std::uint64_t calls = 0, cycles = 0, records = 0;
};

struct BudgetChange {
  std::size_t hook = 0;
  Depth depth = Depth::full;
  std::string sentence;
};

class BudgetKeeper {
public:
  // `cycles_per_second`: of one of the guest's `cpus`.
  BudgetKeeper(Budget budget, std::uint64_t cycles_per_second, std::uint32_t cpus)
      : budget_(budget), cycles_per_second_(cycles_per_second), cpus_(cpus) {}

  // What the hooks cost since the last time, which was `time` ago, and how much processor time of the host it took us.
  // At most one change each time, so that its effect is seen before the next one.
  [[nodiscard]] std::optional<BudgetChange> step(const std::vector<HookCost> &hooks, std::chrono::nanoseconds time,
                                                 std::chrono::nanoseconds host_time);

  [[nodiscard]] double guest_share() const { return guest_share_; }
  [[nodiscard]] double host_share() const { return host_share_; }
  [[nodiscard]] const std::vector<Depth> &depths() const { return depths_; }

private:
  struct Seen {
    HookCost last;
    double cycles_per_call = 0; // when it was full
    double calls_per_second = 0;
    double guest = 0; // its share now
  };
  [[nodiscard]] double when_full(const Seen &seen) const;

  Budget budget_;
  std::uint64_t cycles_per_second_;
  std::uint32_t cpus_;
  std::vector<Seen> seen_;
  std::vector<Depth> depths_;
  double guest_share_ = 0, host_share_ = 0;
  int calm_ = 0; // steps in a row in which there was room
};

} // namespace lararium::gate
