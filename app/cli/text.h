// Text for people: guest strings made safe for a terminal, widths as a terminal counts them, units, times.
#pragma once

#include "lararium/base/result.h"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace lararium::cli {

struct CodePoint {
  char32_t value = 0;
  std::uint8_t length = 0; // bytes; 0: the byte at that place begins no well-formed UTF-8 sequence
};
// Strict (RFC 3629): no overlong forms, no surrogates, nothing above U+10FFFF. `at` lies inside the text.
[[nodiscard]] CodePoint decode_utf8(std::string_view text, std::size_t at);
void append_utf8(std::string &out, char32_t code_point);

// Characters that a terminal acts on or hides instead of showing: C0 and C1 controls, line and paragraph separators,
// bidirectional overrides, zero-width and tag characters.
[[nodiscard]] bool is_invisible(char32_t code_point);

// Appends guest text so that a terminal shows it and does nothing else: what is_invisible() and bytes that are not
// UTF-8 become \n, \t, \x1b or \u{202e}.
void append_visible(std::string &out, std::string_view text);
[[nodiscard]] std::string visible(std::string_view text);

// Columns that a terminal uses for text without escape sequences.
[[nodiscard]] std::size_t display_width(std::string_view text);
// The longest prefix, in bytes, that takes at most `width` columns.
[[nodiscard]] std::size_t prefix_of_width(std::string_view text, std::size_t width);

[[nodiscard]] std::string short_bytes(std::uint64_t bytes);    // "12K", "4.3M": for columns
[[nodiscard]] std::string long_bytes(std::uint64_t bytes);     // "4.3 MiB"
[[nodiscard]] std::string cpu_time(std::uint64_t nanoseconds); // "0:03.42", "2:04:05"
[[nodiscard]] std::string duration(std::uint64_t nanoseconds); // "3 days 4 h", "2 min 5 s"

// Wall clock, UTC.
[[nodiscard]] std::string iso_time(std::uint64_t nanoseconds);   // "2024-05-01T12:34:56.123456789Z"
[[nodiscard]] std::string plain_time(std::uint64_t nanoseconds); // "2024-05-01 12:34:56 UTC"
// As ps shows a start: the time of day when it lies on the same day as `reference`, else the date.
[[nodiscard]] std::string start_time(std::uint64_t nanoseconds, std::uint64_t reference);

// Decimal, or hexadecimal after "0x"; the whole text or nothing.
[[nodiscard]] std::optional<std::uint64_t> parse_number(std::string_view text);
// The same with K, M, G, T (powers of 1024) behind.
[[nodiscard]] std::optional<std::uint64_t> parse_size(std::string_view text);

// "100ms", "10s", "5m", "1h"; a bare number is seconds. An error names the option.
[[nodiscard]] Result<std::chrono::milliseconds> parse_duration(std::string_view text, std::string_view option);

// Shell-like patterns: * ? and [set]. Linear in pattern times text, whatever they hold.
[[nodiscard]] bool matches_glob(std::string_view pattern, std::string_view text);

} // namespace lararium::cli
