#include "elf_bytes.h"
#include "lararium/symbols/kernel_file.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <elf.h>
#include <gtest/gtest.h>
#include <lz4.h>
#include <zstd.h>

namespace lararium {
namespace {

constexpr std::uint64_t text_address = 0xffffffff81000000;

template <class T> void put(std::vector<std::byte> &out, std::size_t at, const T &value) {
  if (out.size() < at + sizeof value)
    out.resize(at + sizeof value);
  std::memcpy(out.data() + at, &value, sizeof value);
}

// A vmlinux of two sections and their names.
std::vector<std::byte> elf() {
  constexpr char names[] = "\0.text\0.notes\0.shstrtab";
  constexpr std::size_t text_at = 64, notes_at = 80, names_at = 128, table_at = 192;
  std::vector<std::byte> file;
  Elf64_Ehdr header = elf_header();
  header.e_shoff = table_at;
  header.e_shnum = 4;
  header.e_shstrndx = 3;
  put(file, 0, header);
  put(file, text_at, std::array<std::uint8_t, 4>{0xf3, 0x0f, 0x1e, 0xfa});
  put(file, notes_at, std::array<std::uint32_t, 3>{4, 20, 3});
  put(file, notes_at + 12, std::array<char, 4>{'G', 'N', 'U', 0});
  put(file, notes_at + 16,
      std::array<std::uint8_t, 20>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20});
  put(file, names_at, names);
  const auto section = [&](std::size_t number, std::uint32_t name, std::uint64_t flags, std::uint64_t address,
                           std::uint64_t offset, std::uint64_t size) {
    Elf64_Shdr entry{};
    entry.sh_name = name;
    entry.sh_type = SHT_PROGBITS;
    entry.sh_flags = flags;
    entry.sh_addr = address;
    entry.sh_offset = offset;
    entry.sh_size = size;
    put(file, table_at + number * sizeof entry, entry);
  };
  section(1, 1, SHF_ALLOC | SHF_EXECINSTR, text_address, text_at, 4);
  section(2, 7, SHF_ALLOC, text_address + 0x1000, notes_at, 36);
  section(3, 14, 0, 0, names_at, sizeof names);
  return file;
}

std::vector<std::byte> bz_image(const std::vector<std::byte> &packed) {
  constexpr std::size_t payload_at = 512 + 512 + 16;
  std::vector<std::byte> file(payload_at);
  put(file, 0x1f1, std::uint8_t{1});
  put(file, 0x202, std::uint32_t{0x53726448});
  put(file, 0x206, std::uint16_t{0x20f});
  put(file, 0x248, std::uint32_t{16});
  put(file, 0x24c, static_cast<std::uint32_t>(packed.size()));
  file.resize(payload_at + packed.size());
  std::ranges::copy(packed, file.begin() + payload_at);
  return file;
}

std::vector<std::byte> with_size(std::vector<std::byte> packed, std::size_t unpacked) {
  put(packed, packed.size(), static_cast<std::uint32_t>(unpacked)); // as the kernel's build does
  return packed;
}

std::vector<std::byte> zstd(const std::vector<std::byte> &plain) {
  std::vector<std::byte> out(ZSTD_compressBound(plain.size()));
  out.resize(ZSTD_compress(out.data(), out.size(), plain.data(), plain.size(), 3));
  return with_size(std::move(out), plain.size());
}

std::vector<std::byte> lz4(const std::vector<std::byte> &plain) {
  std::vector<std::byte> out(8 + static_cast<std::size_t>(LZ4_compressBound(static_cast<int>(plain.size()))));
  const int size =
      LZ4_compress_default(reinterpret_cast<const char *>(plain.data()), reinterpret_cast<char *>(out.data() + 8),
                           static_cast<int>(plain.size()), static_cast<int>(out.size() - 8));
  put(out, 0, std::uint32_t{0x184c2102});
  put(out, 4, static_cast<std::uint32_t>(size));
  out.resize(8 + static_cast<std::size_t>(size));
  return with_size(std::move(out), plain.size());
}

void expect_kernel(const std::vector<std::byte> &bytes) {
  const auto file = KernelFile::parse(bytes);
  ASSERT_TRUE(file) << file.error().describe();
  EXPECT_EQ(file->build_id().hex(), "0102030405060708090a0b0c0d0e0f1011121314");
  ASSERT_NE(file->section(".text"), nullptr);
  EXPECT_EQ(file->section(".text")->address, text_address);
  EXPECT_EQ(file->at(text_address + 1, 2).size(), 2U);
  EXPECT_EQ(file->at(text_address + 1, 2)[0], std::byte{0x0f});
  EXPECT_TRUE(file->at(text_address + 1, 4).empty());
  EXPECT_TRUE(file->at(text_address - 1, 2).empty());
  EXPECT_EQ(file->section(".shstrtab"), nullptr) << "it is not loaded";
}

TEST(KernelFile, PlainAndPackedInEveryWay) {
  expect_kernel(elf());
  expect_kernel(bz_image(with_size(gzip(elf()), elf().size())));
  expect_kernel(bz_image(zstd(elf())));
  expect_kernel(bz_image(lz4(elf())));
}

TEST(KernelFile, WhatIsNoKernelIsRefused) {
  const auto code_of = [](const std::vector<std::byte> &bytes) {
    const auto file = KernelFile::parse(bytes);
    return file ? ErrorCode::usage : file.error().code;
  };
  EXPECT_EQ(code_of({}), ErrorCode::unsupported);
  EXPECT_EQ(code_of(std::vector<std::byte>(4096)), ErrorCode::unsupported);
  EXPECT_EQ(code_of(bz_image({std::byte{'B'}, std::byte{'Z'}, std::byte{'h'}})), ErrorCode::unsupported);
  auto cut = bz_image(with_size(gzip(elf()), elf().size()));
  cut.resize(cut.size() - 40);
  EXPECT_EQ(code_of(cut), ErrorCode::corrupt);
  auto other = elf();
  put(other, offsetof(Elf64_Ehdr, e_machine), std::uint16_t{EM_AARCH64});
  EXPECT_EQ(code_of(other), ErrorCode::unsupported);
  for (std::size_t size = 0; size < elf().size(); ++size) {
    auto shorter = elf();
    shorter.resize(size);
    EXPECT_NE(code_of(shorter), ErrorCode::usage) << size;
  }
}

} // namespace
} // namespace lararium
