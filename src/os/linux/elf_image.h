// The head of a program's file: where its segments lie, and where it begins to run.
#pragma once

#include "lararium/base/bytes.h"

#include <cstdint>
#include <optional>
#include <vector>

namespace lararium::linux_guest {

struct ElfSegment { // PT_LOAD
  std::uint64_t address = 0, memory_size = 0, file_offset = 0, file_size = 0;
  bool executable = false;
};

struct ElfImage {
  std::uint64_t entry = 0; // in the addresses of the segments
  std::vector<ElfSegment> segments;

  // The segment whose bytes in the file hold the address; null: none.
  [[nodiscard]] const ElfSegment *segment_of(std::uint64_t address) const {
    for (const ElfSegment &segment : segments)
      if (address >= segment.address && address - segment.address < segment.file_size)
        return &segment;
    return nullptr;
  }
};

// Of a 64-bit x86 program whose header and table of segments lie in these bytes, the first of its file; nothing else.
[[nodiscard]] std::optional<ElfImage> parse_elf_image(Bytes bytes);

} // namespace lararium::linux_guest
