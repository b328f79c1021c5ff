#include "lararium/os/linux/xarray.h"

#include "fake_kernel.h"

#include <gtest/gtest.h>
#include <tuple>
#include <vector>

namespace lararium::linux_guest {
namespace {

using lararium::test::BtfBuilder;
using test::direct_map;
using test::FakeKernel;

std::vector<std::byte> types() {
  BtfBuilder btf;
  const auto byte = btf.integer("unsigned char", 1), word = btf.integer("unsigned int", 4);
  const auto pointer = btf.pointer(0), slots = btf.array(pointer, 64);
  btf.structure("xa_node", 576,
                {{"shift", byte, 0}, {"offset", byte, 8}, {"parent", pointer, 64}, {"slots", slots, 40 * 8}});
  const auto tree = btf.structure("xarray", 16, {{"xa_head", pointer, 64}});
  btf.structure("idr", 24, {{"idr_rt", tree, 0}, {"idr_base", word, 128}});
  return btf.bytes();
}

constexpr Gva tree = direct_map + 0x1000;
constexpr std::uint64_t retry_entry = 256 << 2 | 2, zero_entry = 257 << 2 | 2;
constexpr std::uint64_t value(std::uint64_t number) { return number << 1 | 1; }
constexpr std::uint64_t sibling(std::uint64_t slot) { return slot << 2 | 2; }
constexpr std::uint64_t as_node(Gva node) { return node.value | 2; }

class Xarray : public ::testing::Test {
protected:
  FakeKernel fake{types()};

  Gva node(Gva at, std::uint8_t shift, std::uint8_t offset, Gva parent) {
    fake.put(at, shift);
    fake.put(at + 1, offset);
    fake.put(at + 8, parent.value);
    return at;
  }
  void slot(Gva node, unsigned index, std::uint64_t entry) { fake.put(node + 40 + 8 * index, entry); }
  void head(std::uint64_t entry) { fake.put(tree + 8, entry); }

  using Entry = std::tuple<std::uint64_t, std::uint64_t, std::uint64_t, bool>;
  std::vector<Entry> entries;
  WalkResult walk(std::size_t limit = 1000) {
    entries.clear();
    const auto reader = XarrayReader::create(*fake.kernel);
    EXPECT_TRUE(reader) << reader.error().message;
    return reader->for_each(tree, limit, [&](const XarrayEntry &e) {
      entries.emplace_back(e.index, e.count, e.value, e.is_value);
      return true;
    });
  }
};

constexpr std::uint64_t object = 0xffff888000300000;

TEST_F(Xarray, OneEntryNeedsNoNode) {
  EXPECT_TRUE(walk().consistent());
  EXPECT_TRUE(entries.empty());
  head(object);
  EXPECT_TRUE(walk().consistent());
  EXPECT_EQ(entries, (std::vector<Entry>{{0, 1, object, false}}));
  head(value(7));
  walk();
  EXPECT_EQ(entries, (std::vector<Entry>{{0, 1, 7, true}}));
}

TEST_F(Xarray, WalksLevelsSiblingsAndReservedSlots) {
  const Gva root = node(direct_map + 0x2000, 6, 0, {}), low = node(direct_map + 0x3000, 0, 0, root),
            high = node(direct_map + 0x4000, 0, 3, root);
  head(as_node(root));
  slot(root, 0, as_node(low));
  slot(root, 1, object + 64); // a leaf above the lowest level covers all that is below
  slot(root, 3, as_node(high));
  slot(low, 2, object);
  slot(low, 4, object + 8);
  slot(low, 5, sibling(4));
  slot(low, 6, sibling(4));
  slot(low, 8, retry_entry);
  slot(low, 9, zero_entry);
  slot(low, 10, sibling(3)); // of nothing
  slot(high, 63, value(99));
  const auto result = walk();
  EXPECT_TRUE(result.consistent());
  EXPECT_EQ(result.visited, 4U);
  EXPECT_EQ(
      entries,
      (std::vector<Entry>{
          {2, 1, object, false}, {4, 3, object + 8, false}, {64, 64, object + 64, false}, {3 * 64 + 63, 1, 99, true}}));
}

TEST_F(Xarray, IdrAddsItsBase) {
  fake.put(tree + 16, std::uint32_t{5});
  head(object);
  const auto reader = XarrayReader::create(*fake.kernel);
  ASSERT_TRUE(reader);
  std::uint64_t id = 0;
  reader->for_each_of_idr(tree, 10, [&](const XarrayEntry &e) {
    id = e.index;
    return true;
  });
  EXPECT_EQ(id, 5U);
}

TEST_F(Xarray, FindsOneOfAnIdr) {
  fake.put(tree + 16, std::uint32_t{1});
  const auto reader = XarrayReader::create(*fake.kernel);
  ASSERT_TRUE(reader);
  const auto find = [&](std::uint64_t id) { return reader->find_in_idr(tree, id); };
  EXPECT_FALSE(find(1)->has_value());
  head(object);
  EXPECT_EQ(find(1)->value(), Gva{object});
  EXPECT_FALSE(find(0)->has_value()); // below its base
  EXPECT_FALSE(find(2)->has_value());
  const Gva root = node(direct_map + 0x2000, 6, 0, {}), low = node(direct_map + 0x3000, 0, 3, root);
  head(as_node(root));
  slot(root, 3, as_node(low));
  slot(low, 7, object + 8);
  slot(low, 8, value(7));
  EXPECT_EQ(find(1 + 3 * 64 + 7)->value(), Gva{object + 8});
  for (const std::uint64_t id :
       {std::uint64_t{1}, std::uint64_t{1 + 3 * 64 + 8}, std::uint64_t{1 + 64 * 64}, UINT64_MAX})
    EXPECT_FALSE(find(id)->has_value()) << id;
  node(low, 0, 4, root); // elsewhere
  EXPECT_FALSE(find(1 + 3 * 64 + 7));
  slot(root, 3, as_node(root)); // a circle
  EXPECT_FALSE(find(1 + 3 * 64 + 7));
}

TEST_F(Xarray, StopsAtTheLimitAndWhenAsked) {
  const Gva root = node(direct_map + 0x2000, 0, 0, {});
  head(as_node(root));
  for (unsigned i = 0; i < 64; ++i)
    slot(root, i, object);
  EXPECT_EQ(walk(10).end, WalkEnd::limit);
  EXPECT_EQ(entries.size(), 10U);
  const auto reader = XarrayReader::create(*fake.kernel);
  EXPECT_EQ(reader->for_each(tree, 100, [](const XarrayEntry &) { return false; }).end, WalkEnd::stopped);
}

TEST_F(Xarray, NodesThatAreElsewhereAreNotFollowed) {
  const Gva root = node(direct_map + 0x2000, 6, 0, {}), child = node(direct_map + 0x3000, 0, 1, root);
  head(as_node(root));
  slot(child, 0, object);
  for (unsigned i = 0; i < 64; ++i)
    slot(root, i, as_node(child)); // only slot 1 is its own
  const auto result = walk();
  EXPECT_EQ(entries.size(), 1U);
  EXPECT_EQ(result.mismatches, 63U);

  slot(root, 1, as_node(root)); // a circle
  EXPECT_FALSE(walk().consistent());
  EXPECT_TRUE(entries.empty());
  head(as_node(Gva{0xffffc00000000000})); // not mapped
  EXPECT_EQ(walk().mismatches, 1U);
  node(root, 255, 0, {});
  head(as_node(root));
  EXPECT_EQ(walk().mismatches, 1U);
}

} // namespace
} // namespace lararium::linux_guest
