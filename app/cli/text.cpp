#include "text.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <fmt/format.h>

namespace lararium::cli {
namespace {

struct Range {
  char32_t first, last;
};

bool contains(const auto &ranges, char32_t code_point) {
  const auto after = std::ranges::upper_bound(ranges, code_point, {}, [](const Range &range) { return range.first; });
  return after != std::ranges::begin(ranges) && code_point <= std::prev(after)->last;
}

// Unicode general categories Cc, Cf, Zl, Zp, as far as they control or hide text.
constexpr std::array invisible_ranges = std::to_array<Range>({
    {0x00, 0x1f},
    {0x7f, 0x9f},
    {0xad, 0xad},
    {0x61c, 0x61c},
    {0x180e, 0x180e},
    {0x200b, 0x200f},
    {0x2028, 0x202e},
    {0x2060, 0x206f},
    {0xfeff, 0xfeff},
    {0xfff9, 0xfffb},
    {0x1d173, 0x1d17a},
    {0xe0000, 0xe007f},
});

// Marks that combine with the character before them. The scripts in which names and paths are met, not all of Mn.
constexpr std::array combining_ranges = std::to_array<Range>({
    {0x300, 0x36f},   {0x483, 0x489},   {0x591, 0x5bd},   {0x610, 0x61a},   {0x64b, 0x65f},
    {0x6d6, 0x6dc},   {0x900, 0x902},   {0x93c, 0x93c},   {0x941, 0x948},   {0xe31, 0xe31},
    {0xe34, 0xe3a},   {0xe47, 0xe4e},   {0x1ab0, 0x1aff}, {0x1dc0, 0x1dff}, {0x20d0, 0x20ff},
    {0x302a, 0x302d}, {0x3099, 0x309a}, {0xfe00, 0xfe0f}, {0xfe20, 0xfe2f}, {0xe0100, 0xe01ef},
});

// East Asian Wide and Fullwidth (UAX #11), with the emoji that terminals show two columns wide.
constexpr std::array wide_ranges = std::to_array<Range>({
    {0x1100, 0x115f},   {0x231a, 0x231b},   {0x2329, 0x232a},   {0x23e9, 0x23ec},   {0x2614, 0x2615},
    {0x2648, 0x2653},   {0x26a1, 0x26a1},   {0x26c4, 0x26c5},   {0x2705, 0x2705},   {0x270a, 0x270b},
    {0x2728, 0x2728},   {0x274c, 0x274c},   {0x2753, 0x2755},   {0x2795, 0x2797},   {0x2b1b, 0x2b1c},
    {0x2e80, 0x303e},   {0x3041, 0x33ff},   {0x3400, 0x4dbf},   {0x4e00, 0x9fff},   {0xa000, 0xa4cf},
    {0xa960, 0xa97f},   {0xac00, 0xd7a3},   {0xf900, 0xfaff},   {0xfe30, 0xfe6f},   {0xff00, 0xff60},
    {0xffe0, 0xffe6},   {0x16fe0, 0x18aff}, {0x1b000, 0x1b2ff}, {0x1f18e, 0x1f18e}, {0x1f191, 0x1f19a},
    {0x1f200, 0x1f265}, {0x1f300, 0x1f64f}, {0x1f680, 0x1f6ff}, {0x1f7e0, 0x1f7eb}, {0x1f90c, 0x1faff},
    {0x20000, 0x3fffd},
});

std::size_t width_of(char32_t code_point) {
  if (code_point < 0x300)
    return 1;
  if (contains(combining_ranges, code_point))
    return 0;
  return contains(wide_ranges, code_point) ? 2 : 1;
}

constexpr bool is_plain(char character) { return character >= 0x20 && character < 0x7f; }

struct CalendarTime {
  std::int64_t year;
  unsigned month, day, hour, minute, second, nanosecond;
};

// Days to a civil date: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms". gmtime_r() would do, and is
// several times slower.
CalendarTime calendar_time(std::uint64_t nanoseconds) {
  const std::uint64_t seconds = nanoseconds / 1'000'000'000;
  const std::int64_t days = static_cast<std::int64_t>(seconds / 86400) + 719468;
  const std::int64_t era = days / 146097;
  const auto day_of_era = static_cast<unsigned>(days - era * 146097);
  const unsigned year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146096) / 365;
  const unsigned day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
  const unsigned shifted_month = (5 * day_of_year + 2) / 153;
  const unsigned month = shifted_month < 10 ? shifted_month + 3 : shifted_month - 9;
  const auto second_of_day = static_cast<unsigned>(seconds % 86400);
  return {.year = static_cast<std::int64_t>(year_of_era) + era * 400 + (month <= 2 ? 1 : 0),
          .month = month,
          .day = day_of_year - (153 * shifted_month + 2) / 5 + 1,
          .hour = second_of_day / 3600,
          .minute = second_of_day / 60 % 60,
          .second = second_of_day % 60,
          .nanosecond = static_cast<unsigned>(nanoseconds % 1'000'000'000)};
}

std::string with_unit(std::uint64_t bytes, std::string_view separator, bool long_unit) {
  constexpr std::string_view letters = "KMGTPE";
  if (bytes < 1024)
    return fmt::format("{}{}B", bytes, separator);
  auto value = static_cast<double>(bytes) / 1024;
  std::size_t unit = 0;
  // 1023.95 would print as "1024": go on to the next unit before that.
  while (value >= 999.5 && unit + 1 < letters.size()) {
    value /= 1024;
    ++unit;
  }
  return fmt::format("{:.{}f}{}{}{}", value, value < 9.95 ? 1 : 0, separator, letters[unit], long_unit ? "iB" : "");
}

} // namespace

CodePoint decode_utf8(std::string_view text, std::size_t at) {
  const auto byte = [&](std::size_t index) -> unsigned {
    return at + index < text.size() ? static_cast<unsigned char>(text[at + index]) : 0U;
  };
  const unsigned lead = byte(0);
  if (lead < 0x80)
    return {lead, 1};
  std::uint8_t length = 0;
  char32_t value = 0;
  char32_t least = 0;
  if ((lead & 0xe0) == 0xc0) {
    length = 2, value = lead & 0x1f, least = 0x80;
  } else if ((lead & 0xf0) == 0xe0) {
    length = 3, value = lead & 0x0f, least = 0x800;
  } else if ((lead & 0xf8) == 0xf0) {
    length = 4, value = lead & 0x07, least = 0x10000;
  } else {
    return {};
  }
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80)
      return {};
    value = value << 6 | (byte(i) & 0x3f);
  }
  if (value < least || value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff))
    return {};
  return {value, length};
}

