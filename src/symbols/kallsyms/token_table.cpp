#include "token_table.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

namespace lararium::kallsyms {
namespace {

using namespace std::string_view_literals;

// Digits occur in symbol names, so each keeps its own code, and their codes follow each other: ten tokens of one
// character, in every kernel.
constexpr std::string_view digit_run = "0\0001\0002\0003\0004\0005\0006\0007\0008\0009\0"sv;

// A real table has about 1 KiB; tokens grow by pairing shorter ones and stay far below these.
constexpr std::size_t max_table = 8192;
constexpr std::size_t max_token = 512; // KSYM_NAME_LEN
constexpr std::size_t index_size = 256 * sizeof(std::uint16_t);

bool is_name_byte(char c) { return c == '\0' || (c > ' ' && c < 0x7f); }

} // namespace

// Looks at 4 bytes in 16: the run is 20 bytes long, so that one such word lies inside, whatever the run's alignment,
// and reads "d\0d\0" or "\0d\0d". This is as fast as memory delivers.
std::optional<std::size_t> TokenTableSearch::next_digits() {
  for (; image_.size() - position_ >= 16; position_ += 16) {
    std::uint32_t word;
    std::memcpy(&word, image_.data() + position_, sizeof word);
    const bool digit_first = (word & 0xfff0fff0) == 0x00300030;
    const bool nul_first = (word & 0xf0fff0ff) == 0x30003000;
    if (!digit_first && !nul_first) [[likely]]
      continue;
    const std::size_t digit_at = position_ + (nul_first ? 1 : 0);
    const std::size_t before = 2 * ((word >> (nul_first ? 8 : 0)) & 15);
    if (digit_at < before + last_end_) // "9" is followed by ":", which looks like one more digit of the last run
      continue;
    const std::size_t start = digit_at - before;
    if (image_.size() - start < digit_run.size() ||
        std::memcmp(image_.data() + start, digit_run.data(), digit_run.size()) != 0)
      continue;
    last_end_ = position_ = start + digit_run.size();
    return start;
  }
  return std::nullopt;
}

std::optional<TokenTable> TokenTableSearch::next() {
  while (runs_left_ > 0) {
    const auto digits = next_digits();
    if (!digits)
      return std::nullopt;
    --runs_left_;
    if (auto table = read_around(*digits))
      return table;
  }
  return std::nullopt;
}

// The tokens from '0' on give the end of the table, behind which the index lies; the index tells how far before '0' the
// table starts, and must then agree with every token. (Walking back to the start would not do: the bytes before the
// table may look like tokens.)
std::optional<TokenTable> TokenTableSearch::read_around(std::size_t digits) const {
  const std::size_t window_start = digits - std::min(digits, max_table);
  const std::size_t zero = digits - window_start;
  const Bytes window = clamp_subspan(image_, window_start, zero + max_table + 8 + index_size);
  std::string copy(reinterpret_cast<const char *>(window.data()), window.size());

  std::size_t end = zero;
  for (unsigned code = '0'; code < 256; ++code) {
    end = copy.find('\0', end);
    if (end == std::string::npos)
      return std::nullopt;
    ++end;
  }

  const auto try_index_at = [&](std::size_t index_at) -> std::optional<TokenTable> {
    std::array<std::uint16_t, 256> index;
    if (index_at > copy.size() || copy.size() - index_at < index_size)
      return std::nullopt;
    std::memcpy(index.data(), copy.data() + index_at, index_size);
    if (index['0'] > zero)
      return std::nullopt;
    TokenTable table;
    const std::size_t start = zero - index['0'];
    std::size_t at = start;
    for (unsigned code = 0; code < 256; ++code) {
      const std::size_t nul = copy.find('\0', at);
      if (index[code] != at - start || nul == std::string::npos || nul - at > max_token)
        return std::nullopt;
      table.tokens[code] = {index[code], static_cast<std::uint16_t>(nul - at)};
      at = nul + 1;
    }
    if (at != end || !std::ranges::all_of(copy.begin() + start, copy.begin() + end, is_name_byte))
      return std::nullopt;
    table.text = copy.substr(start, end - start) + std::string(TokenTable::slack, '\0');
    table.table_offset = window_start + start;
    table.index_offset = window_start + index_at;
    table.end = table.index_offset + index_size;
    return table;
  };

  // The index is aligned to 8 bytes, from 7.0 on to 4.
  const std::size_t end_offset = window_start + end;
  const std::size_t to_4 = end + (-end_offset & 3), to_8 = end + (-end_offset & 7);
  auto table = try_index_at(to_4);
  if (!table && to_8 != to_4)
    table = try_index_at(to_8);
  return table;
}

} // namespace lararium::kallsyms
