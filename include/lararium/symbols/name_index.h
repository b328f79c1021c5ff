// Flat hash tables from names to numbers, for data that is written once and then mapped: an array of 32-bit slots with
// linear probing, 0 for empty, else the number + 1. The names themselves stay where they are; the caller compares.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace lararium {

// Names come from guests, so the hash is keyed: who does not know the seed cannot make names that collide.
[[nodiscard]] std::uint32_t hash_name(std::string_view name, std::uint64_t seed);
[[nodiscard]] std::uint64_t random_seed();

namespace name_index {

// At the load factor of 2/3 a run of used slots longer than this does not come about by chance. The limit also bounds
// every look-up in a table that somebody else wrote.
inline constexpr std::size_t probe_limit = 1024;

[[nodiscard]] constexpr std::size_t slots_for(std::size_t entries) { return entries + entries / 2 + 1; }

[[nodiscard]] inline std::size_t home_of(std::uint32_t hash, std::size_t slots) {
  return static_cast<std::size_t>((static_cast<std::uint64_t>(hash) * slots) >> 32);
}

// The first number under `hash` for which `matches(number)` is true.
template <class Matches>
[[nodiscard]] std::optional<std::uint32_t> find(std::span<const std::uint32_t> slots, std::uint32_t hash,
                                                Matches &&matches) {
  if (slots.empty())
    return std::nullopt;
  std::size_t at = home_of(hash, slots.size());
  for (std::size_t probe = 0; probe < probe_limit; ++probe) {
    const std::uint32_t slot = slots[at];
    if (slot == 0)
      return std::nullopt;
    if (matches(slot - 1))
      return slot - 1;
    if (++at == slots.size())
      at = 0;
  }
  return std::nullopt;
}

// Puts `number` in unless `same(number there)` says that its name is there already: the first of a name stays. False
// when there is no place within the probe limit.
template <class Same>
[[nodiscard]] bool insert(std::span<std::uint32_t> slots, std::uint32_t hash, std::uint32_t number, Same &&same) {
  if (slots.empty())
    return false;
  std::size_t at = home_of(hash, slots.size());
  for (std::size_t probe = 0; probe < probe_limit; ++probe) {
    if (slots[at] == 0) {
      slots[at] = number + 1;
      return true;
    }
    if (same(slots[at] - 1))
      return true;
    if (++at == slots.size())
      at = 0;
  }
  return false;
}

} // namespace name_index
} // namespace lararium
