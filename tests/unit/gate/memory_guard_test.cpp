#include "lararium/gate/memory_guard.h"

#include "no_system.h"
#include "small_kernel.h"

#include <gtest/gtest.h>

namespace lararium::gate {
namespace {

using namespace std::chrono_literals;
using test::code;
using test::NoSystem;
using test::SmallKernel;

class MemoryGuardTest : public ::testing::Test {
protected:
  void start(GuardOptions options = {}) {
    guard = std::make_unique<MemoryGuard>(system, *guest.kernel, guest.memory, protection, std::move(options));
    const auto started = guard->start();
    ASSERT_TRUE(started) << started.error().describe();
  }
  void write(std::uint64_t at, const std::vector<std::byte> &bytes) {
    protection.write(Gpa{SmallKernel::image + at}, bytes);
  }
  std::vector<Record> step(std::chrono::milliseconds time = 50ms) {
    std::vector<Record> records;
    for (int i = 0; i < 3; ++i) {
      const auto stepped = guard->step(time / 3, records);
      last_error = stepped ? std::nullopt : std::optional(stepped.error());
    }
    return records;
  }
  static std::string field(const Record &record, std::string_view name) {
    for (const RecordField &each : record.fields)
      if (each.name == name)
        if (const auto *text = std::get_if<std::string>(&each.value))
          return *text;
    return {};
  }