void append_utf8(std::string &out, char32_t code_point) {
  const auto continuation = [](char32_t bits) { return static_cast<char>(0x80 | (bits & 0x3f)); };
  if (code_point < 0x80) {
    out += static_cast<char>(code_point);
  } else if (code_point < 0x800) {
    out += static_cast<char>(0xc0 | code_point >> 6);
    out += continuation(code_point);
  } else if (code_point < 0x10000) {
    out += static_cast<char>(0xe0 | code_point >> 12);
    out += continuation(code_point >> 6);
    out += continuation(code_point);
  } else {
    out += static_cast<char>(0xf0 | code_point >> 18);
    out += continuation(code_point >> 12);
    out += continuation(code_point >> 6);
    out += continuation(code_point);
  }
}

bool is_invisible(char32_t code_point) { return contains(invisible_ranges, code_point); }

void append_visible(std::string &out, std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const std::size_t begin = at;
    while (at < text.size() && is_plain(text[at]))
      ++at;
    out.append(text, begin, at - begin);
    if (at == text.size())
      return;
    const CodePoint next = decode_utf8(text, at);
    if (next.length == 0 || (next.value < 0x80 && next.value != '\n' && next.value != '\t'))
      fmt::format_to(std::back_inserter(out), "\\x{:02x}", static_cast<unsigned char>(text[at]));
    else if (next.value == '\n')
      out += "\\n";
    else if (next.value == '\t')
      out += "\\t";
    else if (is_invisible(next.value))
      fmt::format_to(std::back_inserter(out), "\\u{{{:x}}}", static_cast<std::uint32_t>(next.value));
    else
      out.append(text, at, next.length);
    at += std::max<std::size_t>(next.length, 1);
  }
}

std::string visible(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  append_visible(out, text);
  return out;
}

std::size_t display_width(std::string_view text) {
  std::size_t width = 0;
  for (std::size_t at = 0; at < text.size();) {
    if (is_plain(text[at])) {
      ++width, ++at;
      continue;
    }
    const CodePoint next = decode_utf8(text, at);
    width += next.length == 0 ? 1 : width_of(next.value);
    at += std::max<std::size_t>(next.length, 1);
  }
  return width;
}

std::size_t prefix_of_width(std::string_view text, std::size_t width) {
  std::size_t at = 0;
  while (at < text.size()) {
    const CodePoint next = decode_utf8(text, at);
    const std::size_t columns = next.length == 0 ? 1 : width_of(next.value);
    if (columns > width)
      break;
    width -= columns;
    at += std::max<std::size_t>(next.length, 1);
  }
  return at;
}

std::string short_bytes(std::uint64_t bytes) { return bytes == 0 ? "0" : with_unit(bytes, "", false); }
std::string long_bytes(std::uint64_t bytes) { return with_unit(bytes, " ", true); }

