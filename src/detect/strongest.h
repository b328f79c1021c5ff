// What a watched guest lost: values that guard it, and records of its log.
#pragma once

#include "lararium/os/common/views.h"

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lararium::detect {

// The strongest that a value has been since the first look.
class Strongest {
public:
  // `rank` grows with the protection. Gives what it was when it was stronger than it is now.
  [[nodiscard]] std::optional<std::int64_t> lowered(std::string_view name, std::int64_t rank) {
    const auto [entry, fresh] = values_.try_emplace(std::string(name), rank);
    if (fresh || rank >= entry->second) {
      entry->second = rank;
      return std::nullopt;
    }
    return entry->second;
  }

private:
  std::map<std::string, std::int64_t> values_; // as many as there are names in the code
};

// The records of the kernel's log that were seen: each as its number and a hash. The kernel never changes a record that
// is finished, and gives up the oldest ones only for the room of new ones.
class LogMemory {
public:
  static constexpr std::size_t limit = 1 << 18; // records, of 16 bytes each; the newest are kept
  // Old records leave the log one by one, though not quite in order where CPUs wrote at once: near its old end a
  // missing one says nothing.
  static constexpr std::size_t margin = 64;
  // A record of the largest size pushes out some sixty of the smallest.
  static constexpr std::uint64_t pushed_by_one = 200;

  struct Loss {
    std::uint64_t sequence = 0; // of the record; for `emptied` of the oldest that is gone
    enum class Kind : std::uint8_t { changed, removed, emptied } kind = Kind::changed;
    std::uint64_t count = 1; // of records that are gone
  };
  // `records` are in order of their numbers, all that the log holds.
  [[nodiscard]] std::vector<Loss> look(const std::vector<LogRecord> &records);

private:
  struct Known {
    std::uint64_t sequence = 0, hash = 0;
  };
  std::vector<Known> known_; // in order
};

} // namespace lararium::detect
