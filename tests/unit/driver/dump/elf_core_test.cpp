#include "samples.h"

#include "lararium/driver/dump.h"

#include <gtest/gtest.h>

namespace lararium {
namespace {

using namespace samples;

Image pages(std::uint64_t first, std::uint64_t count) {
  Image image;
  for (std::uint64_t i = 0; i < count; ++i)
    append(image, page(first + i));
  return image;
}

Image joined(std::initializer_list<Image> parts) {
  Image image;
  for (const Image &part : parts)
    append(image, part);
  return image;
}

Error error_of(const Image &image) {
  const auto target = open_dump_image(image, "x");
  return target ? Error{ErrorCode::io, Space::none, 0, "it opened"} : target.error();
}

TEST(ElfCore, ReadsSegmentsInPlace) {
  const Image image = elf({{0, 0, 2 * page_size, 2 * page_size, 0}, {0x100000, 2 * page_size, page_size, page_size, 0}},
                          {}, pages(0, 3));
  const auto target = open_dump_image(image, "/some/where/guest.elf");
  ASSERT_TRUE(target) << target.error().describe();
  EXPECT_EQ(target->identity.kind, TargetKind::dump);
  EXPECT_EQ(target->identity.architecture, Architecture::x86_64);
  EXPECT_EQ(target->identity.name, "guest.elf");
  EXPECT_EQ(target->identity.memory_access, "ELF core");
  const PhysicalMemory &memory = *target->memory;
  ASSERT_EQ(memory.ranges().size(), 2U);
  EXPECT_EQ(memory.total_size(), 3 * page_size);
  EXPECT_TRUE(has_page(memory, 0, 0));
  EXPECT_TRUE(has_page(memory, page_size, 1));
  EXPECT_TRUE(has_page(memory, 0x100000, 2));
  EXPECT_EQ(memory.view(Gpa{page_size + 1}).size(), page_size - 1);
  EXPECT_TRUE(unreadable(memory, 2 * page_size));
  Image crossing(2 * page_size);
  EXPECT_FALSE(memory.read(Gpa{page_size}, crossing));
  EXPECT_EQ(target->vcpus, nullptr);
  EXPECT_TRUE(mentions(*target, "no registers"));
}

TEST(ElfCore, ReadsNotes) {
  const std::string info = "OSRELEASE=6.1.0\nPAGESIZE=4096\n";
  const Image notes = joined({prstatus_note(0x11, 0xaa), prstatus_note(0x22, 0xab), qemu_note(0x33, 0x1000, 0x77),
                              qemu_note(0x44, 0x2000, 0, false), note("VMCOREINFO", 0, bytes_of(info))});
  const Image image = elf({{0, 0, page_size, page_size, 0}}, notes, pages(0, 1));
  const auto target = open_dump_image(image, "x");
  ASSERT_TRUE(target) << target.error().describe();
  EXPECT_EQ(target->hints.vmcoreinfo, info);
  ASSERT_NE(target->vcpus, nullptr);
  const auto vcpus = *target->vcpus->registers();
  ASSERT_EQ(vcpus.size(), 2U); // QEMU's account has more than PRSTATUS
  EXPECT_EQ(vcpus[0].rip, Gva{0x33});
  EXPECT_EQ(vcpus[0].cr3, 0x1000U);
  EXPECT_EQ(vcpus[0].kernel_gs_base, Gva{0x77});
  EXPECT_EQ(vcpus[0].general[3], 0xbbU);
  EXPECT_EQ(vcpus[0].general[15], 0x15U);
  EXPECT_EQ(vcpus[0].idt_base, Gva{0xfffffe0000000000});
  EXPECT_TRUE(vcpus[0].paging());
  EXPECT_FALSE(vcpus[0].in_user_mode());
  EXPECT_EQ(vcpus[1].index, 1U);
  EXPECT_EQ(vcpus[1].cr3, 0x2000U);
  EXPECT_EQ(vcpus[1].kernel_gs_base, Gva{});
  EXPECT_TRUE(target->limitations.empty());
}

TEST(ElfCore, PrstatusAloneGivesRegisters) {
  const auto image = elf({{0x1000, 0, page_size, page_size, 0}}, prstatus_note(0x11, 0xaa), pages(0, 1));
  const auto target = open_dump_image(image, "x");
  ASSERT_TRUE(target);
  const auto vcpus = *target->vcpus->registers();
  ASSERT_EQ(vcpus.size(), 1U);
  EXPECT_EQ(vcpus[0].rip, Gva{0x11});
  EXPECT_EQ(vcpus[0].general[0], 0xaaU);
  EXPECT_TRUE(vcpus[0].in_user_mode());
}

TEST(ElfCore, BrokenNotesAreLeftOut) {
  Image notes = joined({prstatus_note(0x11, 0), prstatus_note(0x22, 0)});
  const std::size_t second = notes.size() / 2;
  put_value<std::uint32_t>(notes, second + 4, 0xffffffff);
  const Image image = elf({{0x1000, 0, page_size, page_size, 0}}, notes, pages(0, 1));
  const auto target = open_dump_image(image, "x");
  ASSERT_TRUE(target);
  EXPECT_EQ(target->vcpus->registers()->size(), 1U);
}

TEST(ElfCore, ZeroFillsWhatIsNotStored) {
  const Image image = elf({{0x1000, 0, page_size, 3 * page_size, 0}}, {}, pages(0, 1));
  const auto target = open_dump_image(image, "x");
  ASSERT_TRUE(target);
  EXPECT_TRUE(has_page(*target->memory, 0x1000, 0));
  EXPECT_TRUE(has_zeros(*target->memory, 0x2000, 2 * page_size));
  EXPECT_TRUE(mentions(*target, "read as zeros"));
  Image crossing(2 * page_size);
  EXPECT_TRUE(target->memory->read(Gpa{0x1800}, crossing));
  const auto populated = target->memory->populated(Gpa{0}, UINT64_MAX);
  ASSERT_EQ(populated.size(), 1U);
  EXPECT_EQ(populated[0].size, page_size);
}

TEST(ElfCore, PagingDumpsRepeatPhysicalMemory) {
  // As QEMU's paging=true: the same bytes under several virtual addresses, in any order.
  const Image image = elf({{0x2000, 2 * page_size, page_size, page_size, 0xffff888000002000},
                           {0x0, 0, 3 * page_size, 3 * page_size, 0xffff888000000000},
                           {0x1000, page_size, page_size, page_size, 0xffffffff81000000}},
                          {}, pages(0, 3));
  const auto target = open_dump_image(image, "x");
  ASSERT_TRUE(target);
  ASSERT_EQ(target->memory->ranges().size(), 1U);
  EXPECT_EQ(target->memory->view(Gpa{0}).size(), 3 * page_size);
  for (std::uint64_t i = 0; i < 3; ++i)
    EXPECT_TRUE(has_page(*target->memory, i * page_size, i));
}

TEST(ElfCore, OverlappingSegmentsPreferTheLaterAndTheStored) {
  const Image image = elf({{0x1000, 0, 0, 4 * page_size, 0},
                           {0x1000, 0, 2 * page_size, 2 * page_size, 0},
                           {0x2000, 2 * page_size, page_size, page_size, 0}},
                          {}, pages(0, 3));
  const auto target = open_dump_image(image, "x");
  ASSERT_TRUE(target);
  EXPECT_TRUE(has_page(*target->memory, 0x1000, 0));
  EXPECT_TRUE(has_page(*target->memory, 0x2000, 2));
  EXPECT_TRUE(has_zeros(*target->memory, 0x3000, 2 * page_size));
}

TEST(ElfCore, ManySegmentsAreFound) {
  constexpr std::uint64_t count = 70000;
  std::vector<Load> loads;
  for (std::uint64_t i = 0; i < count; ++i) // every second page, so that none can be joined
    loads.push_back({2 * i * page_size, (i % 3) * page_size, page_size, page_size, 0});
  const Image image = elf(loads, {}, pages(0, 3), {.extended_count = true});
  const auto target = open_dump_image(image, "x");
  ASSERT_TRUE(target) << target.error().describe();
  for (const std::uint64_t i : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{12345}, count - 1}) {
    EXPECT_TRUE(has_page(*target->memory, 2 * i * page_size, i % 3));
    EXPECT_TRUE(unreadable(*target->memory, (2 * i + 1) * page_size));
  }
  EXPECT_LE(target->memory->ranges().size(), 65536U);
}

TEST(ElfCore, TruncatedFilesSaySo) {
  Image image = elf({{0x1000, 0, 3 * page_size, 3 * page_size, 0}}, {}, pages(0, 3));
  image.resize(image.size() - page_size - 100);
  const auto target = open_dump_image(image, "x");
  ASSERT_TRUE(target);
  EXPECT_TRUE(has_page(*target->memory, 0x1000, 0));
  EXPECT_TRUE(unreadable(*target->memory, 0x3000));
  EXPECT_TRUE(mentions(*target, "4196 bytes of memory are missing"));
  EXPECT_EQ(target->memory->total_size(), 3 * page_size);
}

TEST(ElfCore, FilteredSegmentsAreMissing) {
  const Image image =
      elf({{0x1000, UINT64_MAX, 0, page_size, 0}, {0x4000, 0, page_size, page_size, 0}}, {}, pages(0, 1));
  const auto target = open_dump_image(image, "x");
  ASSERT_TRUE(target);
  EXPECT_TRUE(unreadable(*target->memory, 0x1000));
  EXPECT_TRUE(mentions(*target, "missing"));
}

TEST(ElfCore, FlattenedIsTheSame) {
  const Image notes = joined({qemu_note(0x33, 0x1000, 0x77), note("VMCOREINFO", 0, bytes_of("OSRELEASE=x"))});
  const Image image = elf({{0x1000, 0, 3 * page_size, 3 * page_size, 0}}, notes, pages(0, 3));
  for (const std::size_t record : {100U, 4096U, 100000U}) {
    const Image flat = flatten(image, record);
    const auto target = open_dump_image(flat, "x");
    ASSERT_TRUE(target) << target.error().describe();
    EXPECT_EQ(target->identity.memory_access, "ELF core (flattened)");
    EXPECT_EQ(target->hints.vmcoreinfo, "OSRELEASE=x");
    for (std::uint64_t i = 0; i < 3; ++i)
      EXPECT_TRUE(has_page(*target->memory, 0x1000 + i * page_size, i));
  }
}

TEST(ElfCore, RefusesWhatIsNoMachine) {
  const Load load = {0x1000, 0, page_size, page_size, 0};
  EXPECT_EQ(error_of(elf({load}, {}, pages(0, 1), {.type = ET_EXEC})).message, "x: an ELF file, but not a core");
  EXPECT_NE(error_of(elf({load}, note("CORE", 6, {}), pages(0, 1))).message.find("core of a process"),
            std::string::npos);
  const Load nowhere = {0, 0, page_size, page_size, 0x400000};
  EXPECT_NE(error_of(elf({nowhere, nowhere}, {}, pages(0, 1))).message.find("core of a process"), std::string::npos);
  EXPECT_EQ(error_of(elf({}, {}, {})).message, "x: an ELF core without memory");
  Image narrow = elf({load}, {}, pages(0, 1));
  narrow[EI_CLASS] = std::byte{ELFCLASS32};
  EXPECT_EQ(error_of(narrow).code, ErrorCode::unsupported);
}

TEST(ElfCore, EveryTruncationIsHandled) {
  const Image whole = elf({{0x1000, 0, page_size, page_size, 0}}, prstatus_note(1, 2), pages(0, 1));
  for (std::size_t size = 0; size < whole.size(); ++size)
    if (const auto target = open_dump_image(Bytes(whole).first(size), "x")) {
      EXPECT_TRUE(unreadable(*target->memory, 0x1fff));
    }
}

TEST(ElfCore, ImpossibleHeadersAreRefused) {
  const Image good = elf({{0x1000, 0, page_size, page_size, 0}}, {}, pages(0, 1));
  for (std::size_t i = 4; i < 64 + 2 * 56; ++i) {
    Image bad = good;
    for (const auto value : {std::byte{0xff}, std::byte{0x7f}, std::byte{0}}) {
      bad[i] = value;
      static_cast<void>(open_dump_image(bad, "x")); // must only be safe
    }
  }
  Image no_section = elf({{0x1000, 0, page_size, page_size, 0}}, {}, pages(0, 1), {.extended_count = true});
  put_value<std::uint64_t>(no_section, offsetof(Elf64_Ehdr, e_shoff), 0);
  EXPECT_EQ(error_of(no_section).code, ErrorCode::corrupt);
}

} // namespace
} // namespace lararium
