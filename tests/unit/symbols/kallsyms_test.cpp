#include "kallsyms_encoder.h"

#include <gtest/gtest.h>

#include <chrono>

namespace lararium {
namespace {

using namespace std::string_literals;
using test::kallsyms_eras;
using test::KallsymsEncoder;
using test::KallsymsEra;

void put(std::vector<std::byte> &bytes, std::size_t at, std::uint64_t value, std::size_t size) {
  std::memcpy(bytes.data() + at, &value, size);
}

class KallsymsEras : public testing::TestWithParam<KallsymsEra> {
protected:
  [[nodiscard]] static test::KallsymsImage make(std::size_t count = 3000, bool data = true) {
    KallsymsEncoder encoder(GetParam());
    return encoder.encode(encoder.invent(count, data));
  }
};

INSTANTIATE_TEST_SUITE_P(, KallsymsEras, testing::ValuesIn(kallsyms_eras),
                         [](const auto &era) { return era.param.name; });

TEST_P(KallsymsEras, EverySymbolComesBack) {
  const auto image = make();
  const auto kallsyms = Kallsyms::carve(image.bytes, image.base);
  ASSERT_TRUE(kallsyms) << kallsyms.error().describe();
  EXPECT_EQ(test::all_symbols(*kallsyms), image.symbols);
  EXPECT_TRUE(kallsyms->has_data_symbols());
  EXPECT_EQ(kallsyms->find("_stext")->value, image.base.value);
  EXPECT_FALSE(kallsyms->find("_stex"));

  const auto &layout = kallsyms->layout();
  EXPECT_EQ(layout.addresses_last, image.layout.addresses_last);
  EXPECT_EQ(layout.addresses, image.layout.addresses);
  EXPECT_EQ(layout.marker_size, image.layout.marker_size);
  EXPECT_EQ(layout.count, image.layout.count);
  EXPECT_EQ(layout.names, image.layout.names);
  EXPECT_EQ(layout.markers, image.layout.markers);
  EXPECT_EQ(layout.token_table, image.layout.token_table);
  EXPECT_EQ(layout.token_index, image.layout.token_index);
  EXPECT_EQ(layout.address_table, image.layout.address_table);
  EXPECT_EQ(layout.relative_base, image.layout.relative_base);
}

TEST_P(KallsymsEras, AnyCountOfSymbols) {
  // Counts around a marker's 256, and all paddings between the tables.
  for (std::size_t count = 1020; count < 1030; ++count) {
    const auto image = make(count);
    const auto kallsyms = Kallsyms::carve(image.bytes, image.base);
    ASSERT_TRUE(kallsyms) << count << ": " << kallsyms.error().describe();
    EXPECT_EQ(test::all_symbols(*kallsyms), image.symbols);
  }
}

TEST_P(KallsymsEras, LongNamesTellHowLengthsAreWritten) {
  KallsymsEncoder encoder(GetParam());
  auto symbols = encoder.invent(2000, true);
  // 128 codes and more: one length byte with its upper bit set, or two bytes. In blocks that a marker checks, and last.
  for (const std::size_t i : {300U, 301U, 1999U})
    symbols[i].name = std::string(GetParam().two_byte_lengths ? 400 + i % 2 : 150 + i % 2, 'q');
  const auto image = encoder.encode(symbols);
  const auto kallsyms = Kallsyms::carve(image.bytes, image.base);
  ASSERT_TRUE(kallsyms) << kallsyms.error().describe();
  EXPECT_EQ(test::all_symbols(*kallsyms), image.symbols);
  EXPECT_EQ(kallsyms->layout().two_byte_lengths, GetParam().two_byte_lengths);
}

TEST_P(KallsymsEras, WithoutKallsymsAllItSaysSo) {
  const auto image = make(3000, false);
  const auto kallsyms = Kallsyms::carve(image.bytes, image.base);
  ASSERT_TRUE(kallsyms) << kallsyms.error().describe();
  EXPECT_EQ(test::all_symbols(*kallsyms), image.symbols);
  EXPECT_FALSE(kallsyms->has_data_symbols());
}

TEST_P(KallsymsEras, TheTablesAloneAreEnough) {
  const auto image = make();
  const std::size_t start = image.tables & ~page_mask;
  const auto part = Bytes(image.bytes).subspan(start, image.tables_end - start);
  const auto kallsyms = Kallsyms::carve(part, image.base + start);
  ASSERT_TRUE(kallsyms) << kallsyms.error().describe();
  EXPECT_EQ(test::all_symbols(*kallsyms), image.symbols);
}

TEST_P(KallsymsEras, FewChangedAddressesAreTolerated) {
  auto image = make();
  const std::size_t size = GetParam().addresses == KallsymsAddresses::absolute ? 8 : 4;
  for (const std::size_t i : {700U, 1400U, 2100U})
    put(image.bytes, image.layout.address_table + i * size, 0x7000000012345678, size);
  const auto kallsyms = Kallsyms::carve(image.bytes, image.base);
  ASSERT_TRUE(kallsyms) << kallsyms.error().describe();
  auto symbols = test::all_symbols(*kallsyms);
  for (const std::size_t i : {700U, 1400U, 2100U})
    symbols[i] = image.symbols[i];
  EXPECT_EQ(symbols, image.symbols);
}

TEST_P(KallsymsEras, ContradictionsAreErrors) {
  const auto good = make();
  const auto error_of = [&](auto &&change) {
    auto image = good;
    change(image.bytes, image.layout);
    const auto kallsyms = Kallsyms::carve(image.bytes, image.base);
    return kallsyms ? "none"s : std::string(name_of(kallsyms.error().code));
  };
  const std::string corrupt(name_of(ErrorCode::corrupt)), not_found(name_of(ErrorCode::not_found));
  EXPECT_EQ(error_of([](auto &, auto &) {}), "none");
  EXPECT_EQ(error_of([](auto &bytes, auto &layout) { put(bytes, layout.token_index + 100, 0xffff, 2); }), not_found);
  EXPECT_EQ(error_of([](auto &bytes, auto &layout) { put(bytes, layout.token_table + 3, 0x1b, 1); }), not_found);
  EXPECT_EQ(error_of([](auto &bytes, auto &layout) { put(bytes, layout.count, 2999 + 512, 4); }), corrupt);
  EXPECT_EQ(error_of([](auto &bytes, auto &layout) { put(bytes, layout.count, 0xffffffff, 4); }), corrupt);
  EXPECT_EQ(error_of([](auto &bytes, auto &layout) { put(bytes, layout.names, 0, 1); }), corrupt);
  EXPECT_EQ(error_of([](auto &bytes, auto &layout) { put(bytes, layout.names, 0xffff, 2); }), corrupt);
  EXPECT_EQ(error_of([](auto &bytes, auto &layout) { bytes[layout.markers + 2 * layout.marker_size] ^= std::byte{1}; }),
            corrupt);
  EXPECT_EQ(error_of([](auto &bytes, auto &layout) {
              std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(layout.address_table), 4000, std::byte{0x5a});
            }),
            corrupt);
}

TEST_P(KallsymsEras, AnotherBaseIsNoticed) {
  const auto image = make();
  for (const std::uint64_t distance : {1ULL << 30, 1ULL << 36, 1ULL << 63}) {
    const auto kallsyms = Kallsyms::carve(image.bytes, image.base - distance);
    if (GetParam().addresses == KallsymsAddresses::place_relative)
      ASSERT_TRUE(kallsyms); // every address follows from the base: there is nothing to compare it with
    else
      ASSERT_FALSE(kallsyms);
  }
}

TEST_P(KallsymsEras, CutAnywhereItFailsCleanly) {
  const auto image = make(1100);
  for (std::size_t cut = image.tables; cut < image.tables_end; cut += 61) {
    // Copied, so that a sanitizer sees a read past the end.
    const std::vector<std::byte> part(image.bytes.begin(), image.bytes.begin() + static_cast<std::ptrdiff_t>(cut));
    if (const auto kallsyms = Kallsyms::carve(part, image.base)) {
      EXPECT_EQ(test::all_symbols(*kallsyms), image.symbols); // only seqs_of_names was cut
    }
  }
}

TEST(Kallsyms, NothingInNothing) {
  for (const std::size_t size : {0U, 1U, 7U, 15U, 16U, 4096U}) {
    const std::vector<std::byte> zeros(size);
    const auto kallsyms = Kallsyms::carve(zeros, KallsymsEncoder::base);
    ASSERT_FALSE(kallsyms);
    EXPECT_EQ(kallsyms.error().code, ErrorCode::not_found);
  }
  EXPECT_EQ(Kallsyms::carve({}, Gva{0xffffffff81000010}).error().code, ErrorCode::usage);
}

TEST(Kallsyms, APlantedTokenTableDoesNotHideTheRealOne) {
  KallsymsEncoder encoder(kallsyms_eras.back());
  auto image = encoder.encode(encoder.invent(3000, true));
  const auto &layout = image.layout;
  const std::size_t size = layout.token_index + 512 - layout.token_table;
  for (std::size_t at = 0; at + size < KallsymsEncoder::text_size && at < 10 * 4096; at += 4096)
    std::memcpy(image.bytes.data() + at, image.bytes.data() + layout.token_table, size);
  const auto kallsyms = Kallsyms::carve(image.bytes, image.base);
  ASSERT_TRUE(kallsyms) << kallsyms.error().describe();
  EXPECT_EQ(test::all_symbols(*kallsyms), image.symbols);
}

// Work is bounded: everywhere something that looks like markers, and counts that fit them.
TEST(Kallsyms, AHostileImageCostsBoundedTime) {
  KallsymsEncoder encoder(kallsyms_eras.back());
  const auto image = encoder.encode(encoder.invent(3000, true));
  const auto &layout = image.layout;
  const std::size_t size = layout.token_index + 512 - layout.token_table;
  std::vector<std::byte> hostile(24 << 20, std::byte{1});
  for (std::size_t at = 0; at + 64 < hostile.size(); at += 64) {
    for (const std::uint32_t i : {0U, 1U, 2U, 3U, 4U, 5U})
      put(hostile, at + 4 * i, 512 * i, 4);
    for (std::size_t i = 24; i < 64; i += 4)
      put(hostile, at + i, 6 * 256 - 1, 4);
  }
  for (std::size_t at = 1 << 20; at + size < hostile.size(); at += 1 << 20)
    std::memcpy(hostile.data() + at, image.bytes.data() + layout.token_table, size);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_FALSE(Kallsyms::carve(hostile, image.base));
  const auto seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  RecordProperty("seconds", std::to_string(seconds));
  EXPECT_LT(seconds, 10);
}

} // namespace
} // namespace lararium