std::string cpu_time(std::uint64_t nanoseconds) {
  const std::uint64_t hundredths = nanoseconds / 10'000'000;
  const std::uint64_t seconds = hundredths / 100;
  if (seconds < 3600)
    return fmt::format("{}:{:02}.{:02}", seconds / 60, seconds % 60, hundredths % 100);
  return fmt::format("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
}

std::string duration(std::uint64_t nanoseconds) {
  const std::uint64_t seconds = nanoseconds / 1'000'000'000;
  const std::uint64_t minutes = seconds / 60;
  const std::uint64_t hours = minutes / 60;
  const std::uint64_t days = hours / 24;
  if (days > 0)
    return fmt::format("{} {} {} h", days, days == 1 ? "day" : "days", hours % 24);
  if (hours > 0)
    return fmt::format("{} h {} min", hours, minutes % 60);
  if (minutes > 0)
    return fmt::format("{} min {} s", minutes, seconds % 60);
  return fmt::format("{} s", seconds);
}

std::string iso_time(std::uint64_t nanoseconds) {
  const CalendarTime time = calendar_time(nanoseconds);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z", time.year, time.month, time.day, time.hour,
                     time.minute, time.second, time.nanosecond);
}

std::string plain_time(std::uint64_t nanoseconds) {
  const CalendarTime time = calendar_time(nanoseconds);
  return fmt::format("{:04}-{:02}-{:02} {:02}:{:02}:{:02} UTC", time.year, time.month, time.day, time.hour, time.minute,
                     time.second);
}

std::string start_time(std::uint64_t nanoseconds, std::uint64_t reference) {
  constexpr std::uint64_t day = 86'400'000'000'000;
  const CalendarTime time = calendar_time(nanoseconds);
  if (nanoseconds / day == reference / day)
    return fmt::format("{:02}:{:02}:{:02}", time.hour, time.minute, time.second);
  return fmt::format("{:04}-{:02}-{:02}", time.year, time.month, time.day);
}

std::optional<std::uint64_t> parse_number(std::string_view text) {
  int base = 10;
  if (text.starts_with("0x") || text.starts_with("0X")) {
    base = 16;
    text.remove_prefix(2);
  }
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (text.empty() || error != std::errc() || end != text.data() + text.size())
    return std::nullopt;
  return value;
}

std::optional<std::uint64_t> parse_size(std::string_view text) {
  constexpr std::string_view units = "KMGT";
  unsigned shift = 0;
  if (!text.empty() && !text.starts_with("0x"))
    if (const std::size_t unit = units.find(static_cast<char>(text.back() & ~0x20)); unit != units.npos) {
      shift = 10 * static_cast<unsigned>(unit + 1);
      text.remove_suffix(1);
    }
  const auto value = parse_number(text);
  if (!value || *value > UINT64_MAX >> shift)
    return std::nullopt;
  return *value << shift;
}

Result<std::chrono::milliseconds> parse_duration(std::string_view text, std::string_view option) {
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  const std::string_view unit(end, static_cast<std::size_t>(text.data() + text.size() - end));
  const double factor = unit == "ms"                  ? 1
                        : unit.empty() || unit == "s" ? 1e3
                        : unit == "m"                 ? 6e4
                        : unit == "h"                 ? 3.6e6
                                                      : 0;
  constexpr double longest = 366 * 24 * 3.6e6;
  if (error != std::errc() || factor == 0 || !(number * factor >= 0 && number * factor <= longest))
    return fail(ErrorCode::usage,
                fmt::format("{}: no duration such as 100ms, 10s, 5m or 1h: {}", option, visible(text)));
  return std::chrono::milliseconds(static_cast<std::int64_t>(number * factor));
}

bool matches_glob(std::string_view pattern, std::string_view text) {
  // The classic two-pointer walk: only the last * is ever retried, so no exponential backtracking.
  std::size_t p = 0;
  std::size_t t = 0;
  std::size_t star = pattern.npos;
  std::size_t star_text = 0;
  // Matches the set at pattern[at] == '['; `after` gets the place behind it. An unclosed set matches nothing.
  const auto in_set = [&](std::size_t at, char character, std::size_t &after) {
    std::size_t i = at + 1;
    const bool negated = i < pattern.size() && (pattern[i] == '!' || pattern[i] == '^');
    i += negated ? 1 : 0;
    bool found = false;
    for (bool first = true; i < pattern.size() && (first || pattern[i] != ']'); first = false) {
      char low = pattern[i];
      char high = low;
      if (i + 2 < pattern.size() && pattern[i + 1] == '-' && pattern[i + 2] != ']') {
        high = pattern[i + 2];
        i += 2;
      }
      found = found || (low <= character && character <= high);
      ++i;
    }
    if (i >= pattern.size())
      return false;
    after = i + 1;
    return found != negated;
  };
  while (t < text.size()) {
    std::size_t after = p + 1;
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      star_text = t;
    } else if (p < pattern.size() &&
               (pattern[p] == '?' || (pattern[p] == '[' ? in_set(p, text[t], after) : pattern[p] == text[t]))) {
      p = after;
      ++t;
    } else if (star != pattern.npos) {
      p = star + 1;
      t = ++star_text;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*')
    ++p;
  return p == pattern.size();
}

} // namespace lararium::cli
