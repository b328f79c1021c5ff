#include "lararium/arch/x86_64_paging.h"

#include <gtest/gtest.h>
#include <map>

namespace lararium::x86_64 {
namespace {

// Page tables as a sparse array of entries.
struct Tables {
  std::map<std::uint64_t, std::uint64_t> entries;
  std::size_t reads = 0;
  std::optional<std::uint64_t> operator()(Gpa address) {
    ++reads;
    const auto found = entries.find(address.value);
    return found == entries.end() ? std::optional<std::uint64_t>(0) : found->second;
  }
};

constexpr std::uint64_t table_flags = entry::present | entry::writable | entry::user;
constexpr Gva address{0xffffffff81234567};

constexpr std::uint64_t slot(std::uint64_t table, int level) {
  return table + 8 * (address.value >> (12 + 9 * (level - 1)) & 511);
}

TEST(Translate, SmallPageWithFourAndFiveLevels) {
  for (const int levels : {4, 5}) {
    Tables tables;
    for (int level = levels; level > 1; --level)
      tables.entries[slot(0x1000 * level, level)] = 0x1000 * (level - 1) | table_flags;
    tables.entries[slot(0x1000, 1)] = 0xabc000 | entry::present | entry::no_execute;
    const auto found = translate({Gpa{static_cast<std::uint64_t>(0x1000 * levels)}, levels}, address, tables);
    ASSERT_TRUE(found);
    EXPECT_EQ(found->address, Gpa{0xabc567});
    EXPECT_EQ(found->page_bytes, 4096u);
    EXPECT_FALSE(found->writable);
    EXPECT_FALSE(found->user);
    EXPECT_FALSE(found->executable);
  }
}

TEST(Translate, LargePagesKeepTheOffsetInside) {
  Tables tables;
  tables.entries[slot(0x4000, 4)] = 0x3000 | table_flags;
  tables.entries[slot(0x3000, 3)] = 0x2000 | table_flags;
  tables.entries[slot(0x2000, 2)] = 0x40000000 | table_flags | entry::large;
  auto found = translate({Gpa{0x4000}, 4}, address, tables);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->address, Gpa{0x40000000 | (address.value & 0x1fffff)});
  EXPECT_EQ(found->page_bytes, 2u << 20);

  tables.entries[slot(0x3000, 3)] = 0x80000000 | table_flags | entry::large;
  found = translate({Gpa{0x4000}, 4}, address, tables);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->address, Gpa{0x80000000 | (address.value & 0x3fffffff)});
}

TEST(Translate, TablesThatPointToThemselvesEnd) {
  Tables tables;
  for (int level = 5; level >= 1; --level)
    tables.entries[slot(0x1000, level)] = 0x1000 | table_flags;
  const auto found = translate({Gpa{0x1000}, 5}, address, tables);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->address.page(), Gpa{0x1000});
  EXPECT_EQ(tables.reads, 5u);
}

TEST(Translate, RefusesNonCanonicalAbsentAndReserved) {
  Tables tables;
  EXPECT_FALSE(translate({Gpa{0x4000}, 4}, Gva{0x0001000000000000}, tables));
  EXPECT_EQ(tables.reads, 0u);
  EXPECT_FALSE(translate({Gpa{0x4000}, 4}, address, tables));
  tables.entries[slot(0x4000, 4)] = 0x3000 | table_flags | entry::large; // reserved at this level
  EXPECT_FALSE(translate({Gpa{0x4000}, 4}, address, tables));
  EXPECT_FALSE(translate({Gpa{0x4000}, 4}, address, [](Gpa) { return std::optional<std::uint64_t>(); }));
}

TEST(PageTableRoot, KernelHalfClearsTheIsolationBit) {
  const auto root = PageTableRoot::from_registers(0x0000000123457801, true);
  EXPECT_EQ(root.table, Gpa{0x123457000});
  EXPECT_EQ(root.kernel_half().table, Gpa{0x123456000});
  EXPECT_EQ(root.levels, 5);
}

} // namespace
} // namespace lararium::x86_64
