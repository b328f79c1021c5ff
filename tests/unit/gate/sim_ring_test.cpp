// Rings as a guest fills them, and as an intruder in its kernel would change them.
#include "sim/ring.h"

#include <cstring>
#include <gtest/gtest.h>

namespace lararium::gate::sim {
namespace {

constexpr std::uint64_t ring_size = 8192;
constexpr std::array<std::uint64_t, 2> first_key{0x1234567890abcdef, 0xfedcba0987654321};

class RingTest : public testing::Test {
protected:
  RingTest() {
    for (std::size_t i = 0; i < hash.size(); ++i)
      hash[i] = 0x9e3779b97f4a7c15 * (i + 1);
  }

  // What the code in the guest does; the record's place is given.
  std::uint64_t write(std::uint32_t pid, std::size_t extra = 0) {
    const std::uint64_t begin = begin_of_record(head, ring_size);
    auto *const to = ring.data() + (begin & (ring_size - 1));
    RecordHead record{};
    const std::size_t size = (sizeof record + extra + 15) / 16 * 16;
    record.size = static_cast<std::uint32_t>(size + sizeof(Tag));
    record.pid = pid;
    record.sequence = ++sequence;
    std::memset(to, 0x5a, size);
    std::memcpy(to, &record, sizeof record);
    const Tag tag = tag_of(reinterpret_cast<const std::uint64_t *>(to), static_cast<std::uint32_t>(size / 8),
                           hash.data(), key.data());
    std::memcpy(to + size, &tag, sizeof tag);
    head = begin + record.size;
    return begin & (ring_size - 1);
  }
  std::vector<std::uint32_t> read() {
    records.clear();
    reader.read(std::as_bytes(std::span(ring)), head, records, wrong);
    std::vector<std::uint32_t> pids;
    for (const Record &record : records)
      pids.push_back(record.head.pid);
    return pids;
  }

  std::array<std::uint64_t, record_words> hash{};
  std::array<std::uint64_t, 2> key = first_key;
  alignas(16) std::array<std::uint8_t, ring_size> ring{};
  std::uint64_t head = 0, sequence = 0;
  RingReader reader{ring_size, first_key, hash};
  std::vector<Record> records;
  std::vector<std::string> wrong;
};
using Pids = std::vector<std::uint32_t>;

TEST_F(RingTest, WhatIsWrittenIsReadOnceAndInOrderAroundTheEnd) {
  std::uint32_t pid = 0, read_pid = 0;
  for (int round = 0; round < 200; ++round) {
    for (int i = 0; i < 1 + round % 5; ++i)
      write(++pid, static_cast<std::size_t>(round * 37 % 800));
    for (const std::uint32_t each : read())
      EXPECT_EQ(each, ++read_pid);
    ASSERT_EQ(read_pid, pid);
    EXPECT_EQ(reader.tail(), head);
  }
  EXPECT_TRUE(wrong.empty()) << wrong.front();
}

TEST_F(RingTest, AChangedRecordIsFoundAndTheNextOnesAreStillRead) {
  write(1);
  const auto at = write(2);
  write(3);
  ring[at + offsetof(RecordHead, pid)] ^= 1;
  EXPECT_EQ(read(), (Pids{1, 3}));
  EXPECT_EQ(wrong.size(), 2) << "changed, and therefore missing";
  wrong.clear();
  write(4);
  EXPECT_EQ(read(), (Pids{4}));
  EXPECT_TRUE(wrong.empty());
}

TEST_F(RingTest, AnyChangedByteIsFound) {
  const auto at = write(1, 100);
  for (std::size_t i = 0; i < sizeof(RecordHead) + 100 + sizeof(Tag); ++i) {
    RingReader fresh(ring_size, first_key, hash);
    ring[at + i] ^= 0x10;
    wrong.clear();
    records.clear();
    fresh.read(std::as_bytes(std::span(ring)), head, records, wrong);
    EXPECT_TRUE(records.empty() && !wrong.empty()) << i;
    ring[at + i] ^= 0x10;
  }
}

TEST_F(RingTest, AForgedRecordIsFoundAndTheNextOnesAreStillRead) {
  write(1);
  const auto real_key = key;
  const auto real_sequence = sequence;
  key = {7, 8}; // an intruder does not know it
  write(666);
  key = real_key;
  sequence = real_sequence;
  write(2);
  EXPECT_EQ(read(), (Pids{1, 2}));
  EXPECT_EQ(wrong.size(), 1);
}

TEST_F(RingTest, ARecordAgainIsForged) {
  const auto at = write(1);
  EXPECT_EQ(read(), (Pids{1}));
  std::array<std::uint8_t, 192> copy{};
  std::memcpy(copy.data(), ring.data() + at, 176);
  const auto to = head & (ring_size - 1);
  std::memcpy(ring.data() + to, copy.data(), 176);
  head += 176;
  EXPECT_TRUE(read().empty());
  EXPECT_FALSE(wrong.empty());
}

TEST_F(RingTest, ARemovedRecordIsFound) {
  write(1);
  const auto before = head;
  write(2);
  head = before; // as if it had never been
  write(3);
  EXPECT_EQ(read(), (Pids{1, 3}));
  EXPECT_EQ(wrong.size(), 1);
}

TEST_F(RingTest, AHeadThatWasTurnedBackOrAheadIsFound) {
  write(1);
  read();
  const auto real = head;
  head = 0;
  EXPECT_TRUE(read().empty());
  EXPECT_EQ(wrong.size(), 1);
  head = real + 2 * ring_size;
  EXPECT_TRUE(read().empty());
  EXPECT_EQ(wrong.size(), 2);
}

TEST_F(RingTest, BothSidesGoOnWithANewKey) {
  write(1);
  read();
  key = {1, 1};
  for (int i = 0; i < 3; ++i)
    write(2);
  EXPECT_TRUE(read().empty());
  ASSERT_TRUE(reader.is_out_of_step());
  key = {5, 6};
  sequence = reader.next_sequence() - 1;
  reader.restart({5, 6}, head);
  write(9);
  EXPECT_EQ(read(), (Pids{9}));
}

TEST_F(RingTest, AKeySaysNothingOfTheOneBefore) {
  // The state after a record must not be a permutation of the one before that anybody can turn back.
  const Permuted one = permuted(1, 2), other = permuted(1, 3);
  EXPECT_NE(one.words[2], other.words[2]);
  EXPECT_NE(one.words[0], one.words[2]);
}

} // namespace
} // namespace lararium::gate::sim
