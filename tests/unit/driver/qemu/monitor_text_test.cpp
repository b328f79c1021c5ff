#include "lararium/driver/qemu/monitor_text.h"

#include "lararium/driver/qemu/monitor.h"
#include "ports.h"
#include "recorded.h"

namespace lararium::qemu {
namespace {

struct Piece {
  std::uint64_t base, size;
  std::string block;
  std::uint64_t offset;
  bool operator==(const Piece &) const = default;
};

void PrintTo(const Piece &piece, std::ostream *out) {
  *out << std::hex << piece.base << "+" << piece.size << " " << piece.block << "@" << piece.offset;
}

std::vector<Piece> memory_of(const std::string &name) {
  const auto blocks = parse_ram_blocks(recorded(name + ".ramblock.txt"));
  const auto view = parse_flat_view(recorded(name + ".mtree.txt"));
  EXPECT_TRUE(blocks && view) << name;
  if (!blocks || !view)
    return {};
  const auto ranges = main_memory(*blocks, *view);
  EXPECT_TRUE(ranges) << name;
  std::vector<Piece> pieces;
  if (ranges)
    for (const auto &range : *ranges)
      pieces.push_back({range.base.value, range.size, (*blocks)[range.block].name, range.offset});
  return pieces;
}

constexpr std::uint64_t gib = 1 << 30;

TEST(MonitorText, MemoryOfTwoNumaNodesAndADimm) {
  const std::vector<Piece> expected = {{0, 0xa0000, "m0", 0},
                                       {0xc0000, 2 * gib - 0xc0000, "m0", 0xc0000},
                                       {2 * gib, gib, "m1", 0},
                                       {4 * gib, 2 * gib, "m1", gib},
                                       {6 * gib, gib / 4, "dm", 0}};
  EXPECT_EQ(memory_of("numa_7.2"), expected);
  EXPECT_EQ(memory_of("numa_10.0"), expected);
}

TEST(MonitorText, MemoryUnderKvmWithTheBiosShadowed) {
  const std::vector<Piece> expected = {{0, gib, "pc.ram", 0}};
  EXPECT_EQ(memory_of("kvm_q35_7.2"), expected);
  EXPECT_EQ(memory_of("kvm_q35_10.0"), expected);
}

TEST(MonitorText, MemoryOfADeviceCountsWhereItIsNamed) {
  const auto view = parse_flat_view("FlatView #0\n AS \"memory\", root: system\n"
                                    "  0000000000000000-000000001fffffff (prio 0, ram): ram0\n"
                                    "  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram\n"
                                    "  00000000fe000000-00000000fe3fffff (prio 1, ram): rings\n");
  ASSERT_TRUE(view);
  const std::vector<RamBlock> blocks = {
      {.name = "ram0", .page_size = 4096, .used = 0x20000000, .host = {}},
      {.name = "0000:00:01.0/vga.vram", .page_size = 4096, .used = 0x1000000, .host = {}},
      {.name = "0000:00:02.0/rings", .page_size = 4096, .used = 0x400000, .host = {}}};
  EXPECT_EQ(main_memory(blocks, *view)->size(), 1u);
  const std::vector<std::string> shared{"rings"};
  const auto ranges = main_memory(blocks, *view, shared);
  ASSERT_TRUE(ranges && ranges->size() == 2);
  EXPECT_EQ(ranges->back().base, Gpa{0xfe000000});
  EXPECT_EQ(ranges->back().block, 2u);
}

TEST(MonitorText, MemoryOfMicrovmLeavesTheFirmwareOut) {
  EXPECT_EQ(memory_of("microvm_7.2"), (std::vector<Piece>{{0, 0xf0000, "microvm.ram", 0},
                                                          {0x100000, gib / 4 - 0x100000, "microvm.ram", 0x100000}}));
  EXPECT_EQ(memory_of("microvm_10.0"), (std::vector<Piece>{{0, 0xe0000, "microvm.ram", 0},
                                                           {0x100000, gib / 4 - 0x100000, "microvm.ram", 0x100000}}));
}

TEST(MonitorText, HostAddressesOfBlocks) {
  const auto old_blocks = parse_ram_blocks(recorded("numa_7.2.ramblock.txt"));
  ASSERT_TRUE(old_blocks);
  EXPECT_EQ((*old_blocks)[0].name, "m1");
  EXPECT_EQ((*old_blocks)[0].used, 3 * gib);
  EXPECT_FALSE((*old_blocks)[0].host);
  const auto blocks = parse_ram_blocks(recorded("numa_10.0.ramblock.txt"));
  ASSERT_TRUE(blocks);
  EXPECT_TRUE((*blocks)[0].host);
  const auto address = parse_host_address("Host virtual address for 0x0 (pc.ram) is 0x7f6c5fe00000\r\n");
  ASSERT_TRUE(address);
  EXPECT_EQ(address->block, "pc.ram");
  EXPECT_EQ(address->host, Hva{0x7f6c5fe00000});
  EXPECT_FALSE(parse_host_address("Memory at address 0xa0000 is not RAM\n"));
}

TEST(MonitorText, RegistersInLongMode) {
  for (const std::string version : {"7.2", "10.0"}) {
    const auto vcpus = parse_registers(recorded("numa_" + version + ".registers.txt"));
    ASSERT_TRUE(vcpus);
    ASSERT_EQ(vcpus->size(), 2u);
    for (const auto &vcpu : *vcpus) {
      EXPECT_TRUE(vcpu.paging());
      EXPECT_TRUE(vcpu.five_level_paging());
      EXPECT_EQ(vcpu.cs, 0x10);
      EXPECT_EQ(vcpu.ss, 0x18);
      EXPECT_EQ(vcpu.efer, 0xd01u);
      EXPECT_EQ(vcpu.idt_base, Gva{0xfffffe0000000000});
      EXPECT_EQ(vcpu.idt_limit, 0xfff);
      EXPECT_EQ(vcpu.gdt_limit, 0x7f);
      EXPECT_EQ(vcpu.rsp.value, vcpu.general[4]);
      EXPECT_GT(vcpu.gs_base.value, 0xff00000000000000u);
      EXPECT_EQ(vcpu.general[1], 1u); // rcx
      EXPECT_TRUE(vcpu.halted);
    }
    EXPECT_EQ((*vcpus)[1].index, 1u);
    EXPECT_NE((*vcpus)[0].tr_base, (*vcpus)[1].tr_base);
  }
}

TEST(MonitorText, RegistersInFirmware) {
  const auto vcpus = parse_registers(recorded("firmware_10.0.registers.txt"));
  ASSERT_TRUE(vcpus);
  ASSERT_EQ(vcpus->size(), 1u);
  const auto &vcpu = vcpus->front();
  EXPECT_FALSE(vcpu.paging());
  EXPECT_EQ(vcpu.rip, Gva{0xe9dc1});
  EXPECT_EQ(vcpu.general[0], 0x7000u);
  EXPECT_EQ(vcpu.cr0, 0x11u);
  EXPECT_EQ(vcpu.gdt_base, Gva{0xf6180});
}

TEST(MonitorText, RunStates) {
  EXPECT_EQ(parse_run_state("VM status: running\r\n"), RunState::running);
  EXPECT_EQ(parse_run_state("VM status: paused\n"), RunState::paused);
  EXPECT_EQ(parse_run_state("VM status: paused (prelaunch)\n"), RunState::paused);
  EXPECT_EQ(parse_run_state("VM status: paused (internal-error)\n"), RunState::crashed);
  EXPECT_EQ(parse_run_state("VM status: running (single step mode)\n"), RunState::running);
  EXPECT_FALSE(parse_run_state("unknown command"));
}

TEST(MonitorText, HumanMonitorsAnswersAreFreedOfTheEcho) {
  for (const std::string version : {"7.2", "10.0"}) {
    EXPECT_EQ(hmp_answer(recorded("hmp_banner_" + version + ".bin")), "");
    EXPECT_EQ(hmp_answer(recorded("hmp_status_" + version + ".bin")), "VM status: running\n");
    const auto answer = hmp_answer(recorded("hmp_blockstats_" + version + ".bin"));
    ASSERT_TRUE(answer);
    const auto disks = parse_block_counters(*answer);
    ASSERT_FALSE(disks.empty());
    EXPECT_EQ(disks[0].device, "ide1-cd0");
  }
  EXPECT_FALSE(hmp_answer("i\x1b[K\x1b[Dinfo status\x1b[K\r\nVM status: run"));
  EXPECT_FALSE(hmp_answer("(qemu) "));
  EXPECT_EQ(hmp_answer("stop\r\n(qemu) "), "");
}

TEST(MonitorText, OverlappingOrOversizedRangesAreRefused) {
  const std::string head = "FlatView #0\n AS \"memory\", root: system\n Root memory region: system\n";
  const auto line = [](const char *range, const char *region) {
    return std::string("  ") + range + " (prio 0, ram): " + region + "\n";
  };
  EXPECT_FALSE(parse_flat_view(head + line("0000000000000000-0000000000000fff", "a") +
                               line("0000000000000800-0000000000001fff", "a")));
  EXPECT_FALSE(parse_flat_view("FlatView #0\n AS \"I/O\", root: io\n"));
  const auto view = parse_flat_view(head + line("0000000000000000-ffffffffffffffff", "a") + // wraps: left out
                                    line("0000000000000000-0000000000001fff", "ram @0000000000001000 KVM"));
  ASSERT_TRUE(view);
  ASSERT_EQ(view->size(), 1u);
  EXPECT_EQ(view->front().offset, 0x1000u);
  EXPECT_FALSE(main_memory({{.name = "ram", .page_size = 4096, .used = 0x2000, .host = {}}}, *view));
}

TEST(NetworkDevices, OfInfoNetwork) {
  const auto devices = parse_network_devices("e1000e.0: index=0,type=nic,model=e1000e,macaddr=52:54:00:12:34:56\r\n"
                                             " \\ #net029: index=0,type=user,net=10.0.2.0,restrict=off\r\n"
                                             "two: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:57\n"
                                             " \\ tap0: index=0,type=tap,fd=3\n"
                                             "two: index=1,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:57\n"
                                             " \\ tap0: index=1,type=tap,fd=4\n"
                                             "alone: index=0,type=user,net=10.0.2.0,restrict=off\n"
                                             "unplugged: index=0,type=nic,model=rtl8139,macaddr=52:54:00:12:34:58\n");
  const std::vector<NetworkDevice> expected{{"e1000e.0", "e1000e", "52:54:00:12:34:56", "#net029"},
                                            {"two", "virtio-net-pci", "52:54:00:12:34:57", "tap0"},
                                            {"unplugged", "rtl8139", "52:54:00:12:34:58", ""}};
  EXPECT_EQ(devices, expected);
  EXPECT_TRUE(parse_network_devices("").empty());
  EXPECT_TRUE(parse_network_devices(" \\ net0: index=0,type=user\n: type=nic\n").empty());
}

TEST(NetworkDevices, AddressesThatTheyWereGiven) {
  const auto configured = parse_configured_macs("bus: main-system-bus\n"
                                                "      dev: virtio-net-pci, id \"\"\n"
                                                "        bus: virtio-bus\n"
                                                "          dev: virtio-net-device, id \"\"\n"
                                                "            mac = \"52:54:00:12:34:57\"\n"
                                                "            netdev = \"net0\"\n"
                                                "            speed = -1 (0xffffffffffffffff)\n"
                                                "      dev: e1000e, id \"\"\n"
                                                "        mac = \"52:54:00:12:34:56\"\n"
                                                "        netdev = \"#net086\"\n"
                                                "      dev: unplugged, id \"\"\n"
                                                "        mac = \"52:54:00:12:34:58\"\n"
                                                "        netdev = \"\"\n"
                                                "      dev: last, id \"\"\n");
  const std::vector<ConfiguredMac> expected{{"net0", "52:54:00:12:34:57"}, {"#net086", "52:54:00:12:34:56"}};
  EXPECT_EQ(configured, expected);
}

TEST(NetworkDevices, FiltersOfThoseThatAreControlled) {
  const auto filters = parse_rx_filters(R"([
    {"promiscuous": true, "name": "reset", "main-mac": "52:54:00:12:34:57", "unicast": "normal", "vlan": "all"},
    {"promiscuous": true, "name": "listening", "vlan": "none"}, {"promiscuous": false, "name": "quiet", "vlan": "normal"},
    {"promiscuous": false, "name": "old", "vlan": "all"}, {"name": "lame"}, 7])");
  const std::vector<std::pair<std::string, bool>> expected{{"listening", true}, {"quiet", false}, {"old", false}};
  EXPECT_EQ(filters, expected);
  EXPECT_TRUE(parse_rx_filters("{").empty());
  EXPECT_TRUE(parse_rx_filters("{}").empty());
}

} // namespace
} // namespace lararium::qemu
