#include "lararium/policy/rules.h"

#include <gtest/gtest.h>
#include <string>

namespace lararium::policy {
namespace {

TEST(Pattern, StarsStopAtSlashesUnlessDoubled) {
  EXPECT_TRUE(fits_pattern("/tmp/**", "/tmp/a/b"));
  EXPECT_TRUE(fits_pattern("/tmp/**", "/tmp/"));
  EXPECT_FALSE(fits_pattern("/tmp/**", "/tmpx"));
  EXPECT_TRUE(fits_pattern("/tmp/*", "/tmp/a"));
  EXPECT_FALSE(fits_pattern("/tmp/*", "/tmp/a/b"));
  EXPECT_TRUE(fits_pattern("**/*.so", "/usr/lib/x.so"));
  EXPECT_FALSE(fits_pattern("**/*.so", "/usr/lib/x.so.1"));
  EXPECT_TRUE(fits_pattern("/*/bin/s?", "/usr/bin/sh"));
  EXPECT_FALSE(fits_pattern("/*/bin/s?", "/usr/local/bin/sh"));
  EXPECT_TRUE(fits_pattern("**/a*/b", "/x/ac/y/ad/b"));
  EXPECT_TRUE(fits_pattern("", ""));
  EXPECT_FALSE(fits_pattern("", "x"));
  EXPECT_TRUE(fits_pattern("**", ""));
  EXPECT_FALSE(fits_pattern("?", "/"));
}

TEST(Pattern, EndsWhateverItIsGiven) {
  std::string pattern, text(4000, 'a');
  for (int i = 0; i < 1000; ++i)
    pattern += "*a";
  EXPECT_FALSE(fits_pattern(pattern + "b", text));
  std::string deep;
  for (int i = 0; i < 500; ++i)
    deep += "**/a*";
  EXPECT_FALSE(fits_pattern(deep + "b", text));
}

Record record() {
  Record record;
  record.actor = Actor{42, 1, 1000, "sh", "/bin/sh", "0123", {}};
  record.with("path", std::string("/tmp/x")).with("port", std::uint64_t{4444}).with("write", true);
  return record;
}

bool fits(std::string_view text) {
  const auto rule = parse_rule(text, Action::deny);
  return rule && matches(*rule, "exec", record());
}

TEST(Rule, HoldsWhenAllItsConditionsDo) {
  EXPECT_TRUE(fits("exec"));
  EXPECT_TRUE(fits("*"));
  EXPECT_FALSE(fits("open"));
  EXPECT_TRUE(fits("exec path=/tmp/**"));
  EXPECT_FALSE(fits("exec path=/tmp/** uid=0"));
  EXPECT_TRUE(fits("exec path=/tmp/** uid=0,1000"));
  EXPECT_TRUE(fits("exec port=4000-5000 write=yes"));
  EXPECT_FALSE(fits("exec write=no"));
  EXPECT_TRUE(fits("exec port=0x115c"));
  EXPECT_TRUE(fits("exec uid!=0 comm=sh container=01*"));
  EXPECT_FALSE(fits("exec uid!=1000"));
  EXPECT_FALSE(fits("exec nothing=1"));
  EXPECT_TRUE(fits("exec nothing!=1"));
  EXPECT_TRUE(fits("exec \"path=/tmp/x\""));
}

TEST(Rule, SaysWhatIsWrongWithIt) {
  for (const char *text : {"", "  ", "exec path", "exec =x", "exec !=x", "exec \"path=x"})
    EXPECT_FALSE(parse_rule(text, Action::deny)) << text;
  EXPECT_FALSE(parse_rule(std::string(5000, 'a'), Action::deny));
}

TEST(Rule, TheFirstThatFitsDecides) {
  const std::vector<Rule> rules{*parse_rule("exec path=/tmp/x", Action::allow),
                                *parse_rule("exec path=/tmp/**", Action::deny)};
  EXPECT_EQ(first_match(rules, "exec", record())->action, Action::allow);
  EXPECT_EQ(first_match(rules, "open", record()), nullptr);
}

} // namespace
} // namespace lararium::policy
