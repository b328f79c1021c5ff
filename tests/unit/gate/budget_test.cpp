#include "lararium/gate/budget.h"

#include <gtest/gtest.h>

namespace lararium::gate {
namespace {

using namespace std::chrono_literals;

TEST(Budget, IsReadFromText) {
  const auto both = parse_budget("guest=2%,host=0.2");
  ASSERT_TRUE(both);
  EXPECT_DOUBLE_EQ(*both->guest, 0.02);
  EXPECT_DOUBLE_EQ(*both->host, 0.2);
  EXPECT_FALSE(parse_budget("host=50%")->guest);
  for (const char *wrong : {"", "guest", "guest=", "guest=x", "guest=-1", "guest=0", "cpu=1", "guest=1%%", "guest=nan"})
    EXPECT_FALSE(parse_budget(wrong)) << wrong;
}

// Two CPUs of 1,000,000 cycles a second; a call that is told of whole costs 100 cycles, briefly 40, and not at all 1.
class BudgetTest : public testing::Test {
protected:
  std::optional<BudgetChange> second(std::vector<std::uint64_t> calls, std::chrono::nanoseconds host = 0ns) {
    for (std::size_t i = 0; i < hooks.size(); ++i) {
      const auto depth = keeper.depths().empty() ? Depth::full : keeper.depths()[i];
      const std::uint64_t cost = depth == Depth::full ? 100 : depth == Depth::brief ? 40 : 1;
      hooks[i].calls += calls[i];
      hooks[i].cycles += calls[i] * cost;
    }
    return keeper.step(hooks, 1s, host);
  }
  std::vector<HookCost> hooks{{"exec"}, {"open"}, {"fork"}};
  BudgetKeeper keeper{{.guest = 0.02, .host = 0.5}, 1'000'000, 2};
};

TEST_F(BudgetTest, WithinItNothingChanges) {
  for (int i = 0; i < 20; ++i)
    EXPECT_FALSE(second({10, 300, 10}));
  EXPECT_NEAR(keeper.guest_share(), 0.016, 1e-9);
}

TEST_F(BudgetTest, WhatIsWorthLeastGoesFirstAndComesBack) {
  auto change = second({50, 5000, 50});
  ASSERT_TRUE(change);
  EXPECT_EQ(hooks[change->hook].name, "open");
  EXPECT_EQ(change->depth, Depth::brief);
  change = second({50, 5000, 50});
  ASSERT_TRUE(change);
  EXPECT_EQ(change->depth, Depth::off);
  EXPECT_FALSE(second({50, 5000, 50})) << "that is enough";
  for (int i = 0; i < 20; ++i)
    EXPECT_FALSE(second({50, 5000, 50})) << "it would be too much again";
  std::vector<Depth> seen;
  for (int i = 0; i < 20; ++i)
    if (const auto back = second({50, 50, 50}))
      seen.push_back(back->depth);
  EXPECT_EQ(seen, (std::vector{Depth::brief, Depth::full}));
}

TEST_F(BudgetTest, HooksThatDecideStay) {
  hooks[1].may_change = false;
  for (int i = 0; i < 10; ++i)
    if (const auto change = second({50, 5000, 2000})) {
      EXPECT_EQ(hooks[change->hook].name, "fork");
    }
  EXPECT_EQ(keeper.depths()[1], Depth::full);
  EXPECT_EQ(keeper.depths()[0], Depth::full) << "it costs next to nothing";
}

TEST_F(BudgetTest, TheHostHasABudgetToo) {
  const auto change = second({10, 100, 10}, 800ms);
  ASSERT_TRUE(change);
  EXPECT_NE(change->sentence.find("0.80 processors of the host of 0.50"), std::string::npos) << change->sentence;
}

} // namespace
} // namespace lararium::gate
