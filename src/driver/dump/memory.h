// The physical memory of dumps.
#pragma once

#include "dump_file.h"

#include "lararium/vm/physical_memory.h"

#include <memory>
#include <vector>

namespace lararium::dump {

// x86-64 has at most 52 bits of physical address; so has arm64 without LPA2's 56, which no guest of 4 KiB pages needs.
inline constexpr std::uint64_t physical_limit = std::uint64_t{1} << 52;
// Most ranges of RAM that a dump's index may describe; more become one where the hole between them is small.
inline constexpr std::size_t range_limit = 65536;

// Memory that lies in the file as it is. The largest extents are mapped runs, which are read with no virtual call; the
// others, of which a makedumpfile core has thousands, are found by binary search.
class ExtentMemory final : public PhysicalMemory {
public:
  // Extents map guest-physical addresses to offsets in the file's image; `ranges` may describe more than they cover.
  ExtentMemory(std::shared_ptr<const DumpFile> file, ExtentMap extents, std::vector<RamRange> ranges);

  // Leaves out holes of a sparse file, runs of zeros and what is missing.
  [[nodiscard]] std::vector<RamRange> populated(Gpa base, std::uint64_t size) const override;

protected:
  [[nodiscard]] bool read_unmapped(Gpa address, std::span<std::byte> out) const override;

private:
  std::shared_ptr<const DumpFile> file_;
  ExtentMap extents_;
};

// The union of runs, sorted; holes are closed, the smallest first, until no more than `range_limit` are left.
[[nodiscard]] std::vector<RamRange> unite(std::vector<RamRange> ranges);

} // namespace lararium::dump
