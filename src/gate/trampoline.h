// The pages that the gate puts into a guest, as bytes. Pure.
#pragma once

#include "lararium/base/address.h"
#include "lararium/base/bytes.h"
#include "lararium/gate/hook.h"
#include "sim/pages.h"
#include "trampoline_layout.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace lararium::gate {

static_assert(GATE_BOARD + BOARD_SIZE <= GATE_STUBS && GATE_BOARD == GATE_CODE_PAGES * page_size);

inline constexpr std::size_t stub_limit = (GATE_SITES - GATE_STUBS) / STUB_ENTRY_SIZE, site_limit = page_size / 32;
inline constexpr std::uint64_t area_magic = 0x544147415241524c; // "LRARAGAT"
inline constexpr std::uint32_t area_version = 3;

// One way from a hooked call to the watched function.
struct Stub {
  Gva way_on;
  std::uint8_t hook = 0;
  ArgumentFilter filter{};
  std::uint8_t sim = 0; // STUB_SIM_RECORD, STUB_SIM_ASK; 0: each call waits at the gate
  std::uint8_t plan = 0, first_site = 0, site_count = 0;
  bool only_by_rules = false, may_deny = false;
};

// A call of the kernel that leads to a stub, as the area keeps it for whoever has to undo it.
struct PatchedSite {
  Gva address; // of the instruction; the distance follows its first byte
  Gpa physical;
  std::int32_t original = 0, patched = 0;
  std::uint32_t stub = 0;
  std::uint32_t reserved = 0;
  auto operator<=>(const PatchedSite &) const = default;
};
static_assert(sizeof(PatchedSite) == 32);

// A CPU's event, as the guest writes it.
struct Slot {
  std::uint64_t number;
  std::array<std::uint64_t, 6> arguments;
  std::uint64_t stack, caller;
  std::uint32_t stub, abandoned;
};
static_assert(offsetof(Slot, stack) == SLOT_STACK && offsetof(Slot, caller) == SLOT_CALLER &&
              offsetof(Slot, stub) == SLOT_STUB && offsetof(Slot, abandoned) == SLOT_ABANDONED);

// Where what lies for one number of CPUs, as offsets from the area's first byte.
struct AreaShape {
  std::uint32_t cpus = 0;
  std::uint32_t bells = 0; // a CPU: a power of two
  sim::Shape sim{};
  std::uint32_t space_tables = 0; // pages for the tables of SIM's address space

  [[nodiscard]] std::uint64_t slots() const { return GATE_CPUS + pages_for(cpus * GATE_CPU_SIZE) * page_size; }
  [[nodiscard]] std::uint64_t first_bell() const { return slots() + pages_for(cpus * SLOT_SIZE) * page_size; }
  [[nodiscard]] std::uint64_t first_doorbell() const { return first_bell() + std::uint64_t{cpus} * bells * page_size; }
  [[nodiscard]] std::uint64_t sim_code() const {
    return first_doorbell() + (sim.ring_size == 0 ? 0 : std::uint64_t{cpus} * doorbells * page_size);
  }
  [[nodiscard]] std::uint64_t sim_data() const { return sim_code() + (sim.ring_size == 0 ? 0 : GATE_SIM_SIZE); }
  [[nodiscard]] std::uint64_t space() const { return sim_data() + sim.size(); }
  [[nodiscard]] std::uint64_t size() const { return space() + space_tables * page_size; }
  [[nodiscard]] std::size_t pages() const { return size() / page_size; }
  [[nodiscard]] std::uint64_t slot_of(std::uint32_t cpu) const { return slots() + std::uint64_t{cpu} * SLOT_SIZE; }
  [[nodiscard]] std::uint64_t cpu_entry(std::uint32_t cpu) const {
    return GATE_CPUS + std::uint64_t{cpu} * GATE_CPU_SIZE;
  }
  [[nodiscard]] std::uint64_t bell_of(std::uint32_t cpu, std::uint64_t event) const {
    return first_bell() + (std::uint64_t{cpu} * bells + (event & (bells - 1))) * page_size;
  }
  [[nodiscard]] bool is_code(std::uint64_t offset) const {
    return offset < GATE_CODE_PAGES * page_size || (offset >= sim_code() && offset < sim_data());
  }
  [[nodiscard]] std::uint64_t doorbell_of(std::uint32_t cpu, std::uint64_t ring) const {
    return first_doorbell() + (std::uint64_t{cpu} * doorbells + (ring & (doorbells - 1))) * page_size;
  }
  // What the guest itself may write to.
  [[nodiscard]] bool is_slot(std::uint64_t offset) const { return offset >= slots() && offset < first_bell(); }
  [[nodiscard]] bool is_bell(std::uint64_t offset) const { return offset >= first_bell() && offset < first_doorbell(); }
  [[nodiscard]] bool is_doorbell(std::uint64_t offset) const {
    return offset >= first_doorbell() && offset < sim_code();
  }
  [[nodiscard]] bool is_ring(std::uint64_t offset) const {
    return offset >= sim_data() + sim::Shape::held() && offset < space();
  }
  // Mapped where every process sees it.
  [[nodiscard]] bool is_everywhere(std::uint64_t offset) const { return space_tables == 0 || offset < sim_data(); }
  static constexpr std::uint64_t doorbells = 2; // a CPU

  static constexpr std::uint64_t pages_for(std::uint64_t bytes) { return (bytes + page_mask) / page_size; }
};

struct BoardSettings {
  bool on = false;
  std::uint8_t default_verdict = 0; // an errno, or 0
  std::uint32_t generation = 0;
  std::uint64_t spin_cycles = 0, patience_cycles = 0;
  Gva sim_data{};                            // where the code in the guest finds it
  std::uint64_t space_cr3 = 0, cr3_keep = 0; // of SIM's address space; what CR3 takes besides on the way back
  Gva rings{};                               // the window of a device's memory; 0: they lie behind SIM's data
};

// The first stub's place; the stubs follow each other.
[[nodiscard]] std::uint64_t stub_offset(std::size_t number);
// At most so many have room.
[[nodiscard]] std::size_t stub_room();

// The whole area, bells and slots too, for an area at `base`. `stubs` and `sites` within their limits.
[[nodiscard]] std::vector<std::byte> make_area(Gva base, const AreaShape &shape, const BoardSettings &settings,
                                               std::span<const Stub> stubs, std::span<const PatchedSite> sites);

// The code alone, for the test that reads it.
[[nodiscard]] Bytes trampoline_code();

} // namespace lararium::gate
