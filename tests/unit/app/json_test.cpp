#include "json.h"

#include "text.h"

#include <gtest/gtest.h>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>

namespace lararium::cli {
namespace {

std::string json_of(std::string_view text) {
  std::string out;
  append_json_string(out, text);
  return out;
}

// What docs/json.md tells readers to do.
std::string original_bytes(const std::string &decoded) {
  std::string bytes;
  for (std::size_t at = 0; at < decoded.size();) {
    const CodePoint next = decode_utf8(decoded, at);
    if (next.value >= 0x10f780 && next.value <= 0x10f7ff)
      bytes += static_cast<char>(next.value & 0xff);
    else
      bytes.append(decoded, at, next.length);
    at += next.length;
  }
  return bytes;
}

TEST(JsonString, EscapesWhatJsonAndTerminalsMust) {
  EXPECT_EQ(json_of("plain /path"), R"("plain /path")");
  EXPECT_EQ(json_of("\"\\\n\t"), R"("\"\\\n\t")");
  EXPECT_EQ(json_of("\x1b[0m\x7f"), R"("\u001b[0m\u007f")");
  EXPECT_EQ(json_of("\u202e"), R"("\u202e")");
  EXPECT_EQ(json_of("\U000E0041"), R"("\udb40\udc41")");
}

TEST(JsonString, AnyBytesRoundTripThroughAnotherParser) {
  std::mt19937 random(1);
  for (int round = 0; round < 3000; ++round) {
    std::string bytes;
    for (auto length = random() % 24; length > 0; --length)
      switch (random() % 4) {
      case 0: bytes += static_cast<char>(random()); break;
      case 1: bytes += static_cast<char>(random() % 128); break;
      case 2: append_utf8(bytes, 0x10f700 + random() % 256); break;
      default: bytes += "\xe6\x8c\x96"; break;
      }
    const std::string text = json_of(bytes);
    const auto parsed = nlohmann::json::parse(text); // throws on what is not UTF-8
    ASSERT_EQ(original_bytes(parsed.get<std::string>()), bytes) << text;
  }
}

TEST(JsonWriter, WritesNestedDocuments) {
  std::string out;
  JsonWriter json(out);
  json.begin_object().member("a", 1).member("b", -2).member("c", true).key("d").begin_array();
  json.value("x").null().value(std::optional<int>()).value(1.5).begin_object().end_object().end_array();
  json.key("e").hex(0).member("f", Gva{0xffffffff81000000}).text_or_null("g", "");
  json.member("h", std::numeric_limits<std::int64_t>::min()).member("i", UINT64_MAX);
  json.key("j").value(std::numeric_limits<double>::infinity()).end_object();
  EXPECT_EQ(out, R"({"a":1,"b":-2,"c":true,"d":["x",null,null,1.50,{}],"e":"0x0","f":"0xffffffff81000000","g":null,)"
                 R"("h":-9223372036854775808,"i":18446744073709551615,"j":null})");
}

} // namespace
} // namespace lararium::cli
