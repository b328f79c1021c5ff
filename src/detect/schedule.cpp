#include "lararium/detect/schedule.h"

#include <algorithm>
#include <cmath>

namespace lararium::detect {

using std::chrono::nanoseconds;

Schedule::Schedule(std::size_t checks, const Pace &pace, Clock::time_point now) : pace_(pace) {
  entries_.assign(checks, {now});
}

std::optional<std::size_t> Schedule::due(Clock::time_point now) const {
  const auto first = std::ranges::min_element(entries_, {}, &Entry::next);
  if (first == entries_.end() || first->next > now)
    return std::nullopt;
  return static_cast<std::size_t>(first - entries_.begin());
}

nanoseconds Schedule::period(std::size_t check) const {
  if (pace_.every != pace_.every.zero())
    return pace_.every;
  double roots = 0;
  for (const Entry &entry : entries_)
    roots += std::sqrt(entry.cost);
  const double period = std::sqrt(entries_[check].cost) * roots / pace_.share;
  const nanoseconds shortest = pace_.shortest, longest = pace_.longest;
  return period >= static_cast<double>(longest.count())
             ? longest
             : std::max(shortest, nanoseconds(static_cast<std::int64_t>(period)));
}

void Schedule::settled(std::size_t check, Clock::time_point now, nanoseconds cost) {
  Entry &entry = entries_[check];
  const double measured = static_cast<double>(std::max<std::int64_t>(cost.count(), 1));
  // The first look at a guest touches its pages for the first time: what comes after it is cheaper, and soon weighs
  // more.
  entry.cost = entry.cost == 0 ? measured : (entry.cost + measured) / 2;
  entry.next = now + period(check);
}

} // namespace lararium::detect
