#include "lararium/gate/register_guard.h"

#include "no_system.h"
#include "small_kernel.h"

#include <gtest/gtest.h>

namespace lararium::gate {
namespace {

using namespace std::chrono_literals;
using test::NoSystem;
using test::SmallKernel;
using test::TinyGuest;

std::string text_of(const Record &record, std::string_view name) {
  for (const RecordField &field : record.fields)
    if (field.name == name)
      if (const auto *text = std::get_if<std::string>(&field.value))
        return *text;
  return {};
}

class RegisterGuardTest : public ::testing::Test {
protected:
  RegisterGuardTest() {
    for (std::uint32_t cpu = 0; cpu < 2; ++cpu) {
      VcpuRegisters vcpu;
      vcpu.index = cpu;
      vcpu.cr0 = 0x80050033;
      vcpu.cr4 = 3 << 20 | 1 << 5;
      vcpu.efer = 1 << 10;
      vcpu.idt_base = SmallKernel::base + SmallKernel::idt;
      vcpu.idt_limit = 0xfff;
      vcpu.gdt_base = Gva{0xfffffe0000001000};
      vcpu.msrs.emplace().lstar = SmallKernel::base + SmallKernel::system_call_entry;
      vcpus.push_back(vcpu);
    }
  }
  std::vector<Record> look() {
    std::vector<Record> records;
    guard.look(vcpus, now, records);
    now = guard.due();
    return records;
  }
  // What is told in the end.
  std::vector<Record> looks(int count) {
    std::vector<Record> all;
    for (int i = 0; i < count; ++i)
      for (Record &record : look())
        all.push_back(std::move(record));
    return all;
  }

  SmallKernel guest;
  NoSystem system{*guest.kernel};
  RegisterGuard guard{system, *guest.kernel, {.interval = 1s, .again = 50ms}};
  RegisterGuard::Clock::time_point now{};
  std::vector<VcpuRegisters> vcpus;
};

TEST_F(RegisterGuardTest, NothingToTell) {
  EXPECT_TRUE(looks(5).empty());
  EXPECT_EQ(guard.counts().looks, 5U);
}

TEST_F(RegisterGuardTest, IsToldWhenItStaysAndWhenItIsTakenBack) {
  vcpus[1].msrs->lstar = Gva{0xffffffffc0001000};
  const auto began = now;
  EXPECT_TRUE(looks(2).empty());
  EXPECT_LT(now - began, 1s) << "it looks again soon";
  const auto told = look();
  ASSERT_EQ(told.size(), 1U);
  EXPECT_EQ(told[0].kind, RecordKind::finding);
  EXPECT_EQ(told[0].type, "register_changed");
  EXPECT_EQ(told[0].finding->subject, "LSTAR of CPU 1");
  EXPECT_EQ(text_of(told[0], "register"), "LSTAR");
  EXPECT_TRUE(looks(5).empty()) << "once";
  vcpus[1].msrs->lstar = vcpus[0].msrs->lstar;
  const auto again = look();
  ASSERT_EQ(again.size(), 1U);
  EXPECT_EQ(again[0].kind, RecordKind::event);
  EXPECT_TRUE(looks(5).empty());
}

TEST_F(RegisterGuardTest, WhatPassesIsNotTold) {
  for (int i = 0; i < 6; ++i) {
    vcpus[0].cr0 ^= i % 3 == 2 ? 0 : 1 << 16;
    EXPECT_TRUE(look().empty());
  }
}

TEST_F(RegisterGuardTest, EachRegister) {
  vcpus[0].idt_base += 16;
  vcpus[0].cr0 &= ~std::uint64_t{1 << 16};
  vcpus[0].cr4 &= ~std::uint64_t{1 << 21};
  std::vector<std::string> names;
  for (const Record &record : looks(4))
    names.push_back(text_of(record, "register") + ": " + record.sentence);
  EXPECT_EQ(names.size(), 3U);
  EXPECT_EQ(names[0].substr(0, 4), "IDTR");
  EXPECT_EQ(names[1], "CR0: CPU 0 does not heed write protection: CR0.WP is off");
  EXPECT_EQ(names[2], "CR4: CPU 0 has protections off that the kernel switched on: SMAP");
}

TEST_F(RegisterGuardTest, CpuThatRunsNoKernelIsNotJudged) {
  vcpus[0] = {};
  vcpus[1].efer = 0;
  EXPECT_TRUE(looks(5).empty());
}

// A guest with a list of tasks.
class PageTableTest : public ::testing::Test {
protected:
  PageTableTest() {
    vcpu.cr0 = 0x80050033;
    vcpu.efer = 1 << 10;
    vcpu.gdt_base = vcpu.idt_base = Gva{0xfffffe0000001000};
    own = guest.kernel->location().root.table.value;
  }
  std::vector<Record> look(std::uint64_t cr3) {
    vcpu.cr3 = cr3;
    std::vector<Record> records;
    guard.look(std::span(&vcpu, 1), now, records);
    for (; now < guard.due(); now += 10ms)
      guard.look_between(now);
    return records;
  }

