#include "samples.h"

#include "lararium/driver/dump.h"

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>

namespace lararium {
namespace {

using namespace samples;

class WriteProcessCore : public testing::Test {
protected:
  void TearDown() override { std::filesystem::remove(path); }

  struct Core {
    Elf64_Ehdr header{};
    std::vector<Elf64_Phdr> segments;
    Image bytes;
  };
  [[nodiscard]] Core read_back() const {
    std::ifstream file(path, std::ios::binary);
    const std::string content((std::istreambuf_iterator<char>(file)), {});
    Core core;
    append(core.bytes, bytes_of(content));
    core.header = *load<Elf64_Ehdr>(core.bytes, 0);
    for (std::size_t i = 0; i < core.header.e_phnum; ++i)
      core.segments.push_back(*load<Elf64_Phdr>(core.bytes, core.header.e_phoff + i * sizeof(Elf64_Phdr)));
    return core;
  }

  std::string path = testing::TempDir() + "lararium_process_core_test";
};

TEST_F(WriteProcessCore, LeavesOutAbsentPages) {
  ProcessCore process;
  process.pid = 42;
  process.command = "a command with a long name";
  process.threads.resize(2);
  process.threads[0].thread_id = 42;
  process.threads[0].registers.rip = Gva{0x401000};
  process.threads[1].thread_id = 43;
  process.auxiliary_vector.resize(32);
  process.files = {{Gva{0x400000}, 0x4000, 0x1000, "/bin/true"}, {Gva{0x500000}, 0x1000, 0, "/lib/x"}};
  process.segments = {{Gva{0x400000}, 6 * page_size, true, false, true},
                      {Gva{0x7f0000000000}, std::uint64_t{1} << 45, true, true, false}};
  unsigned calls = 0;
  const ProcessReader reader = [&](Gva address, std::span<std::byte> out) -> ProcessPage {
    ++calls;
    if (address >= Gva{0x7f0000000000})
      return {false, std::uint64_t{1} << 39};
    const std::uint64_t number = address.value / page_size;
    if (number % 4 >= 2)
      return {false, 0};
    std::ranges::copy(page(number), out.begin());
    return {true, 0};
  };
  const auto summary = write_process_core(process, reader, path);
  ASSERT_TRUE(summary) << summary.error().describe();
  EXPECT_EQ(summary->stored_bytes, 4 * page_size);
  EXPECT_EQ(summary->unreadable_bytes, 2 * page_size + (std::uint64_t{1} << 45));
  EXPECT_LE(calls, 6U + 64U);

  const Core core = read_back();
  ASSERT_EQ(core.segments.size(), 3U); // the note, and two runs of two pages
  EXPECT_EQ(core.segments[1].p_vaddr, 0x400000U);
  EXPECT_EQ(core.segments[1].p_filesz, 2 * page_size);
  EXPECT_EQ(core.segments[1].p_memsz, 2 * page_size);
  EXPECT_EQ(core.segments[1].p_flags, static_cast<Elf64_Word>(PF_R | PF_X));
  EXPECT_EQ(core.segments[2].p_vaddr, 0x404000U);
  for (const auto &segment : core.segments)
    for (std::uint64_t at = 0; segment.p_type == PT_LOAD && at < segment.p_filesz; at += page_size)
      EXPECT_TRUE(std::ranges::equal(Bytes(core.bytes).subspan(segment.p_offset + at, page_size),
                                     page((segment.p_vaddr + at) / page_size)));

  // The notes: thread 42, process, auxiliary vector, files, thread 43.
  std::vector<std::uint32_t> types;
  std::size_t at = core.segments[0].p_offset;
  const std::size_t end = at + core.segments[0].p_filesz;
  while (at < end) {
    const auto name_size = *load<std::uint32_t>(core.bytes, at), size = *load<std::uint32_t>(core.bytes, at + 4);
    types.push_back(*load<std::uint32_t>(core.bytes, at + 8));
    at += 12 + (name_size + 3) / 4 * 4 + (size + 3) / 4 * 4;
  }
  EXPECT_EQ(at, end);
  EXPECT_EQ(types, (std::vector<std::uint32_t>{1, 3, 6, 0x46494c45, 1}));
  const auto target = open_dump(path);
  ASSERT_FALSE(target);
  EXPECT_NE(target.error().message.find("core of a process"), std::string::npos);
}

TEST_F(WriteProcessCore, RefusesImpossibleSegments) {
  const ProcessReader reader = [](Gva, std::span<std::byte>) { return ProcessPage{}; };
  ProcessCore process;
  process.segments = {{Gva{0x1001}, page_size}};
  EXPECT_FALSE(write_process_core(process, reader, path));
  process.segments = {{Gva{0x1000}, 2 * page_size}, {Gva{0x2000}, page_size}};
  EXPECT_FALSE(write_process_core(process, reader, path));
  process.segments = {{Gva{UINT64_MAX & ~page_mask}, 2 * page_size}};
  EXPECT_FALSE(write_process_core(process, reader, path));
  EXPECT_FALSE(std::filesystem::exists(path));
}

} // namespace
} // namespace lararium
