#include "code_leads.h"

#include <gtest/gtest.h>
#include <initializer_list>
#include <string>
#include <vector>

namespace lararium::detect {
namespace {

constexpr Gva text{0xffffffff81000000}, text_end{0xffffffff82000000};

std::vector<Lead> leads(std::initializer_list<unsigned> values) {
  std::vector<std::byte> bytes;
  for (const unsigned value : values)
    bytes.push_back(static_cast<std::byte>(value));
  std::vector<Lead> result;
  step_through(bytes, text, text, text_end, [&](const Lead &lead) { result.push_back(lead); });
  return result;
}

TEST(CodeLeads, StayInTheText) {
  EXPECT_TRUE(leads({0xe8, 0, 0, 0, 0, 0xe9, 0, 0x10, 0, 0, 0x74, 0x05, 0xc3}).empty());
}

TEST(CodeLeads, DirectJumpAtEntry) {
  const auto found = leads({0xf3, 0x0f, 0x1e, 0xfa, 0xe9, 0, 0, 0, 0x10});
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].site, text + 4);
  EXPECT_EQ(found[0].length, 5);
  EXPECT_EQ(found[0].target, text + 9 + 0x10000000);
  EXPECT_TRUE(found[0].at_entry);
  EXPECT_STREQ(found[0].kind, "a jump");
}

TEST(CodeLeads, AfterATracersCallIsEntryStill) {
  const auto found = leads({0xe8, 0, 0, 0, 0, 0xe9, 0, 0, 0, 0x10});
  ASSERT_EQ(found.size(), 1U);
  EXPECT_TRUE(found[0].at_entry);
  const auto later = leads({0x55, 0xe8, 0, 0, 0, 0x10});
  ASSERT_EQ(later.size(), 1U);
  EXPECT_FALSE(later[0].at_entry);
}

TEST(CodeLeads, JumpThroughARegister) {
  // movabs rax, 0xffff888000001000; jmp rax
  const auto found = leads({0x48, 0xb8, 0, 0x10, 0, 0, 0x80, 0x88, 0xff, 0xff, 0xff, 0xe0});
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].site, text);
  EXPECT_EQ(found[0].length, 12);
  EXPECT_EQ(found[0].target, Gva{0xffff888000001000});
  EXPECT_TRUE(found[0].at_entry);
  // the same with a nop between, through r11, and as a call
  EXPECT_EQ(leads({0x49, 0xbb, 0, 0x10, 0, 0, 0x80, 0x88, 0xff, 0xff, 0x90, 0x41, 0xff, 0xd3}).size(), 1U);
  // another register, or something between, says nothing
  EXPECT_TRUE(leads({0x48, 0xb8, 0, 0x10, 0, 0, 0x80, 0x88, 0xff, 0xff, 0xff, 0xe1}).empty());
  EXPECT_TRUE(leads({0x48, 0xb8, 0, 0x10, 0, 0, 0x80, 0x88, 0xff, 0xff, 0x5b, 0xff, 0xe0}).empty());
  // and into the text is lawful
  EXPECT_TRUE(leads({0x48, 0xc7, 0xc0, 0, 0, 0, 0x81, 0xff, 0xe0}).empty());
}

TEST(CodeLeads, PushAndReturn) {
  // push 0x10000000; ret: sign-extended
  ASSERT_EQ(leads({0x68, 0, 0, 0, 0x10, 0xc3}).size(), 1U);
  EXPECT_EQ(leads({0x68, 0, 0, 0, 0x90, 0xc3})[0].target, Gva{0xffffffff90000000});
  // push low; mov dword [rsp + 4], high; ret
  const auto whole = leads({0x68, 0, 0x10, 0, 0x80, 0xc7, 0x44, 0x24, 4, 0x80, 0x88, 0xff, 0xff, 0xc3});
  ASSERT_EQ(whole.size(), 1U);
  EXPECT_EQ(whole[0].target, Gva{0xffff888080001000});
  // movabs rax; push rax; ret
  EXPECT_EQ(leads({0x48, 0xb8, 0, 0x10, 0, 0, 0x80, 0x88, 0xff, 0xff, 0x50, 0xc3}).size(), 1U);
  EXPECT_TRUE(leads({0x68, 0, 0, 0, 0x10, 0x58, 0xc3}).empty());
}

TEST(CodeLeads, EndAtWhatIsNoInstruction) { EXPECT_TRUE(leads({0x06, 0xe9, 0, 0, 0, 0x10}).empty()); }

} // namespace
} // namespace lararium::detect
