#include "whole_word.h"

#include <algorithm>
#include <array>
#include <gtest/gtest.h>

namespace lararium::gate {
namespace {

std::vector<std::byte> bytes(std::initializer_list<int> values) {
  std::vector<std::byte> result;
  for (const int value : values)
    result.push_back(static_cast<std::byte>(value));
  return result;
}

struct WholeWord : testing::Test {
  alignas(64) std::array<std::byte, 128> page{};
  void put(std::size_t at, const std::vector<std::byte> &what) {
    std::ranges::copy(what, page.begin() + static_cast<std::ptrdiff_t>(at));
  }
  [[nodiscard]] std::vector<std::byte> at(std::size_t place, std::size_t size) const {
    return {page.begin() + static_cast<std::ptrdiff_t>(place),
            page.begin() + static_cast<std::ptrdiff_t>(place + size)};
  }
};

const auto call = bytes({0xe8, 1, 2, 3, 4}), other = bytes({0xe8, 9, 8, 7, 6}), nops = bytes({0x0f, 0x1f, 0x44, 0, 0});

TEST_F(WholeWord, ACallIsReplacedAtAnyPlaceOfALine) {
  for (std::size_t place = 0; place + call.size() <= 64; ++place) {
    page.fill(std::byte{0x90});
    put(place, other);
    ASSERT_TRUE(replace_as_a_whole(page, place, other, call)) << place;
    EXPECT_EQ(at(place, call.size()), call);
    EXPECT_EQ(std::ranges::count(page, std::byte{0x90}), std::ssize(page) - std::ssize(call)) << place;
  }
}

TEST_F(WholeWord, WhatDiffersMayNotGoOverALine) {
  put(62, other);
  EXPECT_FALSE(replace_as_a_whole(page, 62, other, call));
  EXPECT_EQ(at(62, 5), other);
  put(63, other); // its distance lies in the second line, and its opcode is the same
  EXPECT_TRUE(replace_as_a_whole(page, 63, other, call));
  EXPECT_EQ(at(63, 5), call);
  put(63, nops);
  EXPECT_FALSE(replace_as_a_whole(page, 63, nops, call));
}

TEST_F(WholeWord, NothingIsReplacedThatIsNotWhatItWasTakenFor) {
  put(8, nops);
  EXPECT_FALSE(replace_as_a_whole(page, 8, other, call));
  EXPECT_EQ(at(8, 5), nops);
}

TEST_F(WholeWord, WrongPlacesAreRefused) {
  EXPECT_FALSE(replace_as_a_whole(page, 126, other, call));
  EXPECT_FALSE(replace_as_a_whole(page, ~std::uint64_t{0}, other, call));
  EXPECT_FALSE(replace_as_a_whole({}, 0, other, call));
  EXPECT_FALSE(replace_as_a_whole(page, 0, other, bytes({1})));
  EXPECT_FALSE(replace_as_a_whole(page, 0, std::vector<std::byte>(16), std::vector<std::byte>(16, std::byte{1})));
}

TEST_F(WholeWord, AtTheEndOfThePage) {
  put(123, other);
  EXPECT_TRUE(replace_as_a_whole(page, 123, other, call));
  EXPECT_EQ(at(123, 5), call);
}

} // namespace
} // namespace lararium::gate
