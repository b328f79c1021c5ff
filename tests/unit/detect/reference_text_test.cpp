#include "reference_text.h"

#include <gtest/gtest.h>

namespace lararium::detect {
namespace {

std::vector<std::byte> bytes(std::initializer_list<int> values) {
  std::vector<std::byte> out;
  for (const int value : values)
    out.push_back(static_cast<std::byte>(value));
  return out;
}

constexpr Gva here{0xffffffff81001000}, there{0xffffffff82001000};

TEST(SameCode, NopsOfAnyKindAreLeftOut) {
  const auto code = bytes({0x0f, 0xae, 0xe8});                           // lfence
  const auto padded = bytes({0x0f, 0xae, 0xe8, 0x0f, 0x1f, 0x00, 0x90}); // lfence; nop; nop
  const auto jumped = bytes({0xeb, 0x02, 0xcc, 0xcc, 0x0f, 0xae, 0xe8}); // over the nops
  EXPECT_TRUE(is_same_code(code, here, padded, there, 0));
  EXPECT_TRUE(is_same_code(code, here, jumped, there, 0));
  EXPECT_FALSE(is_same_code(code, here, bytes({0x0f, 0xae, 0xf0}), there, 0)); // mfence
  EXPECT_FALSE(is_same_code(code, here, bytes({0x0f, 0x1f, 0x00}), there, 0));
  EXPECT_FALSE(is_same_code(code, here, bytes({0x06}), there, 0)) << "no instruction";
}

TEST(SameCode, CallsAreTheSameWhenTheyLeadToTheSamePlace) {
  const auto call = bytes({0xe8, 0x00, 0x01, 0x00, 0x01});  // at `here`: to here + 5 + 0x1000100
  const auto moved = bytes({0xe8, 0x00, 0x01, 0x00, 0x00}); // at `there`: to there + 5 + 0x100, the same place
  EXPECT_TRUE(is_same_code(call, here, moved, there, 0));
  EXPECT_FALSE(is_same_code(call, here, call, there, 0));
  const auto loop = bytes({0x48, 0xff, 0xc8, 0x75, 0xfb}); // dec rax; jne to its begin: moves with the code
  EXPECT_TRUE(is_same_code(loop, here, loop, there, 0));
}

TEST(SameCode, AReturnThunkIsAReturn) {
  const auto jump = bytes({0xe9, 0xfb, 0x0f, 0x00, 0x00}); // to here + 0x1000
  EXPECT_TRUE(is_same_code(jump, here, bytes({0xc3, 0xcc, 0xcc, 0xcc, 0xcc}), there, 0, here + 0x1000));
  EXPECT_FALSE(is_same_code(jump, here, bytes({0xc3, 0xcc, 0xcc, 0xcc, 0xcc}), there, 0, here + 0x2000));
  EXPECT_FALSE(is_same_code(jump, here, bytes({0xc3, 0xcc, 0xcc, 0xcc, 0xcc}), there, 0));
}

TEST(MovedAddress, MovesByTheSlideAndNothingElse) {
  constexpr std::uint32_t slide = 0x2e00000;
  const auto expected = bytes({0x48, 0xc7, 0xc0, 0x10, 0x20, 0x00, 0x82}); // mov rax, 0xffffffff82002010
  const auto moved = bytes({0x48, 0xc7, 0xc0, 0x10, 0x20, 0xe0, 0x84}),
             other = bytes({0x48, 0xc7, 0xc0, 0x10, 0x20, 0xe0, 0x85});
  std::size_t past = 0;
  EXPECT_TRUE(is_moved_address(expected, moved, 5, slide, past, true));
  EXPECT_EQ(past, 7U);
  EXPECT_TRUE(is_moved_address(moved, expected, 5, slide, past, true)) << "what belongs to a CPU moves the other way";
  // Text is no address, by however much it changed.
  EXPECT_FALSE(is_moved_address(bytes({' ', 'v', 'e', 'r'}), bytes({' ', 'v', 'E', 'r'}), 2, 0x200000, past, false));
  EXPECT_FALSE(is_moved_address(expected, other, 5, slide, past, true));
  EXPECT_FALSE(is_moved_address(expected, moved, 1, slide, past, true));
}

} // namespace
} // namespace lararium::detect
