// A guest's process as what the dump driver writes: the one place where the two meet.
#pragma once

#include "lararium/driver/dump.h"
#include "lararium/os/common/operating_system.h"

#include <cstdint>
#include <span>

namespace lararium::cli {

[[nodiscard]] ProcessCore process_core_of(ProcessImage image);

// Reads a process' pages, and no more of them than can be looked at in bounded time: a process may claim to map 128
// TiB.
class ProcessPages {
public:
  ProcessPages(OperatingSystem &system, const ProcessCore &core) : system_(system), core_(core) {}
  [[nodiscard]] ProcessPage read(Gva page, std::span<std::byte> out) const;

private:
  static constexpr std::uint64_t most_absent = 1ULL << 24; // pages that are not there: 64 GiB of them
  OperatingSystem &system_;
  const ProcessCore &core_;
  mutable std::uint64_t absent_ = 0;
};

} // namespace lararium::cli
