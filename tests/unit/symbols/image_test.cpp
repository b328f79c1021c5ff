#include "lararium/symbols/elf_note.h"
#include "lararium/symbols/linux_banner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <elf.h>
#include <string>

namespace lararium {
namespace {

using namespace std::string_literals;

class Image {
public:
  explicit Image(std::size_t size) : bytes(size) {}

  void put(std::size_t at, const void *data, std::size_t size) { std::memcpy(bytes.data() + at, data, size); }
  void put(std::size_t at, const std::string &text) { put(at, text.data(), text.size()); }
  // Returns where the note ends.
  std::size_t note(std::size_t at, const std::string &owner, std::uint32_t type, const std::string &content) {
    const Elf64_Nhdr header{static_cast<std::uint32_t>(owner.size() + 1), static_cast<std::uint32_t>(content.size()),
                            type};
    put(at, &header, sizeof header);
    put(at + 12, owner);
    const std::size_t descriptor = at + 12 + (owner.size() + 4) / 4 * 4;
    put(descriptor, content);
    return descriptor + (content.size() + 3) / 4 * 4;
  }
  void elf(std::size_t at, std::size_t notes_offset, std::size_t notes_size) {
    Elf64_Ehdr header{};
    std::memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = ELFCLASS64;
    header.e_phoff = sizeof header;
    header.e_phentsize = sizeof(Elf64_Phdr);
    header.e_phnum = 1;
    Elf64_Phdr segment{};
    segment.p_type = PT_NOTE;
    segment.p_offset = notes_offset;
    segment.p_filesz = notes_size;
    put(at, &header, sizeof header);
    put(at + sizeof header, &segment, sizeof segment);
  }

  std::vector<std::byte> bytes;
};

TEST(BuildIds, TheKernelsOwnIsChosen) {
  Image image(256 * 1024);
  image.elf(0x4000, 0x200, 0x60);
  image.note(image.note(0x4200, "Linux", 0, "\1\1\1\1"), "GNU", NT_GNU_BUILD_ID, "vdso-vdso-vdso-vdso-");
  image.note(0x9000, "GNU", NT_GNU_BUILD_ID, "stray-stray-stray-st");
  image.note(image.note(0x20000, "GNU", NT_GNU_BUILD_ID, "kernel-kernel-kernel"), "Linux", 0x101, "\0\0\0\0"s);

  const auto notes = find_build_ids(image.bytes);
  ASSERT_EQ(notes.size(), 3U);
  EXPECT_TRUE(notes[0].in_elf_file);
  EXPECT_TRUE(notes[0].beside_linux);
  EXPECT_FALSE(notes[1].in_elf_file);
  EXPECT_FALSE(notes[1].beside_linux);
  EXPECT_FALSE(notes[2].in_elf_file);
  EXPECT_TRUE(notes[2].beside_linux);
  EXPECT_EQ(notes[2].offset, 0x20010U);
  EXPECT_EQ(notes[2].id.size, 20);
  EXPECT_EQ(choose_build_id(notes), &notes[2]);
  EXPECT_EQ(choose_build_id(notes, notes[1].id), &notes[1]);
  const std::vector<BuildIdNote> without_it(notes.begin(), notes.begin() + 2);
  EXPECT_EQ(choose_build_id(without_it), &without_it[1]);
}

TEST(BuildIds, OddNotesAreNone) {
  Image image(8192);
  image.note(0, "GNU", NT_GNU_BUILD_ID, "short");
  image.note(0x100, "GNU", NT_GNU_BUILD_ID, std::string(36, 'l'));
  image.note(0x200, "GNU", NT_GNU_ABI_TAG, std::string(16, 't'));
  image.note(0x302, "GNU", NT_GNU_BUILD_ID, std::string(20, 'u')); // not aligned
  image.put(0x400, "GNU\0"s);
  image.note(8192 - 16 - 12, "GNU", NT_GNU_BUILD_ID, std::string(12, 'c'));
  const std::uint32_t longer = 20;
  image.put(8192 - 16 - 12 + 4, &longer, 4); // leaves the image
  EXPECT_TRUE(find_build_ids(image.bytes).empty());
  EXPECT_EQ(choose_build_id({}), nullptr);
  EXPECT_TRUE(find_build_ids({}).empty());
}

TEST(BuildIds, NoMoreThanAsked) {
  Image image(65536);
  for (std::size_t at = 0; at < 65536; at += 64)
    image.note(at, "GNU", NT_GNU_BUILD_ID, std::string(20, 'x'));
  EXPECT_EQ(find_build_ids(image.bytes).size(), 64U);
  EXPECT_EQ(find_build_ids(image.bytes, 3).size(), 3U);
}

TEST(LinuxBanner, OnlyTheBannerItself) {
  Image image(8192);
  image.put(100, "%s version %s (builder@host) %s\n");
  image.put(300, "Linux version %s");
  image.put(500, "Linux version 6.1.0 without an end");
  image.put(700, "Linux version 6.1.0 with a \x1b in it\n");
  const std::string banner = "Linux version 6.1.0-50-amd64 (builder@host) (gcc-12) #1 SMP";
  image.put(901, banner + "\n");
  const auto found = find_linux_banner(image.bytes);
  ASSERT_TRUE(found);
  EXPECT_EQ(found->offset, 901U);
  EXPECT_EQ(found->text, banner);
  EXPECT_EQ(read_linux_banner(Bytes(image.bytes).subspan(901)), banner);
  EXPECT_FALSE(read_linux_banner(Bytes(image.bytes).subspan(900)));
  EXPECT_FALSE(find_linux_banner(Bytes(image.bytes).first(901 + banner.size() + 1))); // the NUL is outside
  EXPECT_FALSE(find_linux_banner({}));
}

TEST(LinuxBanner, TheOneWithTheBuildsNumber) {
  Image image(8192);
  const std::string placeholder = "Linux version 6.1.0-50-amd64 (builder@host) (gcc-12) # SMP PREEMPT_DYNAMIC ";
  const std::string banner =
      "Linux version 6.1.0-50-amd64 (builder@host) (gcc-12) #1 SMP PREEMPT_DYNAMIC Debian 6.1.1-1";
  image.put(100, placeholder + "\n");
  EXPECT_EQ(find_linux_banner(image.bytes)->text, placeholder);
  image.put(500, banner + "\n");
  image.put(900, banner + " of another\n");
  EXPECT_EQ(find_linux_banner(image.bytes)->text, banner);
}

} // namespace
} // namespace lararium