  SmallKernel guest;
  NoSystem system{*guest.kernel};
  FakeProtection protection{guest.memory};
  std::unique_ptr<MemoryGuard> guard;
  std::optional<Error> last_error;
};

TEST_F(MemoryGuardTest, GuardsTextReadOnlyDataAndIdt) {
  start();
  EXPECT_EQ(guard->counts().pages, 3U + 2U + 1U);
  EXPECT_EQ(protection.protected_units().size(), 6U);
  guard.reset();
  EXPECT_TRUE(protection.protected_units().empty()) << "all is released";
}

TEST_F(MemoryGuardTest, UnlawfulWriteIsToldAndDone) {
  start();
  write(0x5008, code({1, 2, 3}));
  const auto records = step();
  ASSERT_EQ(records.size(), 1U);
  EXPECT_FALSE(protection.somebody_waits());
  EXPECT_EQ(guest.get(0x5008, 3), code({1, 2, 3}));
  const Record &record = records.front();
  ASSERT_TRUE(record.finding);
  EXPECT_EQ(record.finding->subject, "sys_call_table+0x8");
  EXPECT_EQ(field(record, "action"), "reported");
  EXPECT_EQ(guard->counts().unlawful, 1U);
  EXPECT_EQ(protection.protected_units().size(), 6U) << "it is protected again";
}

TEST_F(MemoryGuardTest, UnlawfulWriteIsReverted) {
  GuardOptions options;
  options.revert = true;
  start(std::move(options));
  write(0x5008, code({1, 2, 3}));
  const auto records = step();
  ASSERT_EQ(records.size(), 1U);
  EXPECT_EQ(field(records[0], "action"), "reverted");
  EXPECT_EQ(guest.get(0x5008, 3), code({0, 0, 0}));
}

TEST_F(MemoryGuardTest, RegistersOfAnotherKernelStopIt) {
  GuardOptions options;
  options.revert = true;
  options.registers = [] {
    return std::async(std::launch::deferred, []() -> Result<std::vector<VcpuRegisters>> {
      return std::vector<VcpuRegisters>(1); // no paging: after a reset
    });
  };
  start(std::move(options));
  // A deferred answer is never ready by itself: it is taken for none after a time, so give a ready one.
  guard.reset();
  int readings = 0;
  GuardOptions ready;
  ready.revert = true;
  ready.registers = [&] {
    ++readings;
    std::promise<Result<std::vector<VcpuRegisters>>> promise;
    promise.set_value(std::vector<VcpuRegisters>(1));
    return promise.get_future();
  };
  start(std::move(ready));
  write(0x5008, code({1, 2, 3}));
  for (int i = 0; i < 10 && !last_error; ++i)
    EXPECT_TRUE(step().empty());
  ASSERT_TRUE(last_error);
  EXPECT_GE(readings, 3) << "one alone may be of a process that ends";
  EXPECT_EQ(guest.get(0x5008, 3), code({1, 2, 3})) << "memory of another kernel is not touched";
  EXPECT_TRUE(protection.protected_units().empty());
}

TEST_F(MemoryGuardTest, LawfulWriteIsNotTold) {
  start();
  write(SmallKernel::static_call, SmallKernel::branch(0xe8, SmallKernel::static_call, SmallKernel::other_function));
  EXPECT_TRUE(step().empty());
  EXPECT_EQ(guard->counts().lawful, 1U);
  EXPECT_EQ(guard->counts().unlawful, 0U);
}

TEST_F(MemoryGuardTest, LawfulWriteIsToldOnRequest) {
  GuardOptions options;
  options.lawful = true;
  start(std::move(options));
  write(SmallKernel::static_call, SmallKernel::branch(0xe8, SmallKernel::static_call, SmallKernel::other_function));
  const auto records = step();
  ASSERT_EQ(records.size(), 1U);
  EXPECT_FALSE(records[0].finding);
  EXPECT_EQ(field(records[0], "reason"), "static call");
}

TEST_F(MemoryGuardTest, WhatIsPutBackIsNoFinding) {
  start();
  write(0x5008, code({1, 2, 3}));
  EXPECT_EQ(step().size(), 1U);
  write(0x5008, code({0, 0, 0}));
  const auto records = step();
  ASSERT_EQ(records.size(), 1U);
  EXPECT_FALSE(records[0].finding);
  EXPECT_EQ(guard->counts().restored, 1U);
}

TEST_F(MemoryGuardTest, BreakpointThatStaysIsFound) {
  start();
  write(SmallKernel::static_call, code({0xcc}));
  EXPECT_TRUE(step().empty());
  const auto records = step(1800ms);
  ASSERT_EQ(records.size(), 1U);
  EXPECT_TRUE(records[0].finding);
}

TEST_F(MemoryGuardTest, WriteNextToALawfulOneIsFound) {
  start();
  auto bytes = SmallKernel::branch(0xe8, SmallKernel::static_call, SmallKernel::other_function);
  bytes.push_back(std::byte{0x90});
  write(SmallKernel::static_call, bytes);
  const auto records = step();
  ASSERT_EQ(records.size(), 1U);
  EXPECT_EQ(records[0].finding->subject, "function+0x85");
}

TEST_F(MemoryGuardTest, UnitsLargerThanWhatIsGuardedAreCompared) {
  protection.unit = 0x4000; // text lies in one with other memory
  start();
  EXPECT_EQ(guard->counts().compared_pages, 6U);
  EXPECT_TRUE(protection.protected_units().empty());
  EXPECT_FALSE(guard->limitations().empty());
  write(0x5008, code({1, 2, 3}));
  const auto records = step(300ms);
  ASSERT_EQ(records.size(), 1U);
  EXPECT_EQ(records[0].finding->subject, "sys_call_table+0x8");
}

TEST_F(MemoryGuardTest, CodeThatMayNotBeHeldIsCompared) {
  protection.holds_code = false;
  GuardOptions options;
  options.revert = true;
  start(std::move(options));
  EXPECT_EQ(guard->counts().compared_pages, 3U);
  EXPECT_EQ(protection.protected_units().size(), 3U) << "read-only data and IDT";
  write(0x250, code({1, 2}));
  auto records = step(300ms);
  ASSERT_EQ(records.size(), 1U);
  EXPECT_EQ(records[0].finding->subject, "other_function+0x50");
  EXPECT_EQ(field(records[0], "action"), "reverted");
  EXPECT_EQ(guest.get(0x250, 2), code({0, 0}));
  EXPECT_TRUE(step(300ms).empty()) << "what was put back is no change";
  write(SmallKernel::static_call, SmallKernel::branch(0xe8, SmallKernel::static_call, SmallKernel::other_function));
  EXPECT_TRUE(step(300ms).empty());
  EXPECT_EQ(guard->counts().lawful, 1U) << "told of once";
}

TEST_F(MemoryGuardTest, AnotherKernelInItsPlaceEndsIt) {
  start();
  guest.put(0x7000, bytes_of("no banner")); // not guarded here
  step(300ms);
  ASSERT_TRUE(last_error);
  EXPECT_TRUE(protection.protected_units().empty());
}

TEST_F(MemoryGuardTest, RefusesWhatIsNotSealed) {
  guest.tables.map(SmallKernel::base + SmallKernel::rodata, Gpa{SmallKernel::image + SmallKernel::rodata});
  const auto pages = find_guarded_pages(*guest.kernel);
  ASSERT_FALSE(pages);
  EXPECT_EQ(pages.error().code, ErrorCode::not_found);
}

TEST_F(MemoryGuardTest, NothingIsLeftProtectedWhenItCannotStart) {
  protection.failing = true;
  MemoryGuard other(system, *guest.kernel, guest.memory, protection, {});
  EXPECT_FALSE(other.start());
  EXPECT_TRUE(protection.protected_units().empty());
}

} // namespace
} // namespace lararium::gate
