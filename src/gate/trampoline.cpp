#include "trampoline.h"

#include <algorithm>
#include <cstring>

extern "C" {
extern const std::byte lararium_trampoline[], lararium_trampoline_end[], lararium_sim_call[],
    lararium_sim_call_in_space[];
}

namespace lararium::gate {
namespace {

template <class T> void store(std::span<std::byte> area, std::uint64_t offset, const T &value) {
  std::memcpy(area.data() + offset, &value, sizeof value);
}

// A direct call or jump at `from` to `to`, as it is encoded.
void store_branch(std::span<std::byte> area, Gva base, std::uint64_t from, std::uint8_t opcode, Gva to) {
  store(area, from, opcode);
  store(area, from + 1, static_cast<std::int32_t>(to - (base + (from + 5))));
}

} // namespace

Bytes trampoline_code() {
  return {lararium_trampoline, static_cast<std::size_t>(lararium_trampoline_end - lararium_trampoline)};
}

std::uint64_t stub_offset(std::size_t number) { return trampoline_code().size() + number * STUB_SIZE; }

std::size_t stub_room() {
  return std::min(stub_limit, (GATE_CODE_PAGES * page_size - trampoline_code().size()) / STUB_SIZE);
}

std::vector<std::byte> make_area(Gva base, const AreaShape &shape, const BoardSettings &settings,
                                 std::span<const Stub> stubs, std::span<const PatchedSite> sites) {
  std::vector<std::byte> area(shape.size());
  std::ranges::copy(trampoline_code(), area.begin());
  if (shape.sim.ring_size != 0) {
    std::ranges::copy(sim::code(), area.begin() + static_cast<std::ptrdiff_t>(shape.sim_code()));
    for (const std::byte *call : {lararium_sim_call, lararium_sim_call_in_space})
      store_branch(area, base, static_cast<std::uint64_t>(call - lararium_trampoline), 0xe8, base + shape.sim_code());
  }
  for (std::size_t i = 0; i < stubs.size(); ++i) {
    const std::uint64_t at = stub_offset(i);
    std::fill_n(area.begin() + static_cast<std::ptrdiff_t>(at), STUB_SIZE, std::byte{0xcc});
    store_branch(area, base, at, 0xe8, base); // `enter` is the first thing there
    store_branch(area, base, at + 5, 0xe9, stubs[i].way_on);
    const std::uint64_t entry = GATE_STUBS + i * STUB_ENTRY_SIZE;
    store(area, entry + STUB_ARGUMENT, stubs[i].filter.argument);
    store(area, entry + STUB_HOOK, stubs[i].hook);
    store(area, entry + STUB_MASK, stubs[i].filter.mask);
    store(area, entry + STUB_VALUE_A, stubs[i].filter.value);
    store(area, entry + STUB_VALUE_B, stubs[i].filter.other_value);
    store(area, entry + STUB_SIM, stubs[i].sim);
    store(area, entry + STUB_PLAN, stubs[i].plan);
    store(area, entry + STUB_FIRST_SITE, stubs[i].first_site);
    store(area, entry + STUB_SITE_COUNT, stubs[i].site_count);
    store(area, entry + STUB_SKIP, std::uint8_t{stubs[i].only_by_rules});
    store(area, entry + STUB_MAY_DENY, std::uint8_t{stubs[i].may_deny});
  }
  for (std::size_t i = 0; i < sites.size(); ++i)
    store(area, GATE_SITES + i * sizeof(PatchedSite), sites[i]);
  const auto board = [&](std::uint64_t offset, auto value) { store(area, GATE_BOARD + offset, value); };
  board(BOARD_MAGIC, area_magic);
  board(BOARD_VERSION, area_version);
  board(BOARD_ON, std::uint8_t{settings.on});
  board(BOARD_DEFAULT, settings.default_verdict);
  board(BOARD_GENERATION, settings.generation);
  board(BOARD_CPU_COUNT, shape.cpus);
  board(BOARD_STUB_COUNT, static_cast<std::uint32_t>(stubs.size()));
  board(BOARD_SITE_COUNT, static_cast<std::uint32_t>(sites.size()));
  board(BOARD_SPIN, settings.spin_cycles);
  board(BOARD_PATIENCE, settings.patience_cycles);
  board(BOARD_HEARTBEAT, std::uint64_t{1});
  board(BOARD_SIM_DATA, settings.sim_data);
  board(BOARD_SIM_SPACE, settings.space_cr3);
  board(BOARD_CR3_KEEP, settings.cr3_keep);
  board(BOARD_PAGES, static_cast<std::uint32_t>(shape.pages()));
  board(BOARD_RINGS, settings.rings);
  const Gva rings = shape.sim.rings_elsewhere ? settings.rings : settings.sim_data + shape.sim.rings();
  for (std::uint32_t cpu = 0; cpu < shape.cpus; ++cpu) {
    const std::uint64_t entry = shape.cpu_entry(cpu);
    store(area, entry + CPU_BELL, base + shape.bell_of(cpu, 0));
    store(area, entry + CPU_BELL_MASK, std::uint64_t{shape.bells - 1} << 12);
    store(area, entry + CPU_SLOT, base + shape.slot_of(cpu));
    if (shape.sim.ring_size == 0)
      continue;
    store(area, entry + CPU_STATE, settings.sim_data + shape.sim.cpu_page(cpu));
    store(area, entry + CPU_RING, rings + cpu * shape.sim.ring_size);
    store(area, entry + CPU_DOORBELL, base + shape.doorbell_of(cpu, 0));
  }
  return area;
}

} // namespace lararium::gate
