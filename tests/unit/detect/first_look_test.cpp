#include "first_look.h"

#include "code_sites.h"

#include <algorithm>
#include <cstring>
#include <gtest/gtest.h>
#include <vector>

namespace lararium::detect {
namespace {

constexpr Gva begin{0xffffffff81000fc0};

// With memory that is mapped, and memory that is read.
class FirstLookTest : public testing::TestWithParam<bool> {
protected:
  const bool in_place = GetParam();
  std::vector<std::byte> memory = std::vector<std::byte>(3 * 4096, std::byte{0x90});
  FirstLook first{begin, 2 * 4096, 0x1234567890abcdef};
  std::vector<Mask> masks;
  bool masks_asked = false;
  FirstLook::Sameness sameness{};

  // The lines that are not as they were.
  std::vector<Gva> look() {
    std::vector<Gva> lines;
    masks_asked = false;
    sameness = first.look(
        [&](Gva at, std::span<std::byte> buffer) -> Bytes {
          if (at < begin || at - begin + buffer.size() > memory.size())
            return {};
          const Bytes found = Bytes(memory).subspan(at - begin, buffer.size());
          if (in_place)
            return found;
          std::ranges::copy(found, buffer.begin());
          return buffer;
        },
        [&] {
          masks_asked = true;
          return std::span<const Mask>(masks);
        },
        [&](Gva line, Bytes found) {
          EXPECT_EQ(found.size(), FirstLook::line_bytes);
          EXPECT_EQ(0, std::memcmp(found.data(), memory.data() + (line - begin), found.size()));
          lines.push_back(line);
        });
    return lines;
  }
};

TEST_P(FirstLookTest, FindsWhatChanged) {
  EXPECT_TRUE(look().empty());
  EXPECT_TRUE(look().empty());
  for (const std::size_t at :
       {std::size_t{0}, std::size_t{63}, std::size_t{64}, std::size_t{5000}, std::size_t{8191}}) {
    memory[at] ^= std::byte{1};
    EXPECT_EQ(look(), std::vector<Gva>{begin + at / 64 * 64});
    memory[at] ^= std::byte{1};
    EXPECT_TRUE(look().empty());
  }
}

TEST_P(FirstLookTest, RemembersWhatItFindsTwice) {
  EXPECT_TRUE(look().empty());
  memory[100] = std::byte{1}; // was under way
  EXPECT_TRUE(look().empty());
  EXPECT_TRUE(look().empty());
  memory[100] = std::byte{2};
  EXPECT_EQ(look().size(), 1U);
}

TEST_P(FirstLookTest, LeavesOutWhatMayChange) {
  masks = {{begin + 62, 5, Mask::Kind::hide, {}}}; // over the end of a line, and of a page
  look();
  look();
  for (std::size_t at = 62; at < 67; ++at)
    memory[at] = std::byte{0xe8};
  EXPECT_TRUE(look().empty());
  memory[67] = std::byte{0xe8};
  EXPECT_EQ(look(), std::vector<Gva>{begin + 64});
}

TEST_P(FirstLookTest, PutsBackWhatAProbeDisplaced) {
  look();
  look();
  memory[200] = std::byte{0xcc};
  EXPECT_EQ(look().size(), 1U);
  masks = {{begin + 200, 1, Mask::Kind::restore, {std::byte{0x90}}}};
  EXPECT_TRUE(look().empty());
  masks[0].original[0] = std::byte{0x91};
  EXPECT_EQ(look().size(), 1U);
}

TEST_P(FirstLookTest, IsBlindWhereCodeIsBeingChanged) {
  masks = {{begin + 300, 6, Mask::Kind::blind, {}}};
  look();
  look();
  memory[300] = std::byte{0xcc};
  EXPECT_TRUE(look().empty());
  masks.clear();
  EXPECT_TRUE(look().empty()); // seen for the first time
  EXPECT_TRUE(look().empty());
  memory[300] = std::byte{0x90};
  EXPECT_EQ(look().size(), 1U);
}

TEST_P(FirstLookTest, UntouchedPagesAreNotLookedAtCloser) {
  using Sameness = FirstLook::Sameness;
  masks = {{begin + 62, 5, Mask::Kind::hide, {}}};
  for (const auto expected : {Sameness::different, Sameness::different, Sameness::same, Sameness::untouched}) {
    EXPECT_TRUE(look().empty());
    EXPECT_EQ(sameness, expected);
    EXPECT_EQ(masks_asked, expected != Sameness::untouched);
  }
  memory[62] = std::byte{0xe8}; // what may change
  EXPECT_TRUE(look().empty());
  EXPECT_EQ(sameness, Sameness::same);
  EXPECT_TRUE(look().empty());
  EXPECT_EQ(sameness, Sameness::untouched);
  for (std::size_t at = 0; at < 8192; at += 509) { // each byte counts
    if (at >= 62 && at < 67)
      continue;
    memory[at] ^= std::byte{0x80};
    EXPECT_EQ(look().size(), 1U) << at;
    EXPECT_EQ(sameness, Sameness::different);
    memory[at] ^= std::byte{0x80};
    look();
    look();
    EXPECT_EQ(sameness, Sameness::untouched);
  }
}

TEST_P(FirstLookTest, WhatAProbeExplainsIsLookedAtEachTime) {
  look();
  look();
  memory[200] = std::byte{0xcc};
  masks = {{begin + 200, 1, Mask::Kind::restore, {std::byte{0x90}}}};
  EXPECT_TRUE(look().empty());
  EXPECT_TRUE(look().empty());
  EXPECT_EQ(sameness, FirstLook::Sameness::same);
  masks.clear(); // the probe is gone, and its int3 is not
  EXPECT_EQ(look().size(), 1U);
}

INSTANTIATE_TEST_SUITE_P(InPlaceAndRead, FirstLookTest, testing::Bool());

TEST(JumpLabels, HoldANopOrTheirJump) {
  const auto bytes = [](std::initializer_list<unsigned> values) {
    std::vector<std::byte> result;
    for (const unsigned value : values)
      result.push_back(static_cast<std::byte>(value));
    return result;
  };
  const JumpLabel label{begin, begin + 0x25};
  EXPECT_TRUE(is_lawful_jump_label(bytes({0x0f, 0x1f, 0x44, 0, 0}), label));
  EXPECT_TRUE(is_lawful_jump_label(bytes({0x66, 0x90, 0x48, 0x89, 0xc7}), label));
  EXPECT_TRUE(is_lawful_jump_label(bytes({0xe9, 0x20, 0, 0, 0}), label));
  EXPECT_TRUE(is_lawful_jump_label(bytes({0xeb, 0x23, 0, 0, 0}), label));
  EXPECT_FALSE(is_lawful_jump_label(bytes({0xe9, 0x21, 0, 0, 0}), label));
  EXPECT_FALSE(is_lawful_jump_label(bytes({0xe8, 0x20, 0, 0, 0}), label));
  EXPECT_FALSE(is_lawful_jump_label(bytes({0xcc, 0x20, 0, 0, 0}), label));
  EXPECT_EQ(length_of_jump_label(bytes({0xcc, 0, 0, 0, 0})), 0);
  EXPECT_EQ(length_of_jump_label(bytes({0xeb, 0x23, 0, 0, 0})), 2);
  EXPECT_EQ(length_of_jump_label(bytes({0x66, 0x90, 0, 0, 0})), 2);
  EXPECT_EQ(length_of_jump_label(bytes({0x66, 0x66, 0x66, 0x66, 0x90})), 5);
}

} // namespace
} // namespace lararium::detect
