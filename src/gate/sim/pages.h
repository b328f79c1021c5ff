// The pages of layout.h, for one kernel.
#pragma once

#include "layout.h"

#include "lararium/base/bytes.h"
#include "lararium/gate/sim.h"

#include <array>
#include <vector>

namespace lararium::gate::sim {

// The code, to be copied to where the trampoline calls it.
[[nodiscard]] Bytes code();

// Where what lies, from the first page on.
struct Shape {
  std::uint32_t cpus = 0;
  std::uint64_t ring_size = 0;  // 0: there is no SIM
  bool rings_elsewhere = false; // not behind the CPUs' pages, but in memory of a device's

  [[nodiscard]] static constexpr std::uint64_t held() { return 4 * page; } // what the guest may not write to
  [[nodiscard]] std::uint64_t cpu_page(std::uint32_t cpu) const { return held() + cpu * page; }
  [[nodiscard]] std::uint64_t rings() const { return cpu_page(cpus); }
  [[nodiscard]] std::uint64_t size() const {
    return ring_size == 0 ? 0 : rings() + (rings_elsewhere ? 0 : cpus * ring_size);
  }
};

struct Keys {
  std::array<std::uint64_t, record_words> hash{};
  std::vector<std::array<std::uint64_t, 2>> cpus;
};
[[nodiscard]] Keys new_keys(std::uint32_t cpus);

// The captures of one function's hook. An error says which member the kernel lacks.
[[nodiscard]] Result<Plan> plan_of(const linux_guest::Kernel &kernel, const HookPoint &point);

// `hooks`: in the order of their numbers, at most hook_limit. `plans`: at most plan_limit.
[[nodiscard]] Result<std::vector<std::byte>> make_pages(const linux_guest::Kernel &kernel, const Shape &shape,
                                                        const SimOptions &options, std::uint64_t patience_cycles,
                                                        const std::vector<const HookEntry *> &hooks,
                                                        const std::vector<Plan> &plans, const Keys &keys);

// The page of rules alone, and that of their texts, for rules that change.
[[nodiscard]] Result<void> write_rules(std::span<std::byte> pages, const SimOptions &options,
                                       const std::vector<const HookEntry *> &hooks);

} // namespace lararium::gate::sim
