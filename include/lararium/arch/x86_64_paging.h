// x86-64 page tables, four and five levels. Pure functions: the caller brings the way to read an entry.
// Source of the layout: Intel SDM volume 3A, chapter 4 (tables 4-14 to 4-20); Linux'
// arch/x86/include/asm/pgtable_types.h.
#pragma once

#include "lararium/base/address.h"

#include <cstdint>
#include <optional>

namespace lararium::x86_64 {

struct PageTableRoot {
  Gpa table;      // physical address of the top table
  int levels = 4; // 4 or 5

  constexpr auto operator<=>(const PageTableRoot &) const = default;
  // CR3 without PCID and flags. Linux with page table isolation keeps a process' user table one page above its kernel
  // table; see kernel_half().
  static constexpr PageTableRoot from_registers(std::uint64_t cr3, bool five_level) {
    return {Gpa{cr3 & 0x000ffffffffff000}, five_level ? 5 : 4};
  }
  [[nodiscard]] constexpr PageTableRoot kernel_half() const { return {Gpa{table.value & ~page_size}, levels}; }
};

struct Translation {
  Gpa address;
  std::uint64_t page_bytes = 0; // 4 KiB, 2 MiB or 1 GiB: the size of the page that maps it
  bool writable = false, user = false, executable = false;
};

namespace entry {
inline constexpr std::uint64_t present = 1;
inline constexpr std::uint64_t writable = 2;
inline constexpr std::uint64_t user = 4;
inline constexpr std::uint64_t large = 1 << 7;
inline constexpr std::uint64_t no_execute = 1ULL << 63;
inline constexpr std::uint64_t address_mask = 0x000ffffffffff000;
} // namespace entry

// An address is canonical when the bits above the translated ones repeat the topmost of these.
constexpr bool is_canonical(Gva address, int levels) {
  const int shift = 64 - (12 + 9 * levels);
  return static_cast<std::uint64_t>(static_cast<std::int64_t>(address.value << shift) >> shift) == address.value;
}

constexpr Gva sign_extend(std::uint64_t address, int levels) {
  const int shift = 64 - (12 + 9 * levels);
  return Gva{static_cast<std::uint64_t>(static_cast<std::int64_t>(address << shift) >> shift)};
}

// Where the entry for `address` lies in a table of `level` (1: the lowest).
constexpr Gpa entry_address(Gpa table, Gva address, int level) {
  return table + 8 * (address.value >> (12 + 9 * (level - 1)) & 511);
}

// Walks at most `levels` tables, so that tables which point to themselves end like all others. `read_entry(Gpa)` gives
// std::optional<std::uint64_t>.
template <class ReadEntry>
constexpr std::optional<Translation> translate(PageTableRoot root, Gva address, ReadEntry &&read_entry) {
  if (!is_canonical(address, root.levels))
    return std::nullopt;
  Translation result{{}, 0, true, true, true};
  Gpa table = root.table;
  for (int level = root.levels; level >= 1; --level) {
    const int shift = 12 + 9 * (level - 1);
    const std::optional<std::uint64_t> value = read_entry(entry_address(table, address, level));
    if (!value || (*value & entry::present) == 0)
      return std::nullopt;
    result.writable &= (*value & entry::writable) != 0;
    result.user &= (*value & entry::user) != 0;
    result.executable &= (*value & entry::no_execute) == 0;
    const bool leaf = level == 1 || (*value & entry::large) != 0;
    if (leaf && level > 3)
      return std::nullopt; // the large bit is reserved there
    if (leaf) {
      result.page_bytes = std::uint64_t{1} << shift;
      const std::uint64_t offset_mask = result.page_bytes - 1;
      result.address = Gpa{(*value & entry::address_mask & ~offset_mask) | (address.value & offset_mask)};
      return result;
    }
    table = Gpa{*value & entry::address_mask};
  }
  return std::nullopt;
}

} // namespace lararium::x86_64
