#include "text.h"

#include <gtest/gtest.h>

namespace lararium::cli {
namespace {

using namespace std::chrono_literals;

TEST(Visible, LeavesPlainTextAlone) {
  EXPECT_EQ(visible("sshd: user [priv]"), "sshd: user [priv]");
  EXPECT_EQ(visible("挖矿 ünïcode"), "挖矿 ünïcode");
}

TEST(Visible, EscapesWhatATerminalActsOn) {
  EXPECT_EQ(visible("a\x1b[2Jb"), "a\\x1b[2Jb");
  EXPECT_EQ(visible("tab\tline\n"), "tab\\tline\\n");
  EXPECT_EQ(visible(std::string_view("nul\0", 4)), "nul\\x00");
  EXPECT_EQ(visible("\x7f"), "\\x7f");
  EXPECT_EQ(visible("\xc2\x9b"
                    "31m"),
            "\\u{9b}31m"); // the C1 form of ESC [
}

TEST(Visible, EscapesWhatHidesOrReordersText) {
  EXPECT_EQ(visible("gnp\u202etxt.exe"), "gnp\\u{202e}txt.exe");
  EXPECT_EQ(visible("a\u200bb"), "a\\u{200b}b");
  EXPECT_EQ(visible("a\u2066b\u2069"), "a\\u{2066}b\\u{2069}");
  EXPECT_EQ(visible("\U000E0041"), "\\u{e0041}");
}

TEST(Visible, EscapesBytesThatAreNotUtf8) {
  EXPECT_EQ(visible("\xff\xfe"), "\\xff\\xfe");
  EXPECT_EQ(visible("\xc0\xaf"), "\\xc0\\xaf");                   // overlong /
  EXPECT_EQ(visible("\xed\xa0\x80"), "\\xed\\xa0\\x80");          // a surrogate
  EXPECT_EQ(visible("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80"); // above U+10FFFF
  EXPECT_EQ(visible("\xe6\x8c"), "\\xe6\\x8c");                   // cut off
}

TEST(DisplayWidth, CountsColumns) {
  EXPECT_EQ(display_width("plain"), 5U);
  EXPECT_EQ(display_width("挖矿"), 4U);
  EXPECT_EQ(display_width("e\u0301"), 1U);
  EXPECT_EQ(prefix_of_width("挖矿", 3), 3U);
  EXPECT_EQ(prefix_of_width("abc", 10), 3U);
}

TEST(Units, Bytes) {
  EXPECT_EQ(short_bytes(0), "0");
  EXPECT_EQ(short_bytes(512), "512B");
  EXPECT_EQ(short_bytes(1024), "1.0K");
  EXPECT_EQ(short_bytes(1023 * 1024), "1.0M");
  EXPECT_EQ(short_bytes(10 << 20), "10M");
  EXPECT_EQ(short_bytes(UINT64_MAX), "16E");
  EXPECT_EQ(long_bytes(1536), "1.5 KiB");
}

TEST(Units, Times) {
  EXPECT_EQ(cpu_time(0), "0:00.00");
  EXPECT_EQ(cpu_time(62'345'000'000), "1:02.34");
  EXPECT_EQ(cpu_time(7'384'000'000'000), "2:03:04");
  EXPECT_EQ(duration(59'000'000'000), "59 s");
  EXPECT_EQ(duration(90'061'000'000'000), "1 day 1 h");
  EXPECT_EQ(iso_time(0), "1970-01-01T00:00:00.000000000Z");
  EXPECT_EQ(iso_time(951'827'696'123'456'789), "2000-02-29T12:34:56.123456789Z");
  EXPECT_EQ(iso_time(UINT64_MAX), "2554-07-21T23:34:33.709551615Z");
  EXPECT_EQ(start_time(86'400'000'000'000, 86'400'000'000'001), "00:00:00");
  EXPECT_EQ(start_time(1, 86'400'000'000'000), "1970-01-01");
}

TEST(Parse, Numbers) {
  EXPECT_EQ(parse_number("0xffffffff81000000"), 0xffffffff81000000);
  EXPECT_EQ(parse_number("12"), 12U);
  for (const char *bad : {"", "0x", "12x", "-1", " 1", "0x10000000000000000"})
    EXPECT_FALSE(parse_number(bad)) << bad;
  EXPECT_EQ(parse_size("4K"), 4096U);
  EXPECT_EQ(parse_size("2g"), 2ULL << 30);
  EXPECT_FALSE(parse_size("99999999999T"));
  EXPECT_FALSE(parse_size("K"));
}

TEST(Duration, HasAUnitOrIsSeconds) {
  const auto parsed = [](std::string_view text) { return parse_duration(text, "--for").value_or(-1ms); };
  EXPECT_EQ(parsed("100ms"), 100ms);
  EXPECT_EQ(parsed("1.5"), 1500ms);
  EXPECT_EQ(parsed("10s"), 10s);
  EXPECT_EQ(parsed("5m"), 5min);
  EXPECT_EQ(parsed("1h"), 1h);
  EXPECT_EQ(parsed("0"), 0ms);
  for (const char *bad : {"", "s", "-1", "1 s", "1d", "nan", "inf", "1e30"})
    EXPECT_EQ(parsed(bad), -1ms) << bad;
}

TEST(Glob, Matches) {
  EXPECT_TRUE(matches_glob("sys_*", "sys_open"));
  EXPECT_TRUE(matches_glob("*", ""));
  EXPECT_TRUE(matches_glob("a?c*e", "abcde"));
  EXPECT_TRUE(matches_glob("[a-c]x", "bx"));
  EXPECT_FALSE(matches_glob("[!a-c]x", "bx"));
  EXPECT_FALSE(matches_glob("sys_*", "do_sys_open"));
  EXPECT_FALSE(matches_glob("[a", "a"));
  // No exponential time.
  EXPECT_FALSE(matches_glob("*a*a*a*a*a*a*a*a*a*a*b", std::string(10'000, 'a')));
}

} // namespace
} // namespace lararium::cli
