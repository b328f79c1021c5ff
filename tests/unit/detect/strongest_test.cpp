#include "strongest.h"

#include <gtest/gtest.h>

namespace lararium::detect {
namespace {

TEST(StrongestTest, TellsOfWhatWasLoweredUntilItIsBack) {
  Strongest strongest;
  EXPECT_FALSE(strongest.lowered("a", 1));
  EXPECT_FALSE(strongest.lowered("a", 2));
  EXPECT_EQ(strongest.lowered("a", 0), 2);
  EXPECT_EQ(strongest.lowered("a", 1), 2);
  EXPECT_FALSE(strongest.lowered("b", -1));
  EXPECT_FALSE(strongest.lowered("a", 2));
}

class LogMemoryTest : public testing::Test {
protected:
  LogMemory log;
  std::vector<LogRecord> records;

  void write(std::uint64_t first, std::uint64_t count) {
    for (std::uint64_t i = first; i < first + count; ++i) {
      LogRecord &record = records.emplace_back();
      record.sequence = i;
      record.time_ns = 1000 * i;
      record.text = "record " + std::to_string(i);
    }
  }
  void drop(std::size_t count) { records.erase(records.begin(), records.begin() + static_cast<std::ptrdiff_t>(count)); }
};

TEST_F(LogMemoryTest, GrowingLosesNothing) {
  for (std::uint64_t i = 0; i < 10; ++i) {
    write(i * 100, 100);
    EXPECT_TRUE(log.look(records).empty());
  }
}

TEST_F(LogMemoryTest, ChangedAndRemovedRecordsAreToldAgainAndAgain) {
  write(0, 300);
  EXPECT_TRUE(log.look(records).empty());
  const auto whole = records;
  records[200].text[0] = ' ';
  records.erase(records.begin() + 2);
  for (int look = 0; look < 3; ++look) {
    const auto losses = log.look(records);
    ASSERT_EQ(losses.size(), 2u);
    EXPECT_EQ(losses[0].sequence, 2u);
    EXPECT_EQ(losses[0].kind, LogMemory::Loss::Kind::removed);
    EXPECT_EQ(losses[1].sequence, 200u);
    EXPECT_EQ(losses[1].kind, LogMemory::Loss::Kind::changed);
  }
  EXPECT_TRUE(log.look(whole).empty());
}

TEST_F(LogMemoryTest, TheLastRecordsCanBeRemoved) {
  write(0, 10);
  EXPECT_TRUE(log.look(records).empty());
  records.pop_back();
  EXPECT_EQ(log.look(records).size(), 1u);
}

TEST_F(LogMemoryTest, NewRecordsPushOutOldOnes) {
  write(0, 1000);
  EXPECT_TRUE(log.look(records).empty());
  drop(150);
  write(1000, 1);
  EXPECT_TRUE(log.look(records).empty());
  // a burst that nobody saw
  records.clear();
  write(50000, 500);
  EXPECT_TRUE(log.look(records).empty());
}

TEST_F(LogMemoryTest, NearTheOldEndOrderIsLoose) {
  write(1000, 300);
  EXPECT_TRUE(log.look(records).empty());
  records.erase(records.begin() + 5);
  EXPECT_TRUE(log.look(records).empty());
  records.erase(records.begin() + 200);
  EXPECT_EQ(log.look(records).size(), 1u);
}

TEST_F(LogMemoryTest, NothingTookTheRoom) {
  write(0, 300);
  EXPECT_TRUE(log.look(records).empty());
  const auto whole = records;
  drop(100);
  for (int look = 0; look < 2; ++look) {
    const auto losses = log.look(records);
    ASSERT_EQ(losses.size(), 1u);
    EXPECT_EQ(losses[0].kind, LogMemory::Loss::Kind::emptied);
    EXPECT_EQ(losses[0].count, 100u);
  }
  EXPECT_EQ(log.look({}).size(), 1u);
  EXPECT_TRUE(log.look(whole).empty());
}

TEST_F(LogMemoryTest, LiesCostBoundedMemory) {
  for (std::uint64_t round = 0; round < 4; ++round) {
    records.clear();
    write(round << 40, LogMemory::limit);
    static_cast<void>(log.look(records));
  }
  records.back().text.clear();
  EXPECT_EQ(log.look(records).size(), 1u);
}

} // namespace
} // namespace lararium::detect
