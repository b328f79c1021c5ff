#include "lararium/driver/replay.h"

#include "lararium/driver/fake.h"

#include <filesystem>
#include <gtest/gtest.h>

namespace lararium {
namespace {

constexpr std::uint64_t memory_size = 64 * page_size;

std::uint64_t read_u64(const PhysicalMemory &memory, Gpa address) {
  std::uint64_t value = 0;
  EXPECT_TRUE(memory.read(address, writable_bytes_of(value)));
  return value;
}

bool readable(const PhysicalMemory &memory, Gpa address) {
  std::byte byte;
  return memory.read(address, {&byte, 1});
}

TEST(Recorder, ReplaysWhatWasReadAndNothingElse) {
  FakeTarget fake = make_fake_target(memory_size);
  fake.memory.write_value<std::uint64_t>(Gpa{5 * page_size - 4}, 0x1122334455667788);
  fake.target.hints.vmcoreinfo = "OSRELEASE=6.1";
  fake.target.identity.uuid = "u";
  VcpuRegisters registers;
  registers.index = 1;
  registers.halted = true;
  registers.rip = Gva{0xffffffff81000000};
  registers.general[15] = 15;
  registers.cr3 = 0x1000;
  registers.gdt_limit = 127;
  registers.cs = 0x10;
  fake.vcpus.list = {registers};

  auto recorder = Recorder::start(fake.target);
  ASSERT_TRUE(recorder) << recorder.error().describe();
  EXPECT_EQ(read_u64(*fake.target.memory, Gpa{5 * page_size - 4}), 0x1122334455667788U);
  EXPECT_FALSE(readable(*fake.target.memory, Gpa{memory_size}));
  EXPECT_EQ((*recorder)->page_count(), 2U);
  const auto file = (*recorder)->encode();
  ASSERT_TRUE(file);
  EXPECT_LT(file->size(), 1024U);

  auto replayed = decode_recording(*file);
  ASSERT_TRUE(replayed) << replayed.error().describe();
  EXPECT_EQ(read_u64(*replayed->memory, Gpa{5 * page_size - 4}), 0x1122334455667788U);
  EXPECT_FALSE(readable(*replayed->memory, Gpa{6 * page_size}));
  EXPECT_FALSE(readable(*replayed->memory, Gpa{3 * page_size}));
  EXPECT_TRUE(replayed->memory->view(Gpa{5 * page_size}).empty());
  EXPECT_EQ(replayed->memory->total_size(), memory_size);
  EXPECT_EQ(replayed->identity.name, "fake");
  EXPECT_EQ(replayed->identity.uuid, "u");
  EXPECT_EQ(replayed->identity.kind, TargetKind::live);
  EXPECT_EQ(replayed->hints.vmcoreinfo, "OSRELEASE=6.1");
  ASSERT_NE(replayed->vcpus, nullptr);
  const auto vcpus = replayed->vcpus->registers();
  ASSERT_EQ(vcpus->size(), 1U);
  EXPECT_EQ(vcpus->front().index, 1U);
  EXPECT_TRUE(vcpus->front().halted);
  EXPECT_EQ(vcpus->front().rip, registers.rip);
  EXPECT_EQ(vcpus->front().general[15], 15U);
  EXPECT_EQ(vcpus->front().cr3, 0x1000U);
  EXPECT_EQ(vcpus->front().gdt_limit, 127);
  EXPECT_EQ(vcpus->front().cs, 0x10);

  const auto populated = replayed->memory->populated(Gpa{0}, UINT64_MAX);
  ASSERT_EQ(populated.size(), 1U);
  EXPECT_EQ(populated[0].base, Gpa{4 * page_size});
  EXPECT_EQ(populated[0].size, 2 * page_size);
}

TEST(Recorder, APageIsReadOnce) {
  FakeTarget fake = make_fake_target(memory_size);
  fake.memory.before_read = [&](std::uint64_t number, Gpa, std::size_t) { fake.memory.write_value(Gpa{0}, number); };
  auto recorder = Recorder::start(fake.target);
  ASSERT_TRUE(recorder);
  EXPECT_EQ(read_u64(*fake.target.memory, Gpa{0}), 0U);
  fake.target.memory->refresh();
  EXPECT_EQ(read_u64(*fake.target.memory, Gpa{0}), 0U);
  EXPECT_EQ(fake.memory.refresh_count(), 1U);
}

TEST(Recorder, CanBeSwitchedOff) {
  FakeTarget fake = make_fake_target(memory_size);
  auto recorder = Recorder::start(fake.target);
  ASSERT_TRUE(recorder);
  (*recorder)->set_enabled(false);
  EXPECT_TRUE(readable(*fake.target.memory, Gpa{0}));
  EXPECT_EQ((*recorder)->page_count(), 0U);
  (*recorder)->set_hints({"found"});
  EXPECT_EQ(decode_recording(*(*recorder)->encode())->hints.vmcoreinfo, "found");
}

TEST(Recorder, SaysThatTheLimitWasPassed) {
  FakeTarget fake = make_fake_target(memory_size);
  auto recorder = Recorder::start(fake.target, 2);
  ASSERT_TRUE(recorder);
  for (std::uint64_t page = 0; page < 3; ++page)
    EXPECT_TRUE(readable(*fake.target.memory, Gpa{page * page_size}));
  EXPECT_EQ((*recorder)->page_count(), 2U);
  EXPECT_FALSE((*recorder)->encode());
}

TEST(Recorder, WorksWithoutRegisters) {
  FakeTarget fake = make_fake_target(memory_size);
  fake.target.vcpus = nullptr;
  auto recorder = Recorder::start(fake.target);
  ASSERT_TRUE(recorder);
  EXPECT_EQ(decode_recording(*(*recorder)->encode())->vcpus, nullptr);
}

TEST(Recorder, FailsWithItsRegisters) {
  FakeTarget fake = make_fake_target(memory_size);
  fake.vcpus.failing = true;
  EXPECT_FALSE(Recorder::start(fake.target));
}

TEST(Recording, EveryDamageIsFound) {
  FakeTarget fake = make_fake_target(memory_size);
  fake.memory.write_string(Gpa{100}, "some content");
  auto recorder = Recorder::start(fake.target);
  ASSERT_TRUE(recorder);
  ASSERT_TRUE(readable(*fake.target.memory, Gpa{100}));
  const std::vector<std::byte> good = *(*recorder)->encode();
  EXPECT_EQ(good, *(*recorder)->encode());
  for (std::size_t size = 0; size < good.size(); ++size)
    EXPECT_FALSE(decode_recording(Bytes(good).first(size)));
  for (std::size_t i = 0; i < good.size(); ++i) {
    std::vector<std::byte> bad = good;
    bad[i] ^= std::byte{0x55};
    // Not all bits of a zstd frame's header mean something; what decodes must be the same.
    if (const auto target = decode_recording(bad)) {
      EXPECT_EQ(target->identity.name, "fake") << i;
    }
  }
}

TEST(Recording, SavesAndOpens) {
  const std::string path = testing::TempDir() + "lararium_replay_test";
  FakeTarget fake = make_fake_target(memory_size);
  auto recorder = Recorder::start(fake.target);
  ASSERT_TRUE(recorder);
  ASSERT_TRUE((*recorder)->save(path));
  EXPECT_TRUE(open_recording(path));
  EXPECT_TRUE(is_recording(path));
  std::filesystem::resize_file(path, 7); // of no version
  EXPECT_TRUE(is_recording(path));
  EXPECT_FALSE(open_recording(path));
  std::filesystem::resize_file(path, 6);
  EXPECT_FALSE(is_recording(path));
  std::filesystem::remove(path);
  EXPECT_FALSE(is_recording(path));
  const auto gone = open_recording(path);
  ASSERT_FALSE(gone);
  EXPECT_EQ(gone.error().code, ErrorCode::not_found);
}

} // namespace
} // namespace lararium
