#include "lararium/policy/sim_rules.h"

#include <gtest/gtest.h>

namespace lararium::policy {
namespace {

using gate::SimAction;

constexpr gate::HookEntry exec{"exec", "", "", true, nullptr, nullptr},
    connect{"connect", "", "", true, nullptr, nullptr}, open{"open", "", "", true, nullptr, nullptr};

using Texts = std::vector<std::pair<const char *, Action>>;
std::vector<Rule> rules_of(const Texts &texts) {
  std::vector<Rule> rules;
  rules.reserve(texts.size());
  for (const auto &[text, action] : texts)
    rules.push_back(*parse_rule(text, action));
  return rules;
}

gate::SimOptions compiled(const Texts &texts) {
  gate::SimOptions options;
  add_sim_rules(options, rules_of(texts), {&exec, &connect, &open});
  return options;
}

TEST(SimRules, WhatTheGuestCanTellIsDecidedThere) {
  const auto options = compiled({{"exec path=/tmp/** uid!=0", Action::deny}, {"connect port=1-1023", Action::deny}});
  ASSERT_EQ(options.verdicts.size(), 2);
  const auto &first = options.verdicts[0];
  EXPECT_EQ(first.action, SimAction::deny);
  EXPECT_EQ(first.path, "/tmp/");
  EXPECT_TRUE(first.path_begins);
  EXPECT_TRUE(first.uid && first.uid_negated);
  EXPECT_EQ(first.hooks, std::vector<const gate::HookEntry *>{&exec});
  EXPECT_EQ(options.verdicts[1].port->high, 1023);
  EXPECT_EQ(options.verdicts[1].number, 2);
}

TEST(SimRules, ContainersAreTold) {
  const auto options = compiled({{"exec container=0123ab*", Action::deny},
                                 {"exec container=?*", Action::deny},
                                 {"exec container=abc", Action::deny},
                                 {"exec container=a*b", Action::deny},
                                 {"exec container!=abc", Action::deny}});
  ASSERT_EQ(options.verdicts.size(), 5);
  EXPECT_EQ(options.verdicts[0].container, "0123ab");
  EXPECT_TRUE(options.verdicts[0].container_begins);
  EXPECT_TRUE(options.verdicts[1].contained && !options.verdicts[1].container);
  EXPECT_FALSE(options.verdicts[2].container_begins);
  for (const std::size_t i : {0, 1, 2})
    EXPECT_EQ(options.verdicts[i].action, SimAction::deny);
  for (const std::size_t i : {3, 4})
    EXPECT_EQ(options.verdicts[i].action, SimAction::ask);
}

TEST(SimRules, WhatItCannotTellIsAskedFor) {
  for (const char *text : {"exec argv=**x**", "exec path=/a/*/b", "exec path!=/a", "exec uid=x", "exec comm=sh path=/a",
                           "exec uid!=1,2", "exec pid=1-5"}) {
    const auto options = compiled({{text, Action::deny}});
    ASSERT_EQ(options.verdicts.size(), 1) << text;
    EXPECT_EQ(options.verdicts[0].action, SimAction::ask) << text;
  }
  const auto options = compiled({{"exec comm=sh", Action::allow}});
  EXPECT_EQ(options.verdicts[0].action, SimAction::ask) << "an exception, too";
  EXPECT_EQ(compiled({{"exec path=/a/*/b", Action::deny}}).verdicts[0].path, "/a/") << "for no more than it may fit";
}

TEST(SimRules, ValuesOfOneConditionAreRulesOfTheirOwn) {
  const auto options = compiled({{"open path=/etc/shadow,/etc/passwd uid=1,2", Action::deny}});
  EXPECT_EQ(options.verdicts.size(), 4);
  for (const auto &rule : options.verdicts)
    EXPECT_EQ(rule.number, 1);
}

TEST(SimRules, RecordsAreNeverLeftOutByMistake) {
  const auto options = compiled({{"open comm=cat", Action::skip},
                                 {"open uid=0", Action::skip},
                                 {"connect argv=x port=80", Action::only},
                                 {"exec path=/tmp/**", Action::only}});
  ASSERT_EQ(options.records.size(), 3) << "what the guest cannot tell is not skipped there";
  EXPECT_EQ(options.records[0].action, SimAction::skip);
  EXPECT_EQ(options.records[1].action, SimAction::record);
  EXPECT_EQ(options.records[1].port->low, 80);
  EXPECT_EQ(options.only, (std::vector<const gate::HookEntry *>{&connect, &exec}));
  EXPECT_TRUE(options.verdicts.empty());
}

TEST(SimRules, RulesAboutOtherHooksAreNone) {
  EXPECT_TRUE(compiled({{"ptrace uid=0", Action::deny}}).verdicts.empty());
  EXPECT_EQ(compiled({{"* uid=0", Action::deny}}).verdicts[0].hooks.size(), 3);
}

TEST(Rules, OnlyAndSkipSayWhatIsRecorded) {
  Record record;
  record.actor.emplace().pid = 50;
  record.with("path", std::string("/tmp/a")).with("parents", std::string("sh (40), init (1)"));
  const auto recorded = [&](const Texts &texts) { return is_recorded(rules_of(texts), "open", record); };
  EXPECT_TRUE(recorded({}));
  EXPECT_TRUE(recorded({{"exec path=/x", Action::only}})) << "of another hook";
  EXPECT_FALSE(recorded({{"open path=/x", Action::only}}));
  EXPECT_TRUE(recorded({{"open path=/x", Action::only}, {"open path=/tmp/*", Action::only}}));
  EXPECT_FALSE(recorded({{"open path=/tmp/*", Action::only}, {"open below=40", Action::skip}}));
  EXPECT_TRUE(recorded({{"open below=4", Action::skip}}));
  EXPECT_TRUE(recorded({{"open below=50", Action::only}}));
}

} // namespace
} // namespace lararium::policy
