#include "first_look.h"

#include <algorithm>
#include <optional>
#include <xxh_x86dispatch.h> // the widest vectors that this processor has

namespace lararium::detect {
namespace {

constexpr std::size_t largest_mask = 16;

} // namespace

FirstLook::FirstLook(Gva begin, std::uint64_t size, std::uint64_t key)
    : begin_{begin.value & ~(line_bytes - 1)}, key_(key) {
  const std::uint64_t lines = (begin + size - begin_ + line_bytes - 1) / line_bytes;
  lines_.resize(lines);
  states_.resize(lines, State::unseen);
  pages_.resize((begin_.page_offset() + lines * line_bytes + page_mask) / page_size);
}

std::uint32_t FirstLook::hash_of_line(const std::byte *line) const {
  return static_cast<std::uint32_t>(XXH3_64bits_withSeed(line, line_bytes, key_));
}

std::uint64_t FirstLook::hash_of_page(Bytes page) const {
  return XXH3_64bits_withSeed(page.data(), page.size(), key_) | 1;
}

FirstLook::Sameness FirstLook::look(const See &see, const Masks &masks, const Give &give) {
  std::array<std::byte, page_size> buffer;
  const Gva end = begin_ + size();
  auto sameness = Sameness::untouched;
  std::optional<std::span<const Mask>> known_masks;
  for (Gva page = begin_; page < end; page = page.page() + page_size) {
    const std::span<std::byte> bytes =
        std::span(buffer).first(std::min<std::uint64_t>(page_size - page.page_offset(), end - page));
    std::uint64_t &known = pages_[(page.page() - begin_.page()) / page_size];
    if (known != 0)
      if (const Bytes now = see(page, bytes); !now.empty() && hash_of_page(now) == known)
        continue;
    if (!known_masks)
      known_masks = masks();
    const Bytes now = see(page, bytes); // after what the masks say of it, and one moment's from here on
    if (now.empty()) {
      sameness = Sameness::different;
      continue;
    }
    if (now.data() != bytes.data())
      std::ranges::copy(now, bytes.begin());
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
