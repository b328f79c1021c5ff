#include "elf_image.h"

#include <elf.h>
#include <gtest/gtest.h>

#include <cstring>

namespace lararium::linux_guest {
namespace {

struct Sample {
  Elf64_Ehdr header{};
  Elf64_Phdr segments[2]{};
  Sample() {
    std::memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = ELFCLASS64;
    header.e_ident[EI_DATA] = ELFDATA2LSB;
    header.e_type = ET_DYN;
    header.e_machine = EM_X86_64;
    header.e_entry = 0x1040;
    header.e_phoff = sizeof header;
    header.e_phentsize = sizeof segments[0];
    header.e_phnum = 2;
    segments[0] = {PT_LOAD, PF_R, 0, 0, 0, 0x800, 0x800, 0x1000};
    segments[1] = {PT_LOAD, PF_R | PF_X, 0x1000, 0x1000, 0x1000, 0x300, 0x400, 0x1000};
  }
  [[nodiscard]] Bytes bytes() const { return std::as_bytes(std::span(this, 1)); }
};

TEST(ElfImage, SegmentOfTheEntry) {
  const Sample sample;
  const auto image = parse_elf_image(sample.bytes());
  ASSERT_TRUE(image);
  ASSERT_EQ(image->segments.size(), 2u);
  const ElfSegment *segment = image->segment_of(image->entry);
  ASSERT_NE(segment, nullptr);
  EXPECT_TRUE(segment->executable);
  EXPECT_EQ(segment->file_offset, 0x1000u);
  EXPECT_EQ(image->segment_of(0x1300), nullptr); // beyond what the file has
  EXPECT_EQ(image->segment_of(0xfff), nullptr);
}

TEST(ElfImage, WhatIsCutOffIsNone) {
  const Sample sample;
  for (std::size_t size = 0; size < sizeof sample; ++size)
    EXPECT_FALSE(parse_elf_image(sample.bytes().first(size))) << size;
}

TEST(ElfImage, WhatContradictsItselfIsNone) {
  const auto rejected = [](auto change) {
    Sample sample;
    change(sample);
    return !parse_elf_image(sample.bytes());
  };
  EXPECT_TRUE(rejected([](Sample &s) { s.header.e_ident[0] = 0; }));
  EXPECT_TRUE(rejected([](Sample &s) { s.header.e_ident[EI_CLASS] = ELFCLASS32; }));
  EXPECT_TRUE(rejected([](Sample &s) { s.header.e_phoff = UINT64_MAX; }));
  EXPECT_TRUE(rejected([](Sample &s) { s.header.e_phnum = 65535; }));
  EXPECT_TRUE(rejected([](Sample &s) { s.segments[1].p_memsz = UINT64_MAX; }));
  EXPECT_TRUE(rejected([](Sample &s) { s.segments[1].p_offset = UINT64_MAX; }));
  EXPECT_TRUE(rejected([](Sample &s) { s.segments[1].p_filesz = 0x401; }));
}

} // namespace
} // namespace lararium::linux_guest
