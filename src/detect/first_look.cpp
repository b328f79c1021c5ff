#include "first_look.h"

#include <algorithm>
#include <cstring>
#include <optional>

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
  pages_.resize((begin_.page_offset() + lines * line_bytes + page_mask) / page_size);
}

std::uint32_t FirstLook::hash_of_line(const std::byte *line) const {
  std::uint64_t hash = key_;
  for (std::size_t at = 0; at < line_bytes; at += 16)
    hash = mix(word_at(line + at) ^ hash, word_at(line + at + 8) ^ (key_ * 0x9e3779b97f4a7c15 + at)) + (hash << 1 | 1);
  return static_cast<std::uint32_t>(hash ^ hash >> 32);
}

// Four lanes, so that the processor multiplies while it multiplies.
std::uint64_t FirstLook::hash_of_page(Bytes page) const {
  std::array<std::uint64_t, 4> lanes{}, secrets{};
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    secrets[i] = mix(key_ + i, 0x9e3779b97f4a7c15);
    lanes[i] = secrets[i] ^ key_;
  }
  for (std::size_t at = 0; at + line_bytes <= page.size(); at += line_bytes)
    for (std::size_t i = 0; i < lanes.size(); ++i) {
      const std::byte *const word = page.data() + at + 16 * i;
      lanes[i] = mix(word_at(word) ^ secrets[i], word_at(word + 8) ^ lanes[i]) + lanes[i];
    }
  return (mix(lanes[0] ^ secrets[1], lanes[1] ^ key_) ^ mix(lanes[2] ^ secrets[3], lanes[3] ^ key_)) | 1;
}

FirstLook::Sameness FirstLook::look(const Read &read, const Masks &masks, const Give &give) {
  std::array<std::byte, page_size> buffer;
  const Gva end = begin_ + size();
  auto sameness = Sameness::untouched;
  std::optional<std::span<const Mask>> known_masks;
  for (Gva page = begin_; page < end; page = page.page() + page_size) {
    const std::span<std::byte> bytes =
        std::span(buffer).first(std::min<std::uint64_t>(page_size - page.page_offset(), end - page));
    if (!read(page, bytes)) {
      sameness = Sameness::different;
      continue;
    }
    std::uint64_t &known = pages_[(page.page() - begin_.page()) / page_size];
    if (known != 0 && hash_of_page(bytes) == known)
      continue;
    if (!known_masks) {
      known_masks = masks();
      if (!read(page, bytes)) { // after what the masks say of it
        sameness = Sameness::different;
        continue;
      }
    }
    const std::uint64_t hash = hash_of_page(bytes);
    const Compared compared = compare(page, bytes, *known_masks, give);
    known = compared.same && compared.certain ? hash : 0;
    sameness = std::max(sameness, compared.same ? Sameness::same : Sameness::different);
  }
  return sameness;
}

FirstLook::Compared FirstLook::compare(Gva page, std::span<std::byte> bytes, std::span<const Mask> masks,
                                       const Give &give) {
  Compared result;
  std::array<std::byte, page_size> shown;
  std::ranges::copy(bytes, shown.begin());
  std::array<bool, page_size / line_bytes> blind{};
  // One that begins on the page before may reach into this one.
  for (auto mask = std::ranges::lower_bound(masks, page - (largest_mask - 1), {}, &Mask::begin);
       mask != masks.end() && mask->begin < page + bytes.size(); ++mask)
    for (std::size_t i = 0; i < mask->length; ++i) {
      const Gva at = mask->begin + i;
      if (at < page || at >= page + bytes.size())
        continue;
      const std::size_t offset = at - page;
      if (mask->kind == Mask::Kind::blind)
        blind[offset / line_bytes] = true;
      result.certain = result.certain && mask->kind == Mask::Kind::hide;
      bytes[offset] = mask->kind == Mask::Kind::restore && i < mask->original.size() ? mask->original[i] : std::byte{};
    }
  for (std::size_t offset = 0; offset + line_bytes <= bytes.size(); offset += line_bytes) {
    if (blind[offset / line_bytes]) {
      result.same = false;
      continue;
    }
    const std::size_t index = (page + offset - begin_) / line_bytes;
    const std::uint32_t hash = hash_of_line(bytes.data() + offset);
    State &state = states_[index];
    if (state == State::sure) {
      if (hash != lines_[index]) {
        result.same = false;
        give(page + offset, Bytes(shown).subspan(offset, line_bytes));
      }
    } else {
      result.same = false;
      state = state == State::seen && hash == lines_[index] ? State::sure : State::seen;
      lines_[index] = hash;
    }
  }
  return result;
}

} // namespace lararium::detect
