// Trust on first use: what a kernel's code and read-only data were when they were first seen, as a keyed hash of each
// 64 bytes, so that a watched guest costs a twelfth of its text in memory. The places that the kernel itself changes
// are left out of the hashes, or put back to what stood there before.
//
// Almost always nothing changed at all: a hash of each page as it is, with these places, tells that at the speed of
// memory, and nothing of the page is looked at closer.
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
  // The bytes of a part of a page, in place or read into the buffer, which is as long; empty: they cannot be read.
  using See = std::function<Bytes(Gva, std::span<std::byte> buffer)>;
  using Give = std::function<void(Gva line, Bytes found)>;
  using Masks = std::function<std::span<const Mask>()>; // sorted by address; asked for where a page is not as it was

  enum class Sameness : std::uint8_t {
    untouched, // all bytes are what they were when all was the same the last time
    same,      // but for what masks cover
    different, // or not all could be compared
  };

  // `begin` and `size` are those of a range; both are widened to whole lines. `key` should be unguessable.
  FirstLook(Gva begin, std::uint64_t size, std::uint64_t key);

  // Remembers what it has not seen yet, and gives every line that is not as it was. A line is remembered for good when
  // two calls find it the same; until then a difference is taken for a race.
  Sameness look(const See &see, const Masks &masks, const Give &give);

  [[nodiscard]] Gva begin() const { return begin_; }
  [[nodiscard]] std::uint64_t size() const { return lines_.size() * line_bytes; }

private:
  enum class State : std::uint8_t { unseen, seen, sure };
  [[nodiscard]] std::uint32_t hash_of_line(const std::byte *line) const;
  [[nodiscard]] std::uint64_t hash_of_page(Bytes page) const;
  // Whether all lines of the page could be compared, and were the same; `certain`: by their bytes and by masks that
  // hide the same at any time.
  struct Compared {
    bool same = true, certain = true;
  };
  Compared compare(Gva page, std::span<std::byte> bytes, std::span<const Mask> masks, const Give &give);

  Gva begin_;
  std::uint64_t key_;
  std::vector<std::uint32_t> lines_;
  std::vector<State> states_;
  std::vector<std::uint64_t> pages_; // as they were when all their lines were certainly the same; 0: never
};

} // namespace lararium::detect
