// Pages whose writes are held: how they are written to by us, and put back when somebody else wrote to one.
#pragma once

#include "lararium/vm/physical_memory.h"
#include "lararium/vm/protection.h"

namespace lararium::gate {

// A word of 8 bytes is written whole, for a CPU that looks at it.
[[nodiscard]] Result<void> write_held(WriteProtection &protection, Gpa address, Bytes bytes);

// What was different in a page, from its first to its last such byte.
struct PageRepair {
  std::uint64_t offset = 0;
  std::vector<std::byte> found; // in its place; `right.size()` bytes
  Bytes right;                  // of what the page should be
  bool done = false;
};
// Whoever wrote there was let go, and the page is `now` another one than it should be: holds it again, looks once more,
// and writes what is to be there. A VM that translates code must be told of that by others.
[[nodiscard]] PageRepair put_back(WriteProtection &protection, PhysicalMemory &memory, Gpa page, Bytes should_be);

} // namespace lararium::gate
