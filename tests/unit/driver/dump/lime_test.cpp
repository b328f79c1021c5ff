#include "samples.h"

#include "lararium/driver/dump.h"

#include <gtest/gtest.h>

namespace lararium {
namespace {

using namespace samples;

const std::vector<PageRange> ranges = {{1, 3}, {100, 50}};

class RangeImages : public testing::TestWithParam<bool> {
protected:
  [[nodiscard]] Image image() const { return GetParam() ? avml(ranges) : lime(ranges); }
};

TEST_P(RangeImages, ReadsItsRanges) {
  const Image bytes = image();
  const auto target = open_dump_image(bytes, "x");
  ASSERT_TRUE(target) << target.error().describe();
  EXPECT_EQ(target->identity.memory_access, GetParam() ? "AVML image (snappy)" : "LiME image");
  ASSERT_EQ(target->memory->ranges().size(), 2U);
  EXPECT_EQ(target->memory->total_size(), 53 * page_size);
  for (const PageRange &range : ranges)
    for (std::uint64_t i = range.first; i < range.first + range.count; ++i)
      EXPECT_TRUE(has_page(*target->memory, i * page_size, i)) << i;
  EXPECT_TRUE(unreadable(*target->memory, 0));
  EXPECT_TRUE(unreadable(*target->memory, 4 * page_size));
  EXPECT_TRUE(unreadable(*target->memory, 150 * page_size));
  Image many(20 * page_size);
  EXPECT_TRUE(target->memory->read(Gpa{110 * page_size}, many));
  EXPECT_EQ(target->limitations.size(), 1U); // no registers
}

TEST_P(RangeImages, TruncatedFilesSaySo) {
  Image bytes = image();
  bytes.resize(bytes.size() - (GetParam() ? 100 : 2 * page_size));
  const auto target = open_dump_image(bytes, "x");
  ASSERT_TRUE(target);
  EXPECT_TRUE(has_page(*target->memory, 100 * page_size, 100));
  EXPECT_TRUE(unreadable(*target->memory, 149 * page_size));
  EXPECT_TRUE(mentions(*target, "cut short: 8192 bytes"));
}

TEST_P(RangeImages, SomethingElseInTheMiddle) {
  Image bytes = image();
  append(bytes, page(1));
  const auto target = open_dump_image(bytes, "x");
  ASSERT_TRUE(target);
  EXPECT_TRUE(mentions(*target, "something other than a range"));
  EXPECT_TRUE(has_page(*target->memory, 149 * page_size, 149));
}

TEST_P(RangeImages, ImpossibleHeadersAreRefused) {
  for (const std::uint64_t last : {std::uint64_t{0}, UINT64_MAX}) {
    Image bad = image();
    put_value(bad, 16, last);
    EXPECT_FALSE(open_dump_image(bad, "x"));
  }
  const Image good = image();
  EXPECT_FALSE(open_dump_image(Bytes(good).first(31), "x"));
}

TEST_P(RangeImages, EveryTruncationIsHandled) {
  const Image bytes = image();
  for (std::size_t size = 0; size + 8 < bytes.size(); size += 61)
    if (const auto target = open_dump_image(Bytes(bytes).first(size), "x")) {
      EXPECT_TRUE(unreadable(*target->memory, 150 * page_size - 1)) << size;
    }
}

INSTANTIATE_TEST_SUITE_P(Formats, RangeImages, testing::Bool(),
                         [](const auto &instance) { return instance.param ? "Avml" : "Lime"; });

TEST(Avml, DamagedChunksFail) {
  const Image good = avml({{0, 40}});
  const std::size_t first_chunk = 32 + 10;
  Image bad = good;
  bad[first_chunk + 4 + 4] = std::byte{0xff}; // the chunk says it is larger
  EXPECT_FALSE(open_dump_image(bad, "x"));
  bad = good;
  for (std::size_t i = 0; i < 40; ++i)
    bad[first_chunk + 20 + i] = std::byte{0xff};
  const auto target = open_dump_image(bad, "x");
  ASSERT_TRUE(target);
  EXPECT_TRUE(unreadable(*target->memory, 0));
  EXPECT_TRUE(has_page(*target->memory, 16 * page_size, 16));
}

} // namespace
} // namespace lararium
