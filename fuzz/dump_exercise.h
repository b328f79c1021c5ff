// What a caller may do with any dump that opened, shared by the fuzzers of its formats.
#pragma once

#include "lararium/vm/target.h"

#include <array>
#include <cstdlib>
#include <vector>

namespace lararium {

inline void exercise(Target &target) {
  if (target.memory == nullptr)
    std::abort();
  const PhysicalMemory &memory = *target.memory;
  std::vector<std::byte> out(3 * page_size);
  std::uint64_t end = 0;
  std::size_t left = 64;
  for (const RamRange &range : memory.ranges()) {
    // Sorted, apart, and below what a physical address can be: all else relies on it.
    if (range.size == 0 || range.base.value < end || range.base.value + range.size < range.base.value ||
        range.base.value + range.size > std::uint64_t{1} << 52)
      std::abort();
    end = range.base.value + range.size;
    if (left-- == 0)
      break;
    for (const std::uint64_t offset : {std::uint64_t{0}, range.size / 2 + 1, range.size - 1})
      for (const std::size_t size : {std::size_t{1}, std::size_t{8}, out.size()})
        static_cast<void>(memory.read(range.base + offset, std::span(out).first(size)));
    if (const Bytes bytes = memory.view(range.base); !bytes.empty())
      out[0] = bytes[bytes.size() - 1];
  }
  for (const std::uint64_t address :
       {std::uint64_t{0}, page_size, std::uint64_t{1} << 32, UINT64_MAX - 100, UINT64_MAX})
    static_cast<void>(memory.read(Gpa{address}, out));
  std::uint64_t position = 0;
  for (const RamRange &part : memory.populated(Gpa{0}, UINT64_MAX)) {
    if (part.size == 0 || part.base.value < position)
      std::abort();
    position = part.base.value + part.size;
  }
  if (target.vcpus != nullptr && !target.vcpus->registers())
    std::abort();
}

} // namespace lararium
