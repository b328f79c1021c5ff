#include "lararium/detect/runner.h"
#include "lararium/detect/schedule.h"

#include <gtest/gtest.h>

namespace lararium::detect {
namespace {

using namespace std::chrono_literals;

std::vector<Finding> findings(std::initializer_list<const char *> subjects) {
  std::vector<Finding> result;
  for (const char *subject : subjects)
    result.push_back({.subject = subject});
  return result;
}

TEST(Agreement, NothingFoundIsSettledAtOnce) {
  Agreement agreement(4);
  EXPECT_TRUE(agreement.take({}, {}));
  EXPECT_TRUE(agreement.findings().empty());
}

TEST(Agreement, KeepsWhatEveryLookSaw) {
  Agreement agreement(3);
  EXPECT_FALSE(agreement.take({}, findings({"a", "b"})));
  EXPECT_FALSE(agreement.take({}, findings({"b", "a", "c"})));
  EXPECT_TRUE(agreement.take({}, findings({"c", "b"})));
  ASSERT_EQ(agreement.findings().size(), 1U);
  EXPECT_EQ(agreement.findings()[0].subject, "b");
}

TEST(Agreement, ARaceIsDroppedAsSoonAsItIsOver) {
  Agreement agreement(3);
  EXPECT_FALSE(agreement.take({}, findings({"a"})));
  EXPECT_TRUE(agreement.take({}, findings({"b"})));
  EXPECT_TRUE(agreement.findings().empty());
}

TEST(Agreement, AFailedLookBeginsTheRowAnew) {
  Agreement agreement(2);
  EXPECT_FALSE(agreement.take({}, findings({"a"})));
  EXPECT_FALSE(agreement.take(fail(ErrorCode::corrupt, "raced"), {}));
  EXPECT_FALSE(agreement.take({}, findings({"a", "b"})));
  EXPECT_TRUE(agreement.take({}, findings({"b"})));
  ASSERT_EQ(agreement.findings().size(), 1U);
  EXPECT_EQ(agreement.findings()[0].subject, "b");
}

TEST(Agreement, ErrorsThatPassAreTriedAgainAndNotForEver) {
  Agreement lasting(4);
  EXPECT_TRUE(lasting.take(fail(ErrorCode::not_found, "no such thing in this kernel"), {}));
  Agreement passing(4);
  EXPECT_FALSE(passing.take(fail(ErrorCode::corrupt, "raced"), {}));
  EXPECT_FALSE(passing.take(fail(ErrorCode::corrupt, "raced"), {}));
  EXPECT_TRUE(passing.take(fail(ErrorCode::corrupt, "raced"), {}));
  Agreement still(1); // what stands still fails the same way again
  EXPECT_TRUE(still.take(fail(ErrorCode::corrupt, "broken"), {}));
}

TEST(Schedule, CostsTheShareInAll) {
  const Schedule::Clock::time_point now{};
  Schedule schedule(3, {.share = 0.01}, now);
  const std::chrono::nanoseconds costs[] = {4ms, 9ms, 100ms};
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(schedule.due(now), i);
    for (int look = 0; look < 30; ++look) // the first one weighs less and less
      schedule.settled(i, now + 1ms, costs[i]);
  }
  double share = 0;
  for (std::size_t i = 0; i < 3; ++i)
    share += static_cast<double>(costs[i].count()) / static_cast<double>(schedule.period(i).count());
  EXPECT_NEAR(share, 0.01, 1e-4);
  EXPECT_NEAR(std::chrono::duration<double>(schedule.period(2)).count() /
                  std::chrono::duration<double>(schedule.period(0)).count(),
              5, 1e-3); // the square root of 25
}

TEST(Schedule, KeepsWithinItsLimits) {
  const Schedule::Clock::time_point now{};
  Schedule schedule(2, {.shortest = 1s, .longest = 60s}, now);
  schedule.settled(0, now, 0ns);
  schedule.settled(1, now, 3600s);
  EXPECT_EQ(schedule.period(1), 60s);
  EXPECT_GE(schedule.period(0), 1s);
  Schedule fixed(2, {.every = 700ms}, now);
  fixed.settled(0, now, 3600s);
  EXPECT_EQ(fixed.period(0), 700ms);
}

TEST(Schedule, WhatTheFirstLooksTookIsPaidBack) {
  const Schedule::Clock::time_point begin{};
  Schedule schedule(4, {.share = 0.01}, begin);
  auto now = begin;
  std::chrono::nanoseconds spent{};
  const auto share = [&] {
    return std::chrono::duration<double>(spent).count() / std::chrono::duration<double>(now - begin).count();
  };
  const auto run_until = [&](Schedule::Clock::time_point end) {
    for (; now < end; now += 100ms)
      while (const auto check = schedule.due(now)) {
        const std::chrono::nanoseconds cost = now == begin ? 100ms : 10ms;
        schedule.settled(*check, now, cost);
        spent += cost;
      }
  };
  run_until(begin + 10s);
  EXPECT_GT(share(), 0.02);
  run_until(begin + 600s);
  EXPECT_LT(share(), 0.0105);
  EXPECT_GT(share(), 0.008);
}

TEST(Schedule, TheOneThatWaitedLongestComesFirst) {
  const Schedule::Clock::time_point now{};
  Schedule schedule(2, {.every = 1s}, now);
  schedule.settled(0, now, 1ms);
  schedule.settled(1, now + 10ms, 1ms);
  EXPECT_FALSE(schedule.due(now + 900ms));
  EXPECT_EQ(schedule.due(now + 1200ms), 0U);
  schedule.again_at(0, now + 1300ms);
  EXPECT_EQ(schedule.due(now + 1200ms), 1U);
  EXPECT_FALSE(Schedule(0, {}, now).due(now));
}

} // namespace
} // namespace lararium::detect
