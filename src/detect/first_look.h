// Trust on first use: what a kernel's code and read-only data were when they were first seen, as a keyed hash of each
// 64 bytes, so that a watched guest costs a sixteenth of its text in memory. The places that the kernel itself changes
// are left out of the hashes, or put back to what stood there before.
#pragma once

#include "lararium/base/address.h"
#include "lararium/base/bytes.h"

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace lararium::detect {

// A place in code whose content says nothing.
struct Mask {
  enum class Kind : std::uint8_t {
    hide,    // it may hold one thing or another
    restore, // a probe: `original` stood there
    blind,   // it is being changed: nothing near it can be compared now
  };
  Gva begin;
  std::uint8_t length = 0; // at most 16
  Kind kind = Kind::hide;
  std::array<std::byte, 5> original{};
};

// The lines of one range that does not move while it is remembered.
class FirstLook {
public:
  static constexpr std::size_t line_bytes = 64;
  using Read = std::function<bool(Gva, std::span<std::byte>)>;
  using Give = std::function<void(Gva line, Bytes found)>;

  // `begin` and `size` are those of a range; both are widened to whole lines. `key` should be unguessable.
  FirstLook(Gva begin, std::uint64_t size, std::uint64_t key);

  // Remembers what it has not seen yet, and gives every line that is not as it was. A line is remembered for good when
  // two calls find it the same; until then a difference is taken for a race. `masks` are sorted by address. Whether
  // every line could be compared, and was the same.
  bool look(const Read &read, std::span<const Mask> masks, const Give &give);

  [[nodiscard]] Gva begin() const { return begin_; }
  [[nodiscard]] std::uint64_t size() const { return lines_.size() * line_bytes; }

private:
  enum class State : std::uint8_t { unseen, seen, sure };
  [[nodiscard]] std::uint32_t hash_of(const std::byte *line) const;

  Gva begin_;
  std::uint64_t key_;
  std::vector<std::uint32_t> lines_;
  std::vector<State> states_;
};

} // namespace lararium::detect
