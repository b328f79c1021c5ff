#include "lararium/detect/schedule.h"

#include <algorithm>
#include <cmath>

namespace lararium::detect {

using std::chrono::nanoseconds;

Schedule::Schedule(std::size_t checks, const Pace &pace, Clock::time_point now) : pace_(pace), begin_(now) {
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
  // The first look at a guest touches its pages for the first time, and steps through code that is only compared from
  // then on: what comes after it costs about a quarter, and soon weighs more.
  entry.cost = entry.cost == 0 ? measured / 4 : (entry.cost + measured) / 2;
  spent_ += cost;
  nanoseconds wait = period(check);
  const bool by_cost = pace_.every == pace_.every.zero();
  if (by_cost && static_cast<double>(spent_.count()) > pace_.share * static_cast<double>((now - begin_).count()))
    wait = std::min<nanoseconds>(2 * wait, pace_.longest);
  entry.next = now + wait;
}

} // namespace lararium::detect
