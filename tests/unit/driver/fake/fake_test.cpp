#include "lararium/driver/fake.h"

#include <gtest/gtest.h>

namespace lararium {
namespace {

std::uint64_t read_u64(const PhysicalMemory &memory, Gpa address) {
  std::uint64_t value = 0;
  EXPECT_TRUE(memory.read(address, writable_bytes_of(value)));
  return value;
}

TEST(FakeMemory, UnwrittenPagesOfARangeReadAsZeros) {
  const FakeMemory memory(2 * page_size);
  EXPECT_EQ(read_u64(memory, Gpa{page_size + 8}), 0U);
  std::uint64_t value = 0;
  EXPECT_FALSE(memory.read(Gpa{2 * page_size - 4}, writable_bytes_of(value)));
  EXPECT_EQ(memory.total_size(), 2 * page_size);
}

TEST(FakeMemory, WritesCrossPages) {
  FakeMemory memory(2 * page_size);
  memory.write_value<std::uint64_t>(Gpa{page_size - 3}, 0x1122334455667788);
  EXPECT_EQ(read_u64(memory, Gpa{page_size - 3}), 0x1122334455667788U);
  EXPECT_EQ(memory.populated(Gpa{0}, UINT64_MAX).size(), 1U);
}

TEST(FakeMemory, FailsTheReadsItIsToldTo) {
  FakeMemory memory(4 * page_size);
  std::uint64_t value = 0;
  memory.fail_read(1);
  EXPECT_TRUE(memory.read(Gpa{0}, writable_bytes_of(value)));
  EXPECT_FALSE(memory.read(Gpa{0}, writable_bytes_of(value)));
  EXPECT_TRUE(memory.read(Gpa{0}, writable_bytes_of(value)));
  memory.fail_range(Gpa{page_size}, page_size);
  EXPECT_FALSE(memory.read(Gpa{page_size - 1}, writable_bytes_of(value)));
  EXPECT_TRUE(memory.read(Gpa{2 * page_size}, writable_bytes_of(value)));
  memory.stop_failing();
  EXPECT_TRUE(memory.read(Gpa{page_size - 1}, writable_bytes_of(value)));
  EXPECT_EQ(memory.read_count(), 6U);
}

TEST(FakeMemory, CanChangeBetweenTwoReads) {
  FakeMemory memory(page_size);
  memory.before_read = [&](std::uint64_t number, Gpa, std::size_t) { memory.write_value(Gpa{0}, number); };
  EXPECT_EQ(read_u64(memory, Gpa{0}), 0U);
  EXPECT_EQ(read_u64(memory, Gpa{0}), 1U);
}

TEST(FakeMemory, ShowsMappedRuns) {
  FakeMemory memory(4 * page_size);
  memory.map_run(Gpa{page_size}, std::vector<std::byte>(page_size, std::byte{7}));
  EXPECT_EQ(memory.view(Gpa{page_size + 1}).size(), page_size - 1);
  EXPECT_TRUE(memory.view(Gpa{0}).empty());
  EXPECT_EQ(read_u64(memory, Gpa{page_size - 4}), 0x0707070700000000U);
}

TEST(FakePageTables, FourAndFiveLevels) {
  for (const unsigned levels : {4U, 5U}) {
    FakeMemory memory(std::uint64_t{1} << 30);
    FakePageTables tables(memory, Gpa{0x1000}, levels);
    const Gva address{0xffff888012345000};
    tables.map(address, Gpa{0xabc000});
    Gpa table = tables.root();
    for (unsigned level = levels - 1; level > 0; --level)
      table = Gpa{read_u64(memory, table + (address.value >> (12 + 9 * level) & 511) * 8) & 0x000ffffffffff000};
    EXPECT_EQ(read_u64(memory, table + (address.value >> 12 & 511) * 8), 0xabc003U);
    EXPECT_EQ(tables.next(), Gpa{0x1000 + levels * page_size});
  }
}

TEST(FakePageTables, LargePages) {
  FakeMemory memory(std::uint64_t{1} << 30);
  FakePageTables tables(memory, Gpa{0x1000});
  tables.map(Gva{0x40000000}, Gpa{0x200000}, FakePageTables::PageSize::large_2m);
  tables.map(Gva{0x80000000}, Gpa{0x40000000}, FakePageTables::PageSize::huge_1g);
  EXPECT_EQ(read_u64(memory, tables.entry(Gva{0x40000000}, 1)), 0x200083U);
  EXPECT_EQ(read_u64(memory, tables.entry(Gva{0x80000000}, 2)), 0x40000083U);
}

TEST(FakeTarget, RecordsCalls) {
  FakeTarget fake = make_fake_target(page_size);
  {
    auto pause = ScopedPause::take(*fake.target.run_control);
    ASSERT_TRUE(pause);
    EXPECT_EQ(fake.run_control.current, RunState::paused);
  }
  EXPECT_EQ(fake.run_control.calls,
            (std::vector<std::string>{"state", "guard", "pause", "paused", "resume", "dismiss"}));
  fake.run_control.calls.clear();
  {
    auto pause = ScopedPause::take(*fake.target.run_control);
    ASSERT_TRUE(pause);
    fake.run_control.failing = true;
    EXPECT_FALSE(pause->release());
  }
  EXPECT_EQ(fake.run_control.calls,
            (std::vector<std::string>{"state", "guard", "pause", "paused", "resume", "forsaken"}));
  EXPECT_FALSE(ScopedPause::take(*fake.target.run_control));
  fake.vcpus.failing = true;
  EXPECT_FALSE(fake.target.vcpus->registers());
}

} // namespace
} // namespace lararium
