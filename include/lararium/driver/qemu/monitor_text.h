// Parsers of what QEMU's human monitor prints, as of QEMU 7.2 and 10.0. QEMU is trusted more than the guest, but it has
// been broken into before: each parser takes any text and stays within bounds.
#pragma once

#include "lararium/base/result.h"
#include "lararium/vm/run_control.h"
#include "lararium/vm/target.h"
#include "lararium/vm/vcpu.h"

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lararium::qemu {

// A line of `info ramblock`.
struct RamBlock {
  std::string name; // "pc.ram", "/objects/mem1", "0000:00:02.0/vga.vram"
  std::uint64_t page_size = 0;
  std::uint64_t used = 0;
  std::optional<Hva> host; // QEMU tells it from 8.0 on

  bool operator==(const RamBlock &) const = default;
};

// A range of the flat view of guest-physical memory (`info mtree -f`).
struct FlatRange {
  enum class Kind : std::uint8_t { ram, rom, other };
  Gpa base;
  std::uint64_t size = 0;
  Kind kind = Kind::other;
  bool nonvolatile = false;
  std::string region;       // the memory region's name: the block's, or its last part
  std::uint64_t offset = 0; // in the region

  bool operator==(const FlatRange &) const = default;
};

// RAM of the guest, resolved to an offset in a block.
struct BlockRange {
  Gpa base;
  std::uint64_t size = 0;
  std::size_t block = 0; // index into the RAM blocks
  std::uint64_t offset = 0;
};

struct HostAddress {
  std::string block;
  Hva host;
};

[[nodiscard]] Result<std::vector<RamBlock>> parse_ram_blocks(std::string_view text);
// The ranges of address space "memory", sorted.
[[nodiscard]] Result<std::vector<FlatRange>> parse_flat_view(std::string_view text);
[[nodiscard]] Result<HostAddress> parse_host_address(std::string_view text); // `gpa2hva`
[[nodiscard]] Result<std::vector<VcpuRegisters>> parse_registers(std::string_view text);
[[nodiscard]] std::vector<BlockCounters> parse_block_counters(std::string_view text); // `info blockstats`
// "VM status: paused (io-error)"
[[nodiscard]] Result<RunState> parse_run_state(std::string_view text);
// A value of QMP's RunState, as query-status has it.
[[nodiscard]] RunState run_state_of(std::string_view name);

// A network device of the guest's and what it is connected to, as `info network` lists them.
struct NetworkDevice {
  std::string name, model, mac;
  std::string peer; // empty: connected to nothing

  bool operator==(const NetworkDevice &) const = default;
};
[[nodiscard]] std::vector<NetworkDevice> parse_network_devices(std::string_view text);
// The addresses that devices were configured with (`info qtree`), each with what the device is connected to.
struct ConfiguredMac {
  std::string peer, mac;

  bool operator==(const ConfiguredMac &) const = default;
};
[[nodiscard]] std::vector<ConfiguredMac> parse_configured_macs(std::string_view text);

// Which ranges are the guest's RAM: main memory, NUMA nodes and DIMMs, whatever of it is write-protected at the moment
// (the shadowed BIOS), but no firmware image and no device's memory, save blocks with a name among `shared` (of ivshmem
// devices). Neighbours that continue each other are joined.
[[nodiscard]] Result<std::vector<BlockRange>> main_memory(const std::vector<RamBlock> &blocks,
                                                          const std::vector<FlatRange> &ranges,
                                                          std::span<const std::string> shared = {});

} // namespace lararium::qemu
