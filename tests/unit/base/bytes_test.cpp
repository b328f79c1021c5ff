#include "lararium/base/bytes.h"

#include <array>
#include <gtest/gtest.h>

namespace lararium {
namespace {

TEST(Load, ReadsInsideAndRefusesOutside) {
  const std::array<std::uint8_t, 6> data{1, 0, 0, 0, 2, 0};
  const Bytes bytes = std::as_bytes(std::span(data));
  EXPECT_EQ(load<std::uint32_t>(bytes, 0), 1u);
  EXPECT_EQ(load<std::uint16_t>(bytes, 4), 2u);
  EXPECT_FALSE(load<std::uint32_t>(bytes, 3));
  EXPECT_FALSE(load<std::uint8_t>(bytes, 6));
  EXPECT_FALSE(load<std::uint64_t>(bytes, SIZE_MAX));
}

TEST(CString, EndsAtNulEndOrLimit) {
  const Bytes bytes = bytes_of(std::string_view("abc\0def", 7));
  EXPECT_EQ(c_string(bytes, 0), "abc");
  EXPECT_EQ(c_string(bytes, 4), "def");
  EXPECT_EQ(c_string(bytes, 0, 2), "ab");
  EXPECT_EQ(c_string(bytes, 7), "");
  EXPECT_EQ(c_string(bytes, SIZE_MAX), "");
}

} // namespace
} // namespace lararium
