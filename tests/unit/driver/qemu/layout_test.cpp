#include "lararium/driver/qemu/layout.h"

#include <cstring>
#include <gtest/gtest.h>

namespace lararium::qemu {
namespace {

constexpr std::uint64_t mib = 1 << 20;
constexpr std::uint64_t gib = 1 << 30;

std::uint64_t low_of(std::string_view machine, std::uint64_t size, std::optional<std::uint64_t> limit = {}) {
  return possible_layouts(machine, size, limit).front().below_4g;
}

// The examples of QEMU's own comment in pc_init1(), and what its q35 and microvm do.
TEST(Layout, RulesOfTheMachines) {
  EXPECT_EQ(low_of("pc-1.0", 4 * gib), 3584 * mib);
  EXPECT_EQ(low_of("pc-i440fx-1.7", 4 * gib), 3584 * mib);
  EXPECT_EQ(low_of("pc", 4 * gib), 3 * gib);
  EXPECT_EQ(low_of("pc", 3584 * mib - mib), 3583 * mib);
  EXPECT_EQ(low_of("pc", 3584 * mib), 3 * gib);
  EXPECT_EQ(low_of("pc", 4 * gib, 2 * gib), 2 * gib);
  EXPECT_EQ(low_of("pc", 3968 * mib, 4 * gib), 3968 * mib);
  EXPECT_EQ(low_of("", 512 * mib), 512 * mib);
  EXPECT_EQ(low_of("q35", 2 * gib), 2 * gib);
  EXPECT_EQ(low_of("pc-q35-10.0", 0xaff00000), 0xaff00000u);
  EXPECT_EQ(low_of("pc-q35-10.0", 0xb0000000), 0x80000000u);
  EXPECT_EQ(low_of("q35", 8 * gib, gib), gib);
  EXPECT_EQ(low_of("microvm", 5 * gib), 3 * gib);
  const auto huge = possible_layouts("q35", 2048 * gib, {});
  EXPECT_EQ(huge.back().above_base, Gpa{1ULL << 40});
}

std::vector<std::byte> memory_with_acpi(std::size_t size, std::uint32_t root) {
  std::vector<std::byte> memory(size);
  const auto write = [&](std::size_t at, const void *bytes, std::size_t length) {
    std::memcpy(memory.data() + at, bytes, length);
  };
  const auto seal = [&](std::size_t at, std::size_t length, std::size_t checksum) {
    unsigned sum = 0;
    for (std::size_t i = 0; i < length; i++)
      sum += std::to_integer<unsigned>(memory[at + i]);
    memory[at + checksum] = static_cast<std::byte>(0x100 - (sum & 0xff));
  };
  write(0xf5ac0, "RSD PTR ", 8);
  write(0xf5ac0 + 16, &root, sizeof root);
  seal(0xf5ac0, 20, 8);
  const std::uint32_t length = 52;
  write(root, "RSDT", 4);
  write(root + 4, &length, sizeof length);
  seal(root, length, 9);
  return memory;
}

TEST(Layout, AcpiTablesTellWhereLowMemoryEnds) {
  auto memory = memory_with_acpi(16 * mib, 15 * mib);
  const auto read = [&](std::uint64_t offset, std::span<std::byte> out) {
    if (offset > memory.size() || out.size() > memory.size() - offset)
      return false;
    std::memcpy(out.data(), memory.data() + offset, out.size());
    return true;
  };
  EXPECT_EQ(find_acpi_root(read), Gpa{15 * mib});
  const std::vector<RamLayout> layouts = {{.machine = "pc", .below_4g = 20 * mib},
                                          {.machine = "q35", .below_4g = 16 * mib}};
  EXPECT_EQ(choose_layout(layouts, Gpa{15 * mib}).machine, "q35");
  EXPECT_EQ(choose_layout(layouts, std::nullopt).machine, "pc");
  EXPECT_EQ(choose_layout(layouts, Gpa{50 * mib}).machine, "pc");

  memory[15 * mib + 20] = std::byte{1}; // the table's checksum fails
  EXPECT_FALSE(find_acpi_root(read));
  const std::uint32_t absurd = 0xffffffff;
  std::memcpy(memory.data() + 15 * mib + 4, &absurd, sizeof absurd);
  EXPECT_FALSE(find_acpi_root(read));
}

TEST(Layout, RamIsFoundAmongMappings) {
  const auto mappings = join_mappings(parse_maps("100000000-120000000 rw-p 00000000 00:00 0\n"
                                                 "120000000-120001000 ---p 00000000 00:00 0\n"
                                                 "200000000-220000000 rw-s 00000000 00:01 7 "
                                                 "/memfd:memory-backend-memfd (deleted)\n"
                                                 "300000000-330000000 rw-p 00000000 00:00 0\n"));
  CommandLine line;
  const auto anonymous = find_ram(mappings, line, 512 * mib);
  ASSERT_TRUE(anonymous);
  EXPECT_EQ(anonymous->pieces[0].host, Hva{0x100000000});
  EXPECT_FALSE(anonymous->ambiguous);
  // Grown together with what lies before it: the end is RAM's.
  EXPECT_EQ(find_ram(mappings, line, 768 * mib - mib)->pieces[0].host, Hva{0x300000000 + mib});
  EXPECT_FALSE(find_ram(mappings, line, gib));

  line.main_backend = "r";
  line.backends = {{.kind = "memory-backend-memfd", .id = "r", .size = 512 * mib, .shared = true, .path = {}}};
  EXPECT_EQ(find_ram(mappings, line, 512 * mib)->pieces[0].host, Hva{0x200000000});

  line.numa_backends = {"r", "s"};
  EXPECT_FALSE(find_ram(mappings, line, gib)); // s is not there
  line.backends.push_back({.kind = "memory-backend-ram", .id = "s", .size = 512 * mib, .shared = false, .path = {}});
  // Translated code looks like RAM but for being executable; a second mapping of the size is another choice.
  const auto alike = join_mappings(parse_maps("100000000-120000000 rw-p 00000000 00:00 0\n"
                                              "200000000-220000000 rw-p 00000000 00:00 0\n"
                                              "300000000-320000000 rwxp 00000000 00:00 0\n"));
  const auto unsure = find_ram(alike, CommandLine{}, 512 * mib);
  ASSERT_TRUE(unsure);
  EXPECT_TRUE(unsure->ambiguous);
  EXPECT_EQ(unsure->pieces[0].host, Hva{0x200000000});
  EXPECT_EQ(unsure->also_first, std::vector<Hva>{Hva{0x100000000}});

  const auto both = find_ram(mappings, line, gib);
  ASSERT_TRUE(both);
  EXPECT_EQ(both->pieces[1].host, Hva{0x100000000});
}

} // namespace
} // namespace lararium::qemu
