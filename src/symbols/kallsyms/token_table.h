// The token table of kallsyms: what each of the 256 codes in a compressed name stands for.
#pragma once

#include "lararium/base/bytes.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace lararium::kallsyms {

// A copy, whose every length was checked.
struct TokenTable {
  struct Token {
    std::uint16_t offset = 0; // in `text`
    std::uint16_t length = 0;
  };
  static constexpr std::size_t slack = 16; // readable bytes after the last token, for copies of a fixed size

  std::string text;
  std::array<Token, 256> tokens;
  std::size_t table_offset = 0; // in the image
  std::size_t index_offset = 0;
  std::size_t end = 0; // behind the index
};

// Walks over the token tables of an image; there is one, unless somebody planted more.
class TokenTableSearch {
public:
  explicit TokenTableSearch(Bytes image) : image_(image) {}
  [[nodiscard]] std::optional<TokenTable> next();

private:
  [[nodiscard]] std::optional<std::size_t> next_digits();
  [[nodiscard]] std::optional<TokenTable> read_around(std::size_t digits) const;

  Bytes image_;
  std::size_t position_ = 0;
  std::size_t last_end_ = 0;  // behind the last run of digits, to find it once
  unsigned runs_left_ = 4096; // runs of digits to look at: bounds the work in a hostile image
};

} // namespace lararium::kallsyms
