#include "kernel_log.h"

#include <gtest/gtest.h>
#include <string>
#include <vector>

namespace lararium::linux_guest {
namespace {

FieldLocation at(std::uint32_t offset, std::uint32_t size) { return {offset, size, 0, 8 * offset, 0}; }

LogRingLayout ring_layout() {
  LogRingLayout f;
  f.state = at(0, 8);
  f.begin = at(8, 8);
  f.next = at(16, 8);
  f.descriptor_size = 24;
  f.sequence = at(0, 8);
  f.time = at(8, 8);
  f.text_length = at(16, 2);
  f.facility = at(18, 1);
  f.level = {19, 1, 0, 8 * 19 + 5, 3};
  f.caller = at(20, 4);
  f.info_size = 88;
  f.block_text = 8;
  return f;
}

// A ring of 8 descriptors and 256 bytes.
class LogRingTest : public ::testing::Test {
protected:
  std::vector<std::byte> descriptors = std::vector<std::byte>(8 * 24), infos = std::vector<std::byte>(8 * 88),
                         data = std::vector<std::byte>(256);
  std::uint64_t tail = 0, head = 0;

  template <class T> static void put(std::vector<std::byte> &bytes, std::size_t offset, T value) {
    std::memcpy(bytes.data() + offset, &value, sizeof value);
  }
  void record(std::uint64_t id, std::uint64_t state, std::uint64_t begin, std::uint64_t next, std::string_view text,
              std::uint64_t text_at) {
    const std::size_t slot = id & 7;
    put(descriptors, slot * 24, id | state << 62);
    put(descriptors, slot * 24 + 8, begin);
    put(descriptors, slot * 24 + 16, next);
    put(infos, slot * 88, 100 + id);
    put(infos, slot * 88 + 8, 1000 * id);
    put(infos, slot * 88 + 16, static_cast<std::uint16_t>(text.size()));
    put(infos, slot * 88 + 18, std::uint8_t{3});
    put(infos, slot * 88 + 19, static_cast<std::uint8_t>(4 << 5 | 1));
    put(infos, slot * 88 + 20, std::uint32_t{42});
    if (!text.empty()) {
      put(data, text_at, id);
      std::memcpy(data.data() + text_at + 8, text.data(), text.size());
    }
  }
  std::vector<LogRecord> decode(std::size_t *changed = nullptr) {
    std::size_t count = 0;
    auto records = decode_log_ring(ring_layout(), {descriptors, infos, data, 3, 8, tail, head}, descriptors, count);
    if (changed != nullptr)
      *changed = count;
    return records;
  }
};

TEST_F(LogRingTest, DecodesFinalizedRecordsOnly) {
  record(6, 2, 0, 24, "hello", 0);
  record(7, 1, 24, 48, "open", 24);
  record(8, 2, 3, 3, "", 0); // an empty line
  record(9, 2, 1, 1, "", 0); // its text was lost
  record(10, 3, 48, 72, "old", 48);
  tail = 6;
  head = 10;
  const auto records = decode();
  ASSERT_EQ(records.size(), 2U);
  EXPECT_EQ(records[0].text, "hello");
  EXPECT_EQ(records[0].sequence, 106U);
  EXPECT_EQ(records[0].time_ns, 6000U);
  EXPECT_EQ(records[0].level, 4);
  EXPECT_EQ(records[0].facility, 3);
  EXPECT_EQ(records[0].caller, 42U);
  EXPECT_EQ(records[1].text, "");
}

TEST_F(LogRingTest, BlocksThatWrapStartAtTheBeginning) {
  record(0, 2, 240, 256 + 24, "wrapped", 0);
  record(1, 2, 512 - 24, 512, "to the end", 256 - 24); // one that ends with the ring does not wrap
  head = 1;
  const auto records = decode();
  ASSERT_EQ(records.size(), 2U);
  EXPECT_EQ(records[0].text, "wrapped");
  EXPECT_EQ(records[1].text, "to the end");
}

TEST_F(LogRingTest, ContradictionsAreLeftOut) {
  record(0, 2, 0, 24, "good", 0);
  record(1, 2, 24, 1 << 20, "too long", 24);
  record(2, 2, 48, 24, "backwards", 48);
  record(3, 2, 72, 96, "other id", 72);
  put(data, 72, std::uint64_t{77});
  head = 3;
  EXPECT_EQ(decode().size(), 1U);
  head = ~std::uint64_t{0}; // more than there are descriptors
  tail = 5;
  decode();
}

TEST_F(LogRingTest, RecordsThatChangedMeanwhileAreCounted) {
  record(0, 2, 0, 24, "same", 0);
  record(1, 2, 24, 48, "gone", 24);
  head = 1;
  auto after = descriptors;
  put(after, 24, std::uint64_t{9} | std::uint64_t{2} << 62);
  std::size_t changed = 0;
  const auto records = decode_log_ring(ring_layout(), {descriptors, infos, data, 3, 8, 0, 1}, after, changed);
  EXPECT_EQ(records.size(), 1U);
  EXPECT_EQ(changed, 1U);
}

LogBufferLayout buffer_layout() {
  LogBufferLayout f;
  f.time = at(0, 8);
  f.length = at(8, 2);
  f.text_length = at(10, 2);
  f.facility = at(14, 1);
  f.level = {15, 1, 0, 8 * 15 + 5, 3};
  f.header_size = 16;
  return f;
}

class LogBufferTest : public ::testing::Test {
protected:
  std::vector<std::byte> buffer = std::vector<std::byte>(128);
  void record(std::size_t offset, std::uint16_t length, std::string_view text) {
    const auto put = [&](std::size_t where, auto value) {
      std::memcpy(buffer.data() + offset + where, &value, sizeof value);
    };
    put(0, std::uint64_t{5000});
    put(8, length);
    put(10, static_cast<std::uint16_t>(text.size()));
    put(15, static_cast<std::uint8_t>(6 << 5));
    std::memcpy(buffer.data() + offset + 16, text.data(), std::min(text.size(), buffer.size() - offset - 16));
  }
  bool complete = false;
  std::vector<LogRecord> decode(std::uint64_t index, std::uint64_t first, std::uint64_t next) {
    return decode_log_buffer(buffer_layout(), buffer, index, first, next, complete);
  }
};

TEST_F(LogBufferTest, GoesRoundOnce) {
  record(64, 32, "first");
  record(0, 32, "second"); // 96: a record of no length
  record(32, 32, "third");
  const auto records = decode(64, 7, 10);
  ASSERT_EQ(records.size(), 3U);
  EXPECT_TRUE(complete);
  EXPECT_EQ(records[0].text, "first");
  EXPECT_EQ(records[0].sequence, 7U);
  EXPECT_EQ(records[0].level, 6);
  EXPECT_EQ(records[2].text, "third");
}

TEST_F(LogBufferTest, EndsWhateverItHolds) {
  record(0, 8, "shorter than its head");
  decode(0, 0, 1000);
  EXPECT_FALSE(complete);
  record(0, 4096, "longer than the buffer");
  EXPECT_TRUE(decode(0, 0, 1000).empty());
  std::ranges::fill(buffer, std::byte{0});
  EXPECT_TRUE(decode(1 << 20, 0, ~std::uint64_t{0}).empty());
}

} // namespace
} // namespace lararium::linux_guest
