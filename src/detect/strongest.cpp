#include "strongest.h"

#include <algorithm>
#include <functional>

namespace lararium::detect {
namespace {

std::uint64_t hash_of(const LogRecord &record) {
  const std::uint64_t text = std::hash<std::string_view>{}(record.text);
  return (text ^ record.time_ns * 0x9e3779b97f4a7c15) + record.level * 257u + record.facility;
}

} // namespace

std::vector<LogMemory::Loss> LogMemory::look(const std::vector<LogRecord> &records) {
  std::vector<Loss> losses;
  const auto number = [](const LogRecord &record) { return record.sequence; };
  if (!known_.empty()) {
    const std::uint64_t newest_known = known_.back().sequence;
    const std::uint64_t oldest = records.empty() ? newest_known + 1 : records.front().sequence;
    const std::uint64_t newest = records.empty() ? newest_known : records.back().sequence;
    const std::uint64_t fresh = newest > newest_known ? newest - newest_known : 0;
    const auto first_kept = std::ranges::lower_bound(known_, oldest, {}, &Known::sequence);
    const auto dropped = static_cast<std::uint64_t>(first_kept - known_.begin());
    if (dropped != 0 && dropped / pushed_by_one >= fresh) {
      losses.push_back({known_.front().sequence, Loss::Kind::emptied, dropped});
      // These stay known, so that the next look says it again.
    } else {
      known_.erase(known_.begin(), first_kept);
    }
    // As long as the log holds its very first record nothing was given up, and nothing is missing near its old end.
    const std::size_t trusted = oldest == 0 ? 0 : margin;
    for (const Known &entry : known_) {
      if (entry.sequence < oldest)
        continue;
      const auto place = std::ranges::lower_bound(records, entry.sequence, {}, number);
      const bool there = place != records.end() && place->sequence == entry.sequence;
      if (!there && static_cast<std::size_t>(place - records.begin()) >= trusted)
        losses.push_back({entry.sequence, Loss::Kind::removed, 1});
      else if (there && hash_of(*place) != entry.hash)
        losses.push_back({entry.sequence, Loss::Kind::changed, 1});
    }
  }
  for (const LogRecord &record : records)
    if (known_.empty() || record.sequence > known_.back().sequence)
      known_.push_back({record.sequence, hash_of(record)});
  if (known_.size() > limit)
    known_.erase(known_.begin(), known_.end() - static_cast<std::ptrdiff_t>(limit));
  return losses;
}

} // namespace lararium::detect
