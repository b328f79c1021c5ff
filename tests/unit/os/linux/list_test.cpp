#include "lararium/os/linux/list.h"

#include "lararium/driver/fake.h"

#include <gtest/gtest.h>
#include <vector>

namespace lararium::linux_guest {
namespace {

// A kernel with one mapped piece of memory and no profile: walks need no more.
class Lists : public testing::Test {
protected:
  static constexpr Gva base{0xffff888000000000};
  static constexpr std::uint64_t size = 1 << 20;
  static constexpr std::size_t limit = 1000;

  Lists() {
    FakePageTables tables(memory_, Gpa{0});
    tables.map_range(base, Gpa{4 << 20}, size);
    kernel_.emplace(memory_, KernelLocation{{tables.root(), 4}, {}, {}, 0, {}}, nullptr);
  }

  static Gva at(std::uint64_t number) { return base + 64 * number; }
  void put(Gva address, std::uint64_t value) { memory_.write_value(Gpa{(4 << 20) + (address - base)}, value); }
  void link(Gva from, Gva to) { // a list_head's next and the other's prev
    put(from, to.value);
    put(to + 8, from.value);
  }
  // at(0) is the head, at(1) ... at(count) follow.
  void make_list(std::uint64_t count) {
    for (std::uint64_t i = 0; i <= count; ++i)
      link(at(i), at((i + 1) % (count + 1)));
  }
  WalkResult walk(std::size_t most = limit) {
    visited_.clear();
    return walk_list(*kernel_, at(0), most, [this](Gva node) {
      visited_.push_back(node);
      return visited_.size() < stop_at_;
    });
  }
  WalkResult chain(Gva first, std::size_t most = limit) {
    visited_.clear();
    return walk_chain(*kernel_, first, 0, most, [this](Gva node) {
      visited_.push_back(node);
      return visited_.size() < stop_at_;
    });
  }

  FakeMemory memory_{8 << 20};
  std::optional<Kernel> kernel_;
  std::vector<Gva> visited_;
  std::size_t stop_at_ = SIZE_MAX;
};

TEST_F(Lists, WholeListsAreConsistent) {
  for (const std::uint64_t count : {0, 1, 2, 63, 64, 65, 300}) {
    make_list(count);
    const auto result = walk();
    EXPECT_EQ(result.end, WalkEnd::complete);
    EXPECT_TRUE(result.consistent());
    EXPECT_EQ(result.visited, count);
    EXPECT_EQ(visited_.size(), count);
  }
}

TEST_F(Lists, AVisitorCanStop) {
  make_list(10);
  stop_at_ = 3;
  const auto result = walk();
  EXPECT_EQ(result.end, WalkEnd::stopped);
  EXPECT_EQ(visited_.size(), 3U);
  EXPECT_EQ(visited_.back(), at(3));
}

TEST_F(Lists, AnElementThatPointsToItselfIsACircle) {
  make_list(10);
  put(at(5), at(5).value);
  const auto result = walk();
  EXPECT_EQ(result.end, WalkEnd::cyclic);
  EXPECT_FALSE(result.consistent());
  EXPECT_LT(result.visited, 200U);
}

TEST_F(Lists, CirclesWithoutTheHeadEndSoon) {
  for (const std::uint64_t length : {2, 3, 40, 64, 100}) {
    make_list(200);
    put(at(20 + length - 1), at(20).value);
    const auto result = walk();
    EXPECT_EQ(result.end, WalkEnd::cyclic) << length;
    EXPECT_LT(result.visited, 6 * (20 + length) + 128) << length; // Brent: linear in the way in and the circle
  }
}

TEST_F(Lists, PerfectCirclesAreCirclesToo) { // their prev agree as well: the head's alone does not
  make_list(10);
  for (std::uint64_t i = 20; i < 30; ++i)
    link(at(i), at(i == 29 ? 20 : i + 1));
  put(at(4), at(20).value);
  EXPECT_EQ(walk().end, WalkEnd::cyclic);
}

TEST_F(Lists, LongListsMeetTheLimit) {
  make_list(500);
  const auto result = walk(100);
  EXPECT_EQ(result.end, WalkEnd::limit);
  EXPECT_EQ(result.visited, 100U);
  EXPECT_EQ(result.at, at(101));
}

TEST_F(Lists, WildPointersBreakTheWalk) {
  for (const std::uint64_t wild :
       {std::uint64_t{0}, std::uint64_t{0x400000}, std::uint64_t{0x4141414141414141}, (base + size).value,
        (base + size - 8).value, std::uint64_t{0xfffffffffffffff8}, std::uint64_t{0x8000000000000000}}) {
    make_list(10);
    put(at(5), wild);
    const auto result = walk();
    EXPECT_EQ(result.end, WalkEnd::broken) << std::hex << wild;
    EXPECT_EQ(result.at, at(5));
    EXPECT_EQ(visited_.size(), 5U);
  }
}

TEST_F(Lists, AnUnreadableHeadBreaksTheWalk) {
  const auto result = walk_list(*kernel_, Gva{0x1000}, limit, [](Gva) { return true; });
  EXPECT_EQ(result.end, WalkEnd::broken);
  EXPECT_EQ(result.visited, 0U);
}

TEST_F(Lists, PrevThatDisagreesIsCounted) {
  make_list(10);
  put(at(5) + 8, at(9).value);
  put(at(7) + 8, 0);
  const auto result = walk();
  EXPECT_EQ(result.end, WalkEnd::complete);
  EXPECT_EQ(result.mismatches, 2U);
  EXPECT_FALSE(result.consistent());
}

TEST_F(Lists, AListThatChangesWhileItIsWalkedIsSeen) {
  make_list(10);
  // The third element is taken out, as the kernel does, when the walk stands on it.
  const auto result = walk_list(*kernel_, at(0), limit, [this](Gva node) {
    if (node == at(3)) {
      link(at(2), at(4));
      put(at(3), 0xdead000000000100); // LIST_POISON1
      put(at(3) + 8, 0xdead000000000122);
    }
    return true;
  });
  EXPECT_EQ(result.end, WalkEnd::complete); // its links were read before
  EXPECT_EQ(result.mismatches, 1U);         // the fourth says that it comes from the second
}

TEST_F(Lists, ChainsEndWithNullOrAnOddValue) {
  for (const std::uint64_t end : {0, 1, 0x1235}) {
    for (std::uint64_t i = 0; i < 100; ++i)
      put(at(i), i == 99 ? end : at(i + 1).value);
    const auto result = chain(at(0));
    EXPECT_EQ(result.end, WalkEnd::complete);
    EXPECT_EQ(result.visited, 100U);
  }
  EXPECT_EQ(chain(Gva{}).visited, 0U);
  EXPECT_EQ(chain(Gva{7}).end, WalkEnd::complete);
}

TEST_F(Lists, BentChainsEnd) {
  put(at(0), at(0).value);
  EXPECT_EQ(chain(at(0)).end, WalkEnd::cyclic);
  for (std::uint64_t i = 0; i < 100; ++i)
    put(at(i), i == 99 ? at(70).value : at(i + 1).value);
  EXPECT_EQ(chain(at(0)).end, WalkEnd::cyclic);
  EXPECT_EQ(chain(at(0), 50).end, WalkEnd::limit);
  put(at(99), 0x400000);
  EXPECT_EQ(chain(at(0)).end, WalkEnd::broken);
  put(at(99), (base + size).value);
  EXPECT_EQ(chain(at(0)).end, WalkEnd::broken);
  EXPECT_EQ(chain(Gva{0x400000}).end, WalkEnd::broken);
}

} // namespace
} // namespace lararium::linux_guest
