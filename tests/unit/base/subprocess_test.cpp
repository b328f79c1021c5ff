#include "lararium/base/subprocess.h"

#include <gtest/gtest.h>

namespace lararium {
namespace {

using namespace std::chrono_literals;

constexpr SubprocessLimits plenty{10s, 1 << 20};

TEST(Subprocess, GathersOutputErrorsAndStatus) {
  const auto result = run_subprocess({"sh", "-c", "echo out; echo err >&2; exit 3"}, plenty);
  ASSERT_TRUE(result) << result.error().describe();
  EXPECT_EQ(result->text, "out\n");
  EXPECT_EQ(result->errors, "err\n");
  EXPECT_EQ(result->status, 3);
}

TEST(Subprocess, HasNoInputUnlessGiven) {
  EXPECT_EQ(run_subprocess({"cat"}, plenty)->text, "");
  const std::string input(200'000, 'x'); // more than a pipe holds
  EXPECT_EQ(run_subprocess({"cat"}, plenty, {.input = input})->text, input);
}

TEST(Subprocess, InputThatNobodyReadsHoldsNothingUp) {
  const std::string input(200'000, 'x');
  EXPECT_EQ(run_subprocess({"true"}, plenty, {.input = input})->status, 0);
}

TEST(Subprocess, IsKilledWhenItDoesNotEnd) {
  const auto begin = std::chrono::steady_clock::now();
  const auto result = run_subprocess({"sleep", "60"}, {50ms, 100});
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, ErrorCode::timeout);
  EXPECT_EQ(result.error().message, "sleep does not end");
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 30s);
}

TEST(Subprocess, IsKilledWhenItPrintsTooMuch) {
  for (const char *command : {"yes", "yes >&2"}) {
    const auto result = run_subprocess({"sh", "-c", command}, {10s, 1000}, {.title = "the answer"});
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code, ErrorCode::protocol);
    EXPECT_EQ(result.error().message, "the answer prints more than 1000 bytes");
  }
}

TEST(Subprocess, TellsASignal) { EXPECT_EQ(run_subprocess({"sh", "-c", "kill -9 $$"}, plenty)->status, -1); }

TEST(Subprocess, WhatIsNotThereIsAnError) {
  const auto result = run_subprocess({"lararium-has-no-such-program"}, plenty);
  ASSERT_FALSE(result);
  EXPECT_NE(result.error().message.find("cannot run"), std::string::npos);
}

} // namespace
} // namespace lararium
