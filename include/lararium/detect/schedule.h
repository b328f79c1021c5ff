// When each check is looked at next: by what it costs, so that all of them together take a given share of one
// processor, and what costs little is seen often.
//
// With costs t and a share s, the periods p that make the sum of waits (p/2, summed over the checks) smallest while
// the cost stays at sum(t/p) = s are p[i] = sqrt(t[i]) * sum(sqrt(t[j])) / s, by Lagrange's multipliers.
//
// The first looks at a guest cost many times what comes after them. They are made at once, and paid back: as long as
// more was spent than the share gives, all periods are twice as long.
#pragma once

#include <chrono>
#include <cstddef>
#include <optional>
#include <vector>

namespace lararium::detect {

struct Pace {
  double share = 0.005;                                       // of one processor, for all checks of one guest
  std::chrono::milliseconds every{};                          // zero: by cost; else between two looks of any check
  std::chrono::milliseconds shortest{1000}, longest{300'000}; // by cost
};

class Schedule {
public:
  using Clock = std::chrono::steady_clock;

  // All checks are due at `now`.
  Schedule(std::size_t checks, const Pace &pace, Clock::time_point now);

  [[nodiscard]] std::optional<std::size_t> due(Clock::time_point now) const; // the one that waited longest
  [[nodiscard]] std::chrono::nanoseconds period(std::size_t check) const;    // when nothing is to be paid back

  // A look that settled the check, and the processor time that it took.
  void settled(std::size_t check, Clock::time_point now, std::chrono::nanoseconds cost);
  // A look that did not: the next one is not a matter of cost.
  void again_at(std::size_t check, Clock::time_point when) { entries_[check].next = when; }

private:
  struct Entry {
    Clock::time_point next;
    double cost = 0; // nanoseconds, of the last looks
  };
  Pace pace_;
  std::vector<Entry> entries_;
  Clock::time_point begin_;
  std::chrono::nanoseconds spent_{};
};

} // namespace lararium::detect
