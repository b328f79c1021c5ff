#include "samples.h"

#include "lararium/driver/dump.h"
#include "lararium/driver/fake.h"

#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <thread>

namespace lararium {
namespace {

using namespace samples;
namespace fs = std::filesystem;

class WriteElfCore : public testing::Test {
protected:
  void SetUp() override { fs::create_directories(folder); }
  void TearDown() override { fs::remove_all(folder); }
  [[nodiscard]] bool nothing_left() const { return fs::is_empty(folder); }

  fs::path folder = testing::TempDir() + "lararium_writer_test";
  std::string path = folder / "core";
  FakeMemory memory{{{Gpa{0}, 64 * page_size, ""}, {Gpa{1 << 20}, 64 * page_size + 100, ""}}};
};

TEST_F(WriteElfCore, WhatIsWrittenIsRead) {
  memory.write(Gpa{3 * page_size}, page(3));
  memory.write(Gpa{(1 << 20) + 64 * page_size}, Bytes(page(7)).first(100));
  memory.map_run(Gpa{10 * page_size}, page(10)); // one that the writer sees in place
  MachineCore core;
  core.vmcoreinfo = "OSRELEASE=6.1.0\nX=1\n";
  for (std::uint32_t i = 0; i < 3; ++i) {
    VcpuRegisters registers;
    registers.index = i;
    registers.rip = Gva{0xffffffff81000000 + i};
    registers.rsp = Gva{0xffffc90000000000};
    registers.general[4] = registers.rsp.value;
    registers.general[8] = 8;
    registers.rflags = 0x246;
    registers.cr0 = 0x80050033;
    registers.cr3 = 0x1000 * (i + 1);
    registers.cr4 = 0x1000;
    registers.gs_base = Gva{0xffff888000000000};
    registers.kernel_gs_base = Gva{0x7f00};
    registers.idt_base = Gva{0xfffffe0000000000};
    registers.idt_limit = 4095;
    registers.cs = 0x10;
    registers.ss = 0x18;
    core.vcpus.push_back(registers);
  }
  std::vector<WriteProgress> reports;
  WriteOptions options;
  options.progress = [&](const WriteProgress &progress) {
    reports.push_back(progress);
    return true;
  };
  const auto summary = write_elf_core(memory, core, path, options);
  ASSERT_TRUE(summary) << summary.error().describe();
  EXPECT_EQ(summary->source_bytes, memory.total_size());
  EXPECT_EQ(summary->stored_bytes, 2 * page_size + 100);
  ASSERT_FALSE(reports.empty());
  EXPECT_EQ(reports.back().done, memory.total_size());
  EXPECT_EQ(reports.back().total, memory.total_size());
  struct stat status{};
  ASSERT_EQ(::stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600U);
  EXPECT_LT(status.st_blocks * 512, 10 * 4096); // sparse

  const auto target = open_dump(path);
  ASSERT_TRUE(target) << target.error().describe();
  EXPECT_EQ(target->hints.vmcoreinfo, core.vmcoreinfo);
  EXPECT_EQ(target->memory->total_size(), memory.total_size());
  EXPECT_TRUE(has_page(*target->memory, 3 * page_size, 3));
  EXPECT_TRUE(has_page(*target->memory, 10 * page_size, 10));
  EXPECT_TRUE(has_zeros(*target->memory, 4 * page_size, 6 * page_size));
  EXPECT_TRUE(target->limitations.empty());
  Image tail(100);
  ASSERT_TRUE(target->memory->read(Gpa{(1 << 20) + 64 * page_size}, tail));
  EXPECT_TRUE(std::ranges::equal(tail, Bytes(page(7)).first(100)));
  const auto vcpus = *target->vcpus->registers();
  ASSERT_EQ(vcpus.size(), 3U);
  for (std::uint32_t i = 0; i < 3; ++i) {
    EXPECT_EQ(vcpus[i].rip, core.vcpus[i].rip);
    EXPECT_EQ(vcpus[i].rsp, core.vcpus[i].rsp);
    EXPECT_EQ(vcpus[i].general[8], 8U);
    EXPECT_EQ(vcpus[i].cr0, core.vcpus[i].cr0);
    EXPECT_EQ(vcpus[i].cr3, core.vcpus[i].cr3);
    EXPECT_EQ(vcpus[i].cr4, core.vcpus[i].cr4);
    EXPECT_EQ(vcpus[i].gs_base, core.vcpus[i].gs_base);
    EXPECT_EQ(vcpus[i].kernel_gs_base, core.vcpus[i].kernel_gs_base);
    EXPECT_EQ(vcpus[i].idt_base, core.vcpus[i].idt_base);
    EXPECT_EQ(vcpus[i].idt_limit, 4095);
    EXPECT_EQ(vcpus[i].cs, 0x10);
  }
}

TEST_F(WriteElfCore, DirectMapAndViewsAreVirtualAddresses) {
  memory.write(Gpa{0x2000}, page(2));
  MachineCore core;
  core.direct_map = Gva{0xffff888000000000};
  core.views = {{Gva{0xffffffff81000000}, Gpa{0x2000}, page_size},
                {Gva{0xffffffff82000000}, Gpa{0x7fffffff000}, page_size}}; // not RAM: left out
  ASSERT_TRUE(write_elf_core(memory, core, path));
  std::ifstream file(path, std::ios::binary);
  Elf64_Ehdr header{};
  file.read(reinterpret_cast<char *>(&header), sizeof(header));
  ASSERT_EQ(header.e_phnum, 4);
  Elf64_Phdr segments[4] = {};
  file.read(reinterpret_cast<char *>(segments), sizeof(segments));
  EXPECT_EQ(segments[1].p_vaddr, 0xffff888000000000U);
  EXPECT_EQ(segments[2].p_vaddr, 0xffff888000100000U);
  EXPECT_EQ(segments[2].p_paddr, 0x100000U);
  EXPECT_EQ(segments[3].p_vaddr, 0xffffffff81000000U);
  EXPECT_EQ(segments[3].p_paddr, 0x2000U);
  EXPECT_EQ(segments[3].p_offset, segments[1].p_offset + 0x2000);
  EXPECT_TRUE(has_page(*open_dump(path)->memory, 0x2000, 2));
}

TEST_F(WriteElfCore, NeverOverwritesUnlessTold) {
  std::ofstream(path) << "precious";
  const auto refused = write_elf_core(memory, {}, path);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::usage);
  EXPECT_EQ(fs::file_size(path), 8U);
  WriteOptions options;
  options.overwrite = true;
  ASSERT_TRUE(write_elf_core(memory, {}, path, options));
  EXPECT_GT(fs::file_size(path), 8U);
}

TEST_F(WriteElfCore, AFileThatAppearsMeanwhileIsKept) {
  memory.write(Gpa{0}, page(0));
  memory.before_read = [&](std::uint64_t, Gpa, std::size_t) { std::ofstream(path) << "precious"; };
  EXPECT_FALSE(write_elf_core(memory, {}, path));
  EXPECT_EQ(fs::file_size(path), 8U);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), {}), 1);
}

