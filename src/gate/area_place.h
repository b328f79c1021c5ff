// Where in a guest the gate's pages can lie: physical pages that the kernel has set aside and does not use, and an
// entry of its page tables that is free for ever.
//
// Pages: Linux keeps the first MiB of RAM reserved (all of it since f1d4d47c5851, 5.13 and its stable backports; the
// first 64 KiB before). What is reserved is read from the kernel's own page structures. Taken are only pages that its
// memory map calls RAM, that hold nothing but zeros, and that are not its code for starting other CPUs.
//
// Entry: of the table that maps the last GiB of the address space (level2_fixmap_pgt), which all processes share, above
// the modules' room and the fixmap: "6 MB reserved space + a 2MB hole" in arch/x86/kernel/head_64.S. No allocation of
// the kernel's ever gets there.
//
// The 2 MiB of that entry, the window, map physical memory from 0 on: the page at a distance in the window is the one
// at that physical address, whoever puts it there and whenever. So a translation that a CPU kept from an earlier gate
// is never a wrong one: from outside, no CPU can be told to forget it.
#pragma once

#include "lararium/base/bytes.h"
#include "lararium/base/result.h"
#include "lararium/os/linux/kernel.h"

#include <cstdint>
#include <optional>
#include <vector>

namespace lararium::gate {

struct AreaPlace {
  Gva window;
  Gpa entry; // of the page table entry that leads to `table`
  Gpa table; // our page table
  Gpa first; // of the area's frames, which follow each other
  // Where SIM's rings lie in a device's memory: another window, whose entry maps that at once.
  Gva rings_window{};
  Gpa rings_entry{}, rings_memory{};
  [[nodiscard]] Gva base() const { return window + first.value; }
};

// Candidates for the window, best first.
[[nodiscard]] std::vector<Gva> area_windows();

// Where the entry lies that maps a window, in the tables of the kernel; nothing where those above it are absent.
[[nodiscard]] std::optional<Gpa> window_entry(const linux_guest::Kernel &kernel, Gva window);

// What one of our own areas left behind where the kernel that it was put into runs no more: pages of it that are still
// as they were count as unused.
struct Remains {
  Gpa first;
  std::vector<std::byte> area;
  Gpa table;
  std::vector<std::byte> table_page;
  [[nodiscard]] bool has(Gpa page, Bytes content) const;
};

// A place for so many pages, besides its page table. `unsupported` says what is missing.
[[nodiscard]] Result<AreaPlace> find_area_place(const linux_guest::Kernel &kernel, std::size_t pages,
                                                const Remains &remains);

// A RAM block by its whole name, or by the id of the object that it is of.
[[nodiscard]] std::optional<RamRange> find_block(const PhysicalMemory &memory, std::string_view name);

// A free window for rings in the memory of a RAM block; of no use are blocks of which the kernel has RAM, and those in
// which something stands.
[[nodiscard]] Result<void> find_rings_place(const linux_guest::Kernel &kernel, const PhysicalMemory &memory,
                                            std::string_view block, std::uint64_t size, AreaPlace &place);

// The entries of the page table: code is executable, of the rest only `writable` pages (by number) can be written.
// Everything that a CPU would set itself (accessed, dirty) is set.
[[nodiscard]] std::uint64_t area_table_entry(Gpa frame, bool executable, bool writable);
[[nodiscard]] std::uint64_t area_directory_entry(Gpa table);
// Of the window of the rings.
[[nodiscard]] std::uint64_t rings_directory_entry(Gpa memory);
inline constexpr std::uint64_t rings_room = 2 << 20; // that one entry maps

} // namespace lararium::gate
