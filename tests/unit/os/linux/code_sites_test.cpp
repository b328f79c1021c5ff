#include "lararium/os/linux/code_sites.h"

#include <gtest/gtest.h>
#include <initializer_list>
#include <vector>

namespace lararium::linux_guest {
namespace {

std::vector<std::byte> code(std::initializer_list<unsigned> values) {
  std::vector<std::byte> bytes;
  for (const unsigned value : values)
    bytes.push_back(static_cast<std::byte>(value));
  return bytes;
}

TEST(CodeSites, TellNopsAndFillingFromCode) {
  EXPECT_TRUE(is_long_nop(code({0x0f, 0x1f, 0x44, 0, 0})));
  EXPECT_TRUE(is_long_nop(code({0x66, 0x66, 0x66, 0x66, 0x90, 0xcc})));
  EXPECT_FALSE(is_long_nop(code({0x0f, 0x1f, 0x44, 0, 1})));
  EXPECT_FALSE(is_long_nop(code({0x0f, 0x1f, 0x44, 0})));
  EXPECT_TRUE(is_filling_or_thunks(code({})));
  EXPECT_TRUE(is_filling_or_thunks(code({0xcc, 0xff, 0xe0, 0xcc, 0xcc, 0x41, 0xff, 0xe3, 0xcc, 0, 0})));
  EXPECT_FALSE(is_filling_or_thunks(code({0xcc, 0xff, 0xe0, 0x90})));
  EXPECT_FALSE(is_filling_or_thunks(code({0x41, 0xcc})));
  EXPECT_FALSE(is_filling_or_thunks(code({0xff, 0xd0, 0xcc}))); // a call
}

} // namespace
} // namespace lararium::linux_guest