TEST_F(WriteElfCore, UnreadableMemoryLeavesNothing) {
  memory.write(Gpa{0}, page(0));
  memory.write(Gpa{1 << 20}, page(0));
  memory.fail_range(Gpa{1 << 20}, 1);
  const auto failed = write_elf_core(memory, {}, path);
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code, ErrorCode::memory_fault);
  EXPECT_EQ(failed.error().address, 1U << 20);
  EXPECT_TRUE(nothing_left());
}

TEST_F(WriteElfCore, CancellingLeavesNothing) {
  WriteOptions options;
  options.progress = [](const WriteProgress &) { return false; };
  EXPECT_FALSE(write_elf_core(memory, {}, path, options));
  EXPECT_TRUE(nothing_left());
}

TEST_F(WriteElfCore, MoreThanMayBeStored) {
  memory.write(Gpa{0}, page(0));
  memory.write(Gpa{page_size}, page(0));
  WriteOptions options;
  options.stored_limit = page_size;
  EXPECT_FALSE(write_elf_core(memory, {}, path, options));
  EXPECT_TRUE(nothing_left());
}

TEST_F(WriteElfCore, AFullDiskIsNamed) {
  const int full = ::open("/dev/full", O_WRONLY);
  ASSERT_GE(full, 0);
  const auto failed = write_elf_core(memory, {}, full);
  ::close(full);
  ASSERT_FALSE(failed);
  EXPECT_NE(failed.error().message.find("no space left"), std::string::npos);
  EXPECT_FALSE(write_elf_core(memory, {}, "/does/not/exist/core"));
}

TEST_F(WriteElfCore, ThroughAPipeItIsTheSame) {
  memory.write(Gpa{5 * page_size}, page(5));
  ASSERT_TRUE(write_elf_core(memory, {}, path));
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  std::string received;
  std::thread reader([&] {
    char buffer[65536];
    for (ssize_t size = 0; (size = ::read(ends[0], buffer, sizeof(buffer))) > 0;)
      received.append(buffer, static_cast<std::size_t>(size));
  });
  const auto summary = write_elf_core(memory, {}, ends[1]);
  ::close(ends[1]);
  reader.join();
  ::close(ends[0]);
  ASSERT_TRUE(summary) << summary.error().describe();
  std::ifstream file(path, std::ios::binary);
  const std::string expected((std::istreambuf_iterator<char>(file)), {});
  EXPECT_TRUE(received == expected);
}

TEST_F(WriteElfCore, ToADescriptorOfAFile) {
  memory.write(Gpa{5 * page_size}, page(5));
  const int file = ::open(path.c_str(), O_RDWR | O_CREAT, 0600);
  ASSERT_GE(file, 0);
  ASSERT_TRUE(write_elf_core(memory, {}, file));
  ::close(file);
  EXPECT_TRUE(has_page(*open_dump(path)->memory, 5 * page_size, 5));
}

TEST_F(WriteElfCore, ConvertsOtherDumps) {
  KdumpOptions options;
  for (std::uint64_t i = 0; i < 300; ++i)
    options.present.push_back(i);
  options.stored = {1, 2, 3, 299};
  const Image image = kdump(options);
  const auto source = open_dump_image(image, "x");
  ASSERT_TRUE(source);
  ASSERT_TRUE(write_elf_core(*source->memory, {}, path));
  const auto target = open_dump(path);
  ASSERT_TRUE(target);
  for (const std::uint64_t number : options.stored)
    EXPECT_TRUE(has_page(*target->memory, number * page_size, number));
  EXPECT_EQ(target->memory->total_size(), 300 * page_size);
}

TEST_F(WriteElfCore, MoreRangesThanTheHeaderCounts) {
  std::vector<RamRange> ranges;
  for (std::uint64_t i = 0; i < 65600; ++i)
    ranges.push_back({Gpa{2 * i * page_size}, page_size, ""});
  FakeMemory many(ranges);
  many.write(Gpa{2 * 65599 * page_size}, page(1));
  WriteOptions options;
  ASSERT_TRUE(write_elf_core(many, {}, path, options));
  const auto target = open_dump(path);
  ASSERT_TRUE(target) << target.error().describe();
  EXPECT_TRUE(has_page(*target->memory, 2 * 65599 * page_size, 1));
}

} // namespace
} // namespace lararium
