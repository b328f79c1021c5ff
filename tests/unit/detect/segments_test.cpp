#include "segments.h"

#include <gtest/gtest.h>

namespace lararium::detect {
namespace {

TEST(SegmentsTest, WhatLinuxSetsUp) {
  // as it stands in a guest with one program that has its own 32-bit segment
  constexpr std::uint64_t table[segment_count] = {
      0,
      0x00cf9b000000ffff,
      0x00af9b000000ffff,
      0x00cf93000000ffff,
      0x00cffb000000ffff,
      0x00cff3000000ffff,
      0x00affb000000ffff,
      0,
      0xfe008b03c0004087,
      0x00000000fffffe00,
      0,
      0,
      0xf7dff300b8c0ffff,
      0,
      0,
      0x0040f50000000001,
  };
  for (unsigned index = 0; index < segment_count; ++index)
    EXPECT_EQ(what_is_wrong(index, table[index]), "") << index;
  EXPECT_EQ(what_is_wrong(2, 0x00af9a000000ffff), "");  // not used yet
  EXPECT_EQ(what_is_wrong(10, 0xfe0082040000ffff), ""); // a program's LDT
}

TEST(SegmentsTest, WhatLetsAProgramIn) {
  EXPECT_NE(what_is_wrong(7, 0x00affb000000ffff), "");
  EXPECT_NE(what_is_wrong(0, 0x00affb000000ffff), "");
  EXPECT_NE(what_is_wrong(6, 0x00af9b000000ffff), ""); // programs with the kernel's privilege
  EXPECT_NE(what_is_wrong(5, 0x00cff3000001ffff), ""); // another base
  for (const unsigned index : {0u, 7u, 8u, 10u, 12u, 13u, 14u, 15u})
    EXPECT_NE(what_is_wrong(index, 0x8100ec0000101000), "") << index; // a call gate for everybody
  EXPECT_NE(what_is_wrong(12, 0x00cf93000000ffff), "");               // of the kernel's privilege
  EXPECT_NE(what_is_wrong(13, 0x00affb000000ffff), "");               // 64-bit code
  EXPECT_NE(what_is_wrong(15, 0x00cffb000000ffff), "");
}

} // namespace
} // namespace lararium::detect
