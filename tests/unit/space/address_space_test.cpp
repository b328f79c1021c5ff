#include "lararium/space/address_space.h"

#include "lararium/driver/fake.h"

#include <gtest/gtest.h>
#include <numeric>

namespace lararium {
namespace {

using PageSize = FakePageTables::PageSize;

// Physical memory of 16 MiB: tables from 0, content from 8 MiB.
class Space : public testing::TestWithParam<int> {
protected:
  static constexpr Gva base{0xffffffff81000000};
  static constexpr Gpa content{8 << 20};

  [[nodiscard]] AddressSpace space() const { return {memory_, {tables_.root(), GetParam()}}; }
  void fill(Gpa address, std::size_t size, unsigned char first) {
    std::vector<unsigned char> bytes(size);
    std::iota(bytes.begin(), bytes.end(), first);
    memory_.write(address, std::as_bytes(std::span(bytes)));
  }

  FakeMemory memory_{16 << 20};
  FakePageTables tables_{memory_, Gpa{0}, static_cast<unsigned>(GetParam())};
};

INSTANTIATE_TEST_SUITE_P(Levels, Space, testing::Values(4, 5));

TEST_P(Space, ReadsAcrossPagesThatAreApart) {
  tables_.map(base, content + 5 * page_size);
  tables_.map(base + page_size, content);
  memory_.write_value<std::uint32_t>(content + 6 * page_size - 4, 0x44332211);
  memory_.write_value<std::uint32_t>(content, 0x88776655);
  const AddressSpace space = this->space();
  for (int round = 0; round < 2; ++round) // from the tables, then from the cache
    EXPECT_EQ(space.read<std::uint64_t>(base + page_size - 4), 0x8877665544332211);
}

TEST_P(Space, ReadsNothingInPart) {
  tables_.map(base, content);
  const AddressSpace space = this->space();
  std::array<std::byte, 64> buffer{};
  EXPECT_FALSE(space.read(base + page_size - 32, buffer));
  EXPECT_EQ(space.read_prefix(base + page_size - 32, buffer), 32U);
  EXPECT_EQ(space.read_prefix(base + page_size, buffer), 0U);
  EXPECT_TRUE(space.read(base + page_size, std::span<std::byte>{}));
}

TEST_P(Space, NonCanonicalAndLastAddressesFail) {
  tables_.map(Gva{0xfffffffffffff000}, content);
  const AddressSpace space = this->space();
  EXPECT_FALSE(space.read<std::uint64_t>(Gva{0x4141414141414141}));
  EXPECT_FALSE(space.read<std::uint64_t>(Gva{0x0180000000000000}));
  EXPECT_TRUE(space.read<std::uint64_t>(Gva{0xfffffffffffffff8}));
  EXPECT_FALSE(space.read<std::uint64_t>(Gva{0xfffffffffffffffc})); // would go on at 0, which nothing maps
}

TEST_P(Space, LargePages) {
  const std::uint64_t two_mib = 2 << 20;
  tables_.map(base, content, PageSize::large_2m);
  fill(content + two_mib - 16, 32, 0x10);
  const AddressSpace space = this->space();
  EXPECT_EQ(space.read<std::uint8_t>(base + two_mib - 16), 0x10);
  const auto translation = space.translate(base + 0x12345);
  ASSERT_TRUE(translation);
  EXPECT_EQ(translation->address, content + 0x12345);
  EXPECT_EQ(translation->page_bytes, two_mib);
  EXPECT_FALSE(space.read<std::uint8_t>(base + two_mib));
}

TEST_P(Space, ALargePageIsWalkedOnce) {
  tables_.map(base, content, PageSize::large_2m);
  tables_.map(base + (2 << 20), content + 7 * page_size); // the next 2 MiB have small pages
  tables_.map(base + (2 << 20) + page_size, content + 3 * page_size);
  for (std::uint64_t page = 0; page < 8; ++page)
    memory_.write_value(content + page * page_size, page);
  const AddressSpace space = this->space();
  EXPECT_EQ(space.read<std::uint64_t>(base), 0U);
  const auto walked = memory_.read_count();
  EXPECT_EQ(space.read<std::uint64_t>(base + 5 * page_size), 5U);
  EXPECT_EQ(memory_.read_count(), walked + 1);
  EXPECT_EQ(space.read<std::uint64_t>(base + (2 << 20)), 7U);
  EXPECT_EQ(space.read<std::uint64_t>(base + (2 << 20) + page_size), 3U);

  tables_.map(base, content + (2 << 20), PageSize::large_2m);
  EXPECT_EQ(space.read<std::uint64_t>(base + 6 * page_size), 6U); // kept, as all translations are
  space.flush();
  EXPECT_EQ(space.read<std::uint64_t>(base + 6 * page_size), 0U);
}

TEST_P(Space, WhatIsExpectedIsReadAsBefore) {
  tables_.map(base, content);
  memory_.write_value<std::uint64_t>(content + 16, 42);
  const AddressSpace space = this->space();
  const std::array places{base + 16, base + page_size, Gva{0x4141414141414141}, Gva{0}}; // all but one lead nowhere
  space.expect(places);
  EXPECT_EQ(space.read<std::uint64_t>(base + 16), 42U);
  EXPECT_FALSE(space.read<std::uint64_t>(base + page_size));
  // Nothing is kept of what is behind them.
  memory_.write_value<std::uint64_t>(content + 16, 43);
  EXPECT_EQ(space.read<std::uint64_t>(base + 16), 43U);
}

TEST_P(Space, MappingsAreKeptUntilTheFlush) {
  tables_.map(base, content);
  fill(content, 8, 1);
  fill(content + page_size, 8, 101);
  const AddressSpace space = this->space();
  EXPECT_EQ(space.read<std::uint8_t>(base), 1);
  tables_.map(base, content + page_size);
  EXPECT_EQ(space.read<std::uint8_t>(base), 1) << "the old mapping is still known";
  space.flush();
  EXPECT_EQ(space.read<std::uint8_t>(base), 101);
}

TEST_P(Space, ContentIsNeverKept) {
  tables_.map(base, content);
  const AddressSpace space = this->space();
  for (const unsigned char value : {1, 2, 3}) {
    fill(content, 1, value);
    EXPECT_EQ(space.read<std::uint8_t>(base), value);
  }
}

TEST_P(Space, MappedRunsAreReadInPlace) {
  std::vector<std::byte> bytes(2 * page_size);
  bytes[page_size - 1] = std::byte{7};
  bytes[page_size] = std::byte{8};
  memory_.map_run(content, bytes);
  tables_.map_range(base, content, 2 * page_size);
  const AddressSpace space = this->space();
  for (int round = 0; round < 2; ++round)
    EXPECT_EQ(space.read<std::uint16_t>(base + page_size - 1), 0x0807);
}

TEST_P(Space, PagesThatShareALineOfTheCacheDoNotMix) {
  for (std::uint64_t i = 0; i < 4; ++i) {
    tables_.map(base + i * 1024 * page_size, content + i * page_size);
    fill(content + i * page_size, 1, static_cast<unsigned char>(10 + i));
  }
  const AddressSpace space = this->space();
  for (int round = 0; round < 2; ++round)
    for (std::uint64_t i = 0; i < 4; ++i)
      EXPECT_EQ(space.read<std::uint8_t>(base + i * 1024 * page_size), 10 + i);
}

TEST_P(Space, Strings) {
  tables_.map_range(base, content, 2 * page_size);
  memory_.write_string(content + page_size - 3, "across");
  const AddressSpace space = this->space();
  EXPECT_EQ(space.read_c_string(base + page_size - 3, 100), "across");
  EXPECT_EQ(space.read_c_string(base + page_size - 3, 4), "acro");
  EXPECT_EQ(space.read_c_string(base, 100), "");
  EXPECT_EQ(space.read_c_string(base + 2 * page_size, 100), std::nullopt);
  memory_.write(content + 2 * page_size - 4, bytes_of("open"));
  EXPECT_EQ(space.read_c_string(base + 2 * page_size - 4, 100), "open") << "ends with the mapping";
}

TEST_P(Space, ExtentsJoinWhatIsContiguousAndAlike) {
  tables_.map_range(base, content, 3 * page_size);
  tables_.map(base + 3 * page_size, content + 3 * page_size, PageSize::small, FakePageTables::present);
  tables_.map(base + 4 * page_size, content);
  tables_.map(base + 16 * page_size, content + 16 * page_size);
  const auto extents = space().extents(base, base + (1 << 20), 100);
  ASSERT_EQ(extents.size(), 4U);
  EXPECT_EQ(extents[0].base, base);
  EXPECT_EQ(extents[0].size, 3 * page_size);
  EXPECT_TRUE(extents[0].writable);
  EXPECT_FALSE(extents[1].writable);
  EXPECT_EQ(extents[2].physical, content);
  EXPECT_EQ(extents[3].base, base + 16 * page_size);
  EXPECT_EQ(space().extents(base, base + (1 << 20), 2).size(), 2U) << "no more than the limit";
  const auto cut = space().extents(base + page_size, base + 2 * page_size, 100);
  ASSERT_EQ(cut.size(), 1U);
  EXPECT_EQ(cut[0].physical, content + page_size);
  EXPECT_EQ(cut[0].size, page_size);
  EXPECT_TRUE(space().extents(base, base, 100).empty());
}

TEST_P(Space, ExtentsReachTheEndOfTheAddressSpace) {
  tables_.map(Gva{0xfffffffffffff000}, content);
  const auto extents = space().extents(Gva{0xffffffffc0000000}, Gva{0}, 100); // 2^64
  EXPECT_TRUE(extents.empty() || extents[0].base == Gva{0xfffffffffffff000});
}

// A table whose every entry is itself maps all there is; the walk is bounded by what was asked for and by the limit.
TEST_P(Space, TablesThatPointToThemselvesEnd) {
  tables_.map(base, content);
  for (std::uint64_t i = 0; i < 512; ++i)
    memory_.write_value<std::uint64_t>(tables_.root() + 8 * i, tables_.root().value | 3);
  const AddressSpace space = this->space();
  const auto translation = space.translate(base);
  ASSERT_TRUE(translation);
  EXPECT_EQ(translation->address.page(), tables_.root());
  const auto before = memory_.read_count();
  const auto extents = space.extents(Gva{0xffffffff80000000}, Gva{0xffffffffc0000000}, 4096);
  EXPECT_LE(extents.size(), 4096U);
  EXPECT_LT(memory_.read_count() - before, 4096U);
  std::array<std::byte, 4 * page_size> buffer{};
  EXPECT_EQ(space.read_prefix(base, buffer), buffer.size());
}

TEST_P(Space, TablesOutsideMemoryMapNothing) {
  tables_.map(base, content);
  memory_.write_value<std::uint64_t>(tables_.entry(base, 1), 0x000ffffffffff003);
  EXPECT_FALSE(space().translate(base));
  EXPECT_TRUE(space().extents(base, base + page_size, 10).empty());
  const AddressSpace nowhere(memory_, {Gpa{0x000ffffffffff000}, GetParam()});
  EXPECT_FALSE(nowhere.translate(base));
  EXPECT_TRUE(nowhere.extents(Gva{0}, Gva{1ULL << 40}, 10).empty());
}

TEST_P(Space, FailingReadsFailTheRead) {
  tables_.map_range(base, content, 2 * page_size);
  memory_.fail_range(content + page_size, page_size);
  const AddressSpace space = this->space();
  std::array<std::byte, 2 * page_size> buffer{};
  EXPECT_FALSE(space.read(base, buffer));
  EXPECT_EQ(space.read_prefix(base, buffer), page_size);
}

TEST_P(Space, UncachedReadsAgree) {
  tables_.map(base, content + 5 * page_size);
  tables_.map(base + page_size, content);
  fill(content + 5 * page_size, page_size, 3);
  fill(content, page_size, 90);
  const AddressSpace space = this->space();
  std::array<std::byte, 3 * page_size> uncached{}, cached{};
  EXPECT_EQ(read_uncached(memory_, space.root(), base + 17, uncached), 2 * page_size - 17);
  EXPECT_EQ(space.read_prefix(base + 17, cached), 2 * page_size - 17);
  EXPECT_EQ(uncached, cached);
}

} // namespace
} // namespace lararium
