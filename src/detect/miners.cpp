// Processes that mine cryptocurrency: by command line, and by memory that an algorithm prescribes.

#include "lararium/detect/check.h"
#include "miner_signs.h"
#include "process_finding.h"

#include <algorithm>
#include <fmt/format.h>

namespace lararium::detect {
namespace {

constexpr std::uint64_t smallest_miner = std::uint64_t{2080} << 20; // virtual bytes
constexpr std::size_t big_limit = 1024; // processes whose areas are looked at: each costs a walk through all tasks
constexpr double busy = 0.25;           // of one CPU, since it started

class Miners final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override {
    const auto pulse = scene.system().pulse();
    std::size_t left = big_limit;
    for (const Process &process : scene.processes()) {
      if (process.kernel_thread || !process.memory)
        continue;
      const double load = load_of(process, pulse ? pulse->uptime_ns : std::nullopt);
      if (const auto sign = miner_sign(process.exe, process.arguments))
        add_finding(scene, findings, process, "command line of a miner", Severity::high, "T1496",
                    fmt::format("mines cryptocurrency by its command line: {}", *sign))
            .with("found", *sign)
            .with("path", process.exe)
            .with("cpu_percent", static_cast<std::uint64_t>(load * 100));
      else if (process.virtual_bytes >= smallest_miner && left != 0 && --left != 0)
        look_at_memory(scene, process, load, findings);
    }
    return {};
  }

private:
  // How many CPUs it kept busy since it started.
  static double load_of(const Process &process, std::optional<std::uint64_t> now) {
    if (!now || *now <= process.start_since_boot_ns)
      return 0;
    const double used = static_cast<double>(process.user_time_ns) + static_cast<double>(process.system_time_ns);
    return used / static_cast<double>(*now - process.start_since_boot_ns);
  }

  static void look_at_memory(const Scene &scene, const Process &process, double load, Findings &findings) {
    const auto regions = scene.system().memory_regions(process.tgid);
    if (!regions)
      return;
    const auto dataset = std::ranges::find_if(regions->items, [](const MemoryRegion &region) {
      return region.readable && !region.shared && is_randomx_dataset(region.end - region.begin) &&
             (region.inode == 0 || region.path.find("hugepage") != region.path.npos);
    });
    if (dataset == regions->items.end())
      return;
    const bool is_busy = load >= busy;
    add_finding(scene, findings, process, "dataset of a miner", is_busy ? Severity::high : Severity::medium, "T1496",
                fmt::format("has memory of just the size that the mining algorithm RandomX prescribes{}",
                            is_busy ? ", and keeps a CPU busy" : ""))
        .with("address", dataset->begin)
        .with("size", std::uint64_t{dataset->end - dataset->begin})
        .with("path", process.exe)
        .with("cpu_percent", static_cast<std::uint64_t>(load * 100));
  }
};

LARARIUM_CHECK(
    Miners, "miners", "T1496", "processes that mine cryptocurrency",
    "Looks at every command line for names of miners, their options, and pools' addresses; and at the memory of every "
    "process for an area of exactly the size of RandomX's dataset, 2080 MiB, or of dataset and cache, 2336 MiB (high "
    "where the process kept a quarter of a CPU busy since it started). A renamed miner of another algorithm that is "
    "told its pool in a file, or a dataset in pages of 1 GiB, is not seen.")

} // namespace
} // namespace lararium::detect
