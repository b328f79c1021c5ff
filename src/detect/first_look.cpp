#include "first_look.h"

#include <algorithm>
#include <cstring>

namespace lararium::detect {
namespace {

constexpr std::size_t largest_mask = 16;

__extension__ using Wide = unsigned __int128;

std::uint64_t mix(std::uint64_t a, std::uint64_t b) {
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

std::uint64_t word_at(const std::byte *at) {
  std::uint64_t word = 0;
  std::memcpy(&word, at, sizeof word);
  return word;
}

} // namespace

FirstLook::FirstLook(Gva begin, std::uint64_t size, std::uint64_t key)
    : begin_{begin.value & ~(line_bytes - 1)}, key_(key) {
  const std::uint64_t lines = (begin + size - begin_ + line_bytes - 1) / line_bytes;
  lines_.resize(lines);
  states_.resize(lines, State::unseen);
}

std::uint32_t FirstLook::hash_of(const std::byte *line) const {
  std::uint64_t hash = key_;
  for (std::size_t at = 0; at < line_bytes; at += 16)
    hash = mix(word_at(line + at) ^ hash, word_at(line + at + 8) ^ (key_ * 0x9e3779b97f4a7c15 + at)) + (hash << 1 | 1);
  return static_cast<std::uint32_t>(hash ^ hash >> 32);
}

bool FirstLook::look(const Read &read, std::span<const Mask> masks, const Give &give) {
  std::array<std::byte, page_size> bytes{}, shown{};
  std::array<bool, page_size / line_bytes> blind{};
  const Gva end = begin_ + size();
  bool all_the_same = true;
  for (Gva page = begin_; page < end; page = page.page() + page_size) {
    const std::uint64_t part = std::min<std::uint64_t>(page_size - page.page_offset(), end - page);
    const std::span<std::byte> all = std::span(bytes).first(part);
    if (!read(page, all)) {
      all_the_same = false;
      continue;
    }
    shown = bytes;
    blind.fill(false);
    // One that begins on the page before may reach into this one.
    for (auto mask = std::ranges::lower_bound(masks, page - (largest_mask - 1), {}, &Mask::begin);
         mask != masks.end() && mask->begin < page + part; ++mask)
      for (std::size_t i = 0; i < mask->length; ++i) {
        const Gva at = mask->begin + i;
        if (at < page || at >= page + part)
          continue;
        const std::size_t offset = at - page;
        if (mask->kind == Mask::Kind::blind)
          blind[offset / line_bytes] = true;
        bytes[offset] =
            mask->kind == Mask::Kind::restore && i < mask->original.size() ? mask->original[i] : std::byte{};
      }
    for (std::size_t offset = 0; offset + line_bytes <= part; offset += line_bytes) {
      if (blind[offset / line_bytes]) {
        all_the_same = false;
        continue;
      }
      const std::size_t index = (page + offset - begin_) / line_bytes;
      const std::uint32_t hash = hash_of(bytes.data() + offset);
      State &state = states_[index];
      if (state == State::sure) {
        if (hash != lines_[index]) {
          all_the_same = false;
          give(page + offset, Bytes(shown).subspan(offset, line_bytes));
        }
      } else {
        all_the_same = false;
        state = state == State::seen && hash == lines_[index] ? State::sure : State::seen;
        lines_[index] = hash;
      }
    }
  }
  return all_the_same;
}

} // namespace lararium::detect
