#include "lararium/symbols/vmcoreinfo.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

namespace lararium {
namespace {

using namespace std::string_literals;

const std::string sample = "OSRELEASE=6.1.0-50-amd64\n"
                           "BUILD-ID=06f8bde30046985060c60820f7a11515a33afb06\n"
                           "PAGESIZE=4096\n"
                           "SYMBOL(init_uts_ns)=ffffffff9b41ae40\n"
                           "OFFSET(uts_namespace.name)=0\n"
                           "SYMBOL(swapper_pg_dir)=ffffffff9b40e000\n"
                           "SYMBOL(_stext)=ffffffff99e00000\n"
                           "SIZE(list_head)=16\n"
                           "OFFSET(list_head.next)=8\n"
                           "LENGTH(zone.free_area)=11\n"
                           "NUMBER(phys_base)=-872415232\n"
                           "NUMBER(sme_mask)=18446744073709551615\n"
                           "NUMBER(PHYS_OFFSET)=0x40000000\n"
                           "SYMBOL(_stext)=1\n"
                           "KERNELOFFSET=18e00000\n"
                           "NUMBER(KERNEL_IMAGE_SIZE)=1073741824\n";

std::vector<std::byte> as_note(const std::string &text) {
  std::vector<std::byte> note(24 + text.size());
  const std::uint32_t header[3] = {11, static_cast<std::uint32_t>(text.size()), 0};
  std::memcpy(note.data(), header, sizeof header);
  std::memcpy(note.data() + 12, "VMCOREINFO", 11);
  std::memcpy(note.data() + 24, text.data(), text.size());
  return note;
}

TEST(Vmcoreinfo, EveryKindOfLine) {
  const auto info = Vmcoreinfo::parse(sample);
  ASSERT_TRUE(info) << info.error().describe();
  EXPECT_EQ(info->release(), "6.1.0-50-amd64");
  EXPECT_EQ(info->build_id()->hex(), "06f8bde30046985060c60820f7a11515a33afb06");
  EXPECT_EQ(info->guest_page_size(), 4096U);
  EXPECT_EQ(info->kernel_offset(), 0x18e00000U);
  EXPECT_EQ(info->symbol("swapper_pg_dir"), Gva{0xffffffff9b40e000});
  EXPECT_EQ(info->symbol("_stext"), Gva{0xffffffff99e00000}); // the first of two
  EXPECT_EQ(info->size("list_head"), 16U);
  EXPECT_EQ(info->offset("list_head.next"), 8U);
  EXPECT_EQ(info->length("zone.free_area"), 11U);
  EXPECT_EQ(static_cast<std::int64_t>(*info->number("phys_base")), -872415232);
  EXPECT_EQ(info->number("sme_mask"), UINT64_MAX);
  EXPECT_EQ(info->number("PHYS_OFFSET"), 0x40000000U);
  EXPECT_EQ(info->value("OFFSET(uts_namespace.name)"), "0");
  EXPECT_FALSE(info->crash_time());
  EXPECT_FALSE(info->symbol("_stex"));
  EXPECT_FALSE(info->symbol(""));
  EXPECT_FALSE(info->offset("list_head"));
}

TEST(Vmcoreinfo, ReadsTextAndNotes) {
  auto page = std::vector<std::byte>(4096);
  std::memcpy(page.data(), sample.data(), sample.size());
  EXPECT_EQ(vmcoreinfo_text_offset(Bytes(page).first(64)), 0U);
  ASSERT_TRUE(Vmcoreinfo::read(page));
  EXPECT_EQ(Vmcoreinfo::read(page)->text(), sample);

  auto note = as_note(sample);
  note.resize(note.size() + 100, std::byte{'x'}); // what follows the note is not of it
  EXPECT_EQ(vmcoreinfo_text_offset(Bytes(note).first(64)), 24U);
  ASSERT_TRUE(Vmcoreinfo::read(note));
  EXPECT_EQ(Vmcoreinfo::read(note)->text(), sample);

  note[0] = std::byte{12};
  EXPECT_FALSE(vmcoreinfo_text_offset(note));
  EXPECT_EQ(Vmcoreinfo::read(note).error().code, ErrorCode::not_found);
  EXPECT_FALSE(vmcoreinfo_text_offset({}));
  EXPECT_FALSE(vmcoreinfo_text_offset(bytes_of("OSRELEASE")));
}

TEST(Vmcoreinfo, RefusesWhatIsNotPlausible) {
  const auto with = [](const std::string &from, const std::string &to) {
    auto text = sample;
    for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
      text.replace(at, from.size(), to);
    return text;
  };
  EXPECT_TRUE(Vmcoreinfo::parse(with("6.1.0-50-amd64", "5.14.0-427.13.1.el9_4.x86_64+debug")));
  for (const auto &text : {
           ""s,
           "OSRELEASE="s,
           "OSRELEASE=6.1\n"s,
           with("6.1.0-50-amd64", "%s"),
           with("6.1.0-50-amd64", "6."),
           with("6.1.0-50-amd64", "6.1 rm -rf"),
           with("6.1.0-50-amd64", "6.1" + std::string(80, 'a')),
           with("PAGESIZE=4096", "PAGESIZE=4095"),
           with("PAGESIZE=4096", "PAGESIZE=0"),
           with("PAGESIZE=4096", "PAGESIZE=18446744073709551616"),
           with("SYMBOL", "SYMBAL"),
           with("=ffff", "=wwww"),
           with("SIZE(list_head)=16", "SIZE(list_head)"),
           with("SIZE(list_head)=16", "\x1b[31m=16"),
           sample + std::string(Vmcoreinfo::max_text, 'a'),
           sample +
               [] {
                 std::string lines;
                 for (std::size_t i = 0; i < Vmcoreinfo::max_lines; ++i)
                   lines += "a=b\n";
                 return lines;
               }(),
       })
    EXPECT_FALSE(Vmcoreinfo::parse(text)) << text.substr(0, 100);
}

TEST(Vmcoreinfo, OddNumbersAreNothing) {
  for (const auto *value : {"", "-", "0x", "12k", "0x12g", "99999999999999999999", " 5", "+5"}) {
    const auto info = Vmcoreinfo::parse(sample + "NUMBER(odd)=" + value + "\n");
    ASSERT_TRUE(info);
    EXPECT_FALSE(info->number("odd")) << value;
  }
  EXPECT_FALSE(Vmcoreinfo::parse("OSRELEASE=6.1\nPAGESIZE=4096\nBUILD-ID=abc\nSYMBOL(a)=1\nSYMBOL(b)=2\nSYMBOL(c)=3\n")
                   ->build_id());
}

} // namespace
} // namespace lararium
