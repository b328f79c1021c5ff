#include "samples.h"

#include "lararium/driver/dump.h"

#include <gtest/gtest.h>

namespace lararium {
namespace {

using namespace samples;

std::vector<std::uint64_t> numbers(std::uint64_t first, std::uint64_t last) {
  std::vector<std::uint64_t> result;
  for (; first < last; ++first)
    result.push_back(first);
  return result;
}

KdumpOptions whole(Packing packing) {
  KdumpOptions options;
  options.packing = packing;
  options.present = numbers(0, 5);
  for (const std::uint64_t number : numbers(200, 260))
    options.present.push_back(number);
  options.stored = options.present;
  return options;
}

std::vector<Packing> packings() {
  std::vector<Packing> all = {Packing::none, Packing::zlib, Packing::snappy, Packing::zstd};
  if (LARARIUM_LZO)
    all.push_back(Packing::lzo);
  return all;
}

TEST(Kdump, EveryCompressionPlainAndFlattened) {
  for (const Packing packing : packings())
    for (const std::size_t record : {std::size_t{0}, std::size_t{1000}, std::size_t{16384}}) {
      const Image plain = kdump(whole(packing));
      const Image image = record == 0 ? plain : flatten(plain, record);
      const auto target = open_dump_image(image, "x");
      ASSERT_TRUE(target) << target.error().describe();
      EXPECT_TRUE(target->identity.memory_access.starts_with("kdump ("));
      EXPECT_EQ(target->identity.memory_access.ends_with(", flattened)"), record != 0);
      EXPECT_EQ(target->identity.architecture, Architecture::x86_64);
      const PhysicalMemory &memory = *target->memory;
      ASSERT_EQ(memory.ranges().size(), 2U);
      EXPECT_EQ(memory.ranges()[1].base, Gpa{200 * page_size});
      EXPECT_EQ(memory.total_size(), 65 * page_size);
      for (int round = 0; round < 2; ++round) // the second from the cache
        for (const std::uint64_t number : whole(packing).stored)
          EXPECT_TRUE(has_page(memory, number * page_size, number)) << number;
      Image two(2 * page_size - 200);
      ASSERT_TRUE(memory.read(Gpa{page_size + 100}, two));
      EXPECT_EQ(two[page_size - 100], page(2)[0]);
      EXPECT_TRUE(unreadable(memory, 5 * page_size));
      EXPECT_TRUE(unreadable(memory, 260 * page_size));
      EXPECT_TRUE(unreadable(memory, UINT64_MAX));
      EXPECT_EQ(target->limitations.size(), 1U); // no registers
    }
}

TEST(Kdump, ReadsNotesAndVmcoreinfo) {
  KdumpOptions options = whole(Packing::zlib);
  options.vmcoreinfo = "OSRELEASE=6.1\n";
  options.notes = qemu_note(0x33, 0x1000, 0x77);
  const Image image = kdump(options);
  const auto target = open_dump_image(image, "x");
  ASSERT_TRUE(target);
  EXPECT_EQ(target->hints.vmcoreinfo, "OSRELEASE=6.1\n");
  EXPECT_EQ(target->vcpus->registers()->front().cr3, 0x1000U);
  EXPECT_TRUE(target->limitations.empty());
}

TEST(Kdump, TheMachineIsKnownByItsNotesToo) {
  KdumpOptions options = whole(Packing::zlib);
  options.notes = qemu_note(0x33, 0x1000, 0x77);
  Image image = kdump(options);
  const std::size_t machine = 12 + 4 * 65;
  std::memcpy(image.data() + machine, "Unknown", 8);
  const auto unknown = open_dump_image(image, "x");
  ASSERT_TRUE(unknown);
  EXPECT_EQ(unknown->identity.architecture, Architecture::x86_64);
  EXPECT_NE(unknown->vcpus, nullptr);
  std::memcpy(image.data() + machine, "aarch64", 8);
  const auto arm = open_dump_image(image, "x");
  ASSERT_TRUE(arm);
  EXPECT_EQ(arm->identity.architecture, Architecture::aarch64);
  EXPECT_EQ(arm->vcpus, nullptr);
}

TEST(Kdump, ExcludedPages) {
  KdumpOptions options = whole(Packing::zlib);
  options.stored = {0, 2, 4, 210};
  for (const std::int32_t level : {0, 1, 30, 31}) {
    options.dump_level = level;
    const Image image = kdump(options);
    const auto target = open_dump_image(image, "x");
    ASSERT_TRUE(target);
    for (const std::uint64_t number : options.stored)
      EXPECT_TRUE(has_page(*target->memory, number * page_size, number));
    // Only where zero pages were left out can a page that is not there be one.
    EXPECT_EQ(unreadable(*target->memory, page_size), (level & 1) == 0);
    if ((level & 1) != 0) {
      EXPECT_TRUE(has_zeros(*target->memory, page_size, page_size));
    }
    EXPECT_TRUE(unreadable(*target->memory, 6 * page_size));
    EXPECT_EQ(mentions(*target, "left out"), level > 1);
    EXPECT_EQ(target->memory->populated(Gpa{0}, UINT64_MAX).size(), 4U);
    EXPECT_EQ(target->memory->populated(Gpa{page_size}, page_size + 10).size(), 1U);
  }
}

TEST(Kdump, PartOfASplitDump) {
  KdumpOptions options = whole(Packing::zlib);
  options.split_start = 3;
  options.split_end = 230;
  const Image image = kdump(options);
  const auto target = open_dump_image(image, "x");
  ASSERT_TRUE(target);
  EXPECT_TRUE(unreadable(*target->memory, 2 * page_size));
  EXPECT_TRUE(has_page(*target->memory, 3 * page_size, 3));
  EXPECT_TRUE(has_page(*target->memory, 229 * page_size, 229));
  EXPECT_TRUE(unreadable(*target->memory, 230 * page_size));
  EXPECT_TRUE(mentions(*target, "split"));
  const auto populated = target->memory->populated(Gpa{0}, UINT64_MAX);
  ASSERT_EQ(populated.size(), 2U);
  EXPECT_EQ(populated[1].size, 30 * page_size);
}

TEST(Kdump, TruncatedAndIncomplete) {
  const Image good = kdump(whole(Packing::none));
  Image cut = good;
  cut.resize(cut.size() - 10 * page_size);
  const auto target = open_dump_image(cut, "x");
  ASSERT_TRUE(target);
  EXPECT_TRUE(has_page(*target->memory, 249 * page_size, 249));
  EXPECT_TRUE(unreadable(*target->memory, 250 * page_size));
  EXPECT_TRUE(mentions(*target, "cut short"));

  const Image flat = flatten(good, 4096, false);
  EXPECT_TRUE(mentions(*open_dump_image(flat, "x"), "incomplete"));
  KdumpOptions options = whole(Packing::none);
  options.status = 8;
  const Image marked = kdump(options);
  EXPECT_TRUE(mentions(*open_dump_image(marked, "x"), "incomplete"));
}

TEST(Kdump, EveryTruncationIsHandled) {
  const Image plain = kdump(whole(Packing::zlib));
  for (const Image &image : {plain, flatten(plain, 3000)})
    for (std::size_t size = 0; size < image.size(); size += 97)
      if (const auto target = open_dump_image(Bytes(image).first(size), "x")) {
        EXPECT_TRUE(unreadable(*target->memory, 260 * page_size));
      }
}

TEST(Kdump, DamagedPagesFail) {
  const Image good = kdump(whole(Packing::zlib));
  const std::size_t descriptors = 4 * page_size;
  for (const std::uint32_t size : {0U, 1U, 5U, 100000U, 0xffffffffU}) {
    Image bad = good;
    put_value(bad, descriptors + 8, size);
    const auto target = open_dump_image(bad, "x");
    ASSERT_TRUE(target);
    EXPECT_TRUE(unreadable(*target->memory, 0));
    EXPECT_TRUE(unreadable(*target->memory, 0)); // not from the cache either
    EXPECT_TRUE(has_page(*target->memory, page_size, 1));
  }
  for (const std::uint64_t offset : {std::uint64_t{0}, std::uint64_t{4096}, UINT64_MAX, UINT64_MAX - 4095}) {
    Image bad = good;
    put_value(bad, descriptors, offset);
    const auto target = open_dump_image(bad, "x");
    ASSERT_TRUE(target);
    EXPECT_TRUE(unreadable(*target->memory, 0));
  }
  for (const std::uint32_t flags : {2U, 4U, 0x20U, 3U, 0x27U}) {
    Image bad = good;
    put_value(bad, descriptors + 12, flags);
    const auto target = open_dump_image(bad, "x");
    ASSERT_TRUE(target);
    EXPECT_TRUE(unreadable(*target->memory, 0));
  }
}

TEST(Kdump, ImpossibleHeadersAreRefused) {
  const Image good = kdump(whole(Packing::zlib));
  const auto refused = [&](std::size_t offset, auto value) {
    Image bad = good;
    put_value(bad, offset, value);
    return !open_dump_image(bad, "x");
  };
  EXPECT_TRUE(refused(8, std::int32_t{0}));     // version
  EXPECT_TRUE(refused(428, std::int32_t{512})); // block size
  EXPECT_TRUE(refused(428, std::int32_t{-4096}));
  EXPECT_TRUE(refused(428, std::int32_t{5000}));
  EXPECT_TRUE(refused(432, std::int32_t{-1})); // sub header
  EXPECT_TRUE(refused(432, std::int32_t{0x7fffffff}));
  EXPECT_TRUE(refused(436, std::uint32_t{0})); // bitmaps
  EXPECT_TRUE(refused(436, std::uint32_t{0xffffffff}));
  EXPECT_TRUE(refused(page_size + 96, std::uint64_t{0})); // pages
  EXPECT_TRUE(refused(424, std::uint32_t{3}));            // two compressions at once
}

TEST(Kdump, AHostileBitmapGivesFewRanges) {
  KdumpOptions options;
  options.packing = Packing::none;
  for (std::uint64_t i = 0; i < 400000; ++i)
    options.present.push_back(2 * i);
  options.stored = {0};
  const Image image = kdump(options);
  const auto target = open_dump_image(image, "x");
  ASSERT_TRUE(target);
  EXPECT_LE(target->memory->ranges().size(), 65536U);
}

TEST(Flattened, LaterRecordsWin) {
  // makedumpfile writes its header twice.
  const Image good = kdump(whole(Packing::zlib));
  Image flat = flatten(good, 4096, false);
  Image late = page(0);
  append_value(flat, std::byteswap(std::uint64_t{0}));
  append_value(flat, std::byteswap(std::uint64_t{8}));
  append(flat, bytes_of("BROKEN!!"));
  append_value(flat, UINT64_MAX);
  append_value(flat, UINT64_MAX);
  EXPECT_FALSE(open_dump_image(flat, "x"));
  Image ok = flatten(good, 4096, false);
  append_value(ok, std::byteswap(std::uint64_t{2}));
  append_value(ok, std::byteswap(std::uint64_t{4}));
  append(ok, bytes_of("UMP "));
  append_value(ok, UINT64_MAX);
  append_value(ok, UINT64_MAX);
  const auto target = open_dump_image(ok, "x");
  ASSERT_TRUE(target) << target.error().describe();
  EXPECT_TRUE(has_page(*target->memory, 259 * page_size, 259));
}

TEST(Flattened, ImpossibleRecordsAreRefused) {
  const Image good = flatten(kdump(whole(Packing::zlib)), 4096);
  for (const std::uint64_t value : {std::uint64_t{0}, std::uint64_t{1} << 63, UINT64_MAX}) {
    Image bad = good;
    put_value(bad, 4096 + 8, std::byteswap(value));
    EXPECT_FALSE(open_dump_image(bad, "x"));
  }
  Image version = good;
  put_value(version, 24, std::byteswap(std::uint64_t{2}));
  EXPECT_EQ(open_dump_image(version, "x").error().code, ErrorCode::unsupported);
  EXPECT_FALSE(open_dump_image(Bytes(good).first(4096), "x"));
}

} // namespace
} // namespace lararium
