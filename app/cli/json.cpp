#include "json.h"

#include "text.h"

#include <array>
#include <cmath>
#include <fmt/compile.h>
#include <fmt/format.h>
#include <iterator>

namespace lararium::cli {
namespace {

constexpr std::array<bool, 256> make_plain() {
  std::array<bool, 256> plain{};
  for (std::size_t i = 0x20; i < 0x7f; ++i)
    plain[i] = i != '"' && i != '\\';
  return plain;
}
constexpr auto plain_bytes = make_plain();

constexpr char32_t raw_byte_base = 0x10f700; // plane 16, private use; see the header

void append_escape(std::string &out, char32_t code_point) {
  constexpr char digits[] = "0123456789abcdef";
  const auto unit = [&](std::uint32_t value) {
    out += "\\u";
    for (int shift = 12; shift >= 0; shift -= 4)
      out += digits[value >> shift & 15];
  };
  if (code_point < 0x10000) {
    unit(code_point);
  } else {
    unit(0xd800 + ((code_point - 0x10000) >> 10));
    unit(0xdc00 + ((code_point - 0x10000) & 0x3ff));
  }
}

} // namespace

void append_json_string(std::string &out, std::string_view text) {
  out += '"';
  std::size_t at = 0;
  while (at < text.size()) {
    const std::size_t begin = at;
    while (at < text.size() && plain_bytes[static_cast<unsigned char>(text[at])])
      ++at;
    out.append(text, begin, at - begin);
    if (at == text.size())
      break;
    const CodePoint next = decode_utf8(text, at);
    const bool is_raw_byte_mark = next.value >= raw_byte_base + 0x80 && next.value <= raw_byte_base + 0xff;
    if (next.length == 0 || is_raw_byte_mark) {
      const std::size_t count = next.length == 0 ? 1 : next.length;
      for (std::size_t i = 0; i < count; ++i)
        append_utf8(out, raw_byte_base + static_cast<unsigned char>(text[at + i]));
    } else if (next.value == '"' || next.value == '\\') {
      out += '\\';
      out += text[at];
    } else if (next.value == '\n') {
      out += "\\n";
    } else if (next.value == '\t') {
      out += "\\t";
    } else if (is_invisible(next.value)) {
      append_escape(out, next.value);
    } else {
      out.append(text, at, next.length);
    }
    at += next.length == 0 ? 1 : next.length;
  }
  out += '"';
}

JsonWriter &JsonWriter::unsigned_number(std::uint64_t number) {
  const fmt::format_int text(number);
  return raw({text.data(), text.size()});
}

JsonWriter &JsonWriter::negative(std::int64_t number) {
  const fmt::format_int text(number);
  return raw({text.data(), text.size()});
}

JsonWriter &JsonWriter::value(double number) {
  if (!std::isfinite(number)) // JSON has no word for these
    return null();
  separate();
  fmt::format_to(std::back_inserter(*out_), FMT_COMPILE("{:.2f}"), number);
  return done();
}

JsonWriter &JsonWriter::hex(std::uint64_t number) {
  separate();
  constexpr char digits[] = "0123456789abcdef";
  std::array<char, 16> text;
  std::size_t first = text.size();
  do {
    text[--first] = digits[number & 15];
    number >>= 4;
  } while (number != 0);
  *out_ += "\"0x";
  out_->append(text.data() + first, text.size() - first);
  *out_ += '"';
  return done();
}

JsonWriter &JsonWriter::time(std::uint64_t nanoseconds) { return value(iso_time(nanoseconds)); }

} // namespace lararium::cli