  TinyGuest guest{test::tiny_new};
  NoSystem system{*guest.kernel};
  RegisterGuard guard{system, *guest.kernel, {.interval = 1s, .again = 100ms}};
  RegisterGuard::Clock::time_point now{};
  VcpuRegisters vcpu;
  std::uint64_t own = 0;
  static constexpr std::uint64_t strange = 0x1e5000;
};

TEST_F(PageTableTest, ThoseOfTasksAndTheKernelsAreLawful) {
  constexpr std::uint64_t pair = 0x1e4000; // with page table isolation two pages, the second is the user's half
  guest.set(guest.init_mm, "mm_struct", "pgd", TinyGuest::direct_map + pair);
  for (int i = 0; i < 10; ++i) {
    EXPECT_TRUE(look(own).empty());
    EXPECT_TRUE(look(pair | 5).empty()) << "with an address space identifier";
    EXPECT_TRUE(look((pair + page_size) | 1 << 11).empty());
  }
  EXPECT_EQ(guard.counts().deviations, 0U);
}

TEST_F(PageTableTest, OneOfNobodysIsToldAfterAWhile) {
  std::vector<Record> told;
  const auto began = now;
  for (int i = 0; i < 20 && told.empty(); ++i)
    told = look(strange | 3);
  ASSERT_EQ(told.size(), 1U);
  EXPECT_GT(now - began, 300ms);
  EXPECT_LT(now - began, 3s);
  EXPECT_EQ(text_of(told[0], "register"), "CR3");
  EXPECT_EQ(told[0].finding->subject, "CR3 of CPU 0");
  for (int i = 0; i < 20; ++i)
    EXPECT_TRUE(look(strange | 3).empty());
  std::vector<Record> gone;
  for (int i = 0; i < 100 && gone.empty(); ++i)
    gone = look(own);
  ASSERT_EQ(gone.size(), 1U);
  EXPECT_EQ(gone[0].kind, RecordKind::event);
}

// A process that lived for a moment only, and whose table the next one gets.
TEST_F(PageTableTest, OneThatIsAProcessNowAndThenIsLawful) {
  const auto pgd = guest.get(guest.init_mm, "mm_struct", "pgd");
  for (int i = 0; i < 50; ++i) {
    guest.set(guest.init_mm, "mm_struct", "pgd", pgd);
    EXPECT_TRUE(look(strange).empty());
    if (i % 4 == 3) {
      guest.set(guest.init_mm, "mm_struct", "pgd", TinyGuest::direct_map + strange);
      guard.look_between(now + 10ms);
    }
  }
}

TEST_F(PageTableTest, ListThatCannotBeReadToItsEndProvesNothing) {
  guest.set(guest.init, "task_struct", "tasks", 8); // the next task
  for (int i = 0; i < 60; ++i)
    EXPECT_TRUE(look(strange).empty());
}

} // namespace
} // namespace lararium::gate
