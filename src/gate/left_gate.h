// A gate's pages as they lie in a guest, whoever put them there, and however far they got; and how they are taken out.
#pragma once

#include "trampoline.h"

#include "lararium/os/common/operating_system.h"
#include "lararium/os/linux/kernel.h"
#include "lararium/vm/code_writer.h"

#include <algorithm>
#include <chrono>
#include <optional>
#include <string>
#include <vector>

namespace lararium::gate {

inline constexpr int removal_tries = 50; // to meet a moment in which no vCPU is inside

struct Found {
  Gva window;
  Gpa entry, table;
  std::vector<Gpa> frames;
  std::vector<PatchedSite> sites;
  std::uint32_t generation = 0;
  std::uint32_t pages = 0; // of the area, from the first frame on; more than `frames` where SIM has its own space
  Gva rings_window{};      // 0: no rings in a device's memory
  Gpa rings_entry{}, rings_memory{};
  bool is_foreign = false; // of a version that has another layout

  [[nodiscard]] bool holds(Gva address) const {
    return std::ranges::any_of(frames, [&](Gpa frame) {
      return address >= window + frame.value && address - (window + frame.value) < page_size;
    });
  }
};

// Nothing: the guest has none.
[[nodiscard]] std::optional<Found> find_area(const linux_guest::Kernel &kernel);

// Puts the calls back, and clears the pages once no vCPU is in them. What could not be is said in `left`.
[[nodiscard]] Result<void> take_out(OperatingSystem &system, const linux_guest::Kernel &kernel, CodeWriter &writer,
                                    const Found &area, std::chrono::microseconds grace, std::vector<std::string> &left);

} // namespace lararium::gate
