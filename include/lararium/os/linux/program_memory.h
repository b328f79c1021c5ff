// What processes execute: the executable areas of their memory, and how the pages there compare with the files that
// they are of.
#pragma once

#include "lararium/arch/x86_64_paging.h"
#include "lararium/os/common/views.h"
#include "lararium/os/linux/kernel.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

namespace lararium::linux_guest {

struct ExecutableArea {
  Gva area; // its struct vm_area_struct
  Gva begin, end;
  bool writable = false, shared = false;
  bool huge = false;     // of hugetlbfs
  bool unlinked = false; // of a file that no directory names any more
  Gva file;              // struct file; null: anonymous, also where a private mapping of /dev/zero made it so
  Gva dentry;            // of the path that /proc shows: one for all that is mapped of a file, overlayfs or not
  std::uint64_t file_offset = 0;
};

struct Program {
  Gva memory; // struct mm_struct
  x86_64::PageTableRoot root;
  std::vector<ExecutableArea> areas; // in order of address
  Gva entry;                         // where the main image begins to run (AT_ENTRY); null: not loaded yet
  Gva dentry;                        // of what /proc/PID/exe leads to; null: it has none
  bool raced = false;                // the areas changed while they were read
};

// A page that differs from its file. At most what a person looks at.
struct PageDifference {
  Gva address;                   // of the first byte that differs
  std::uint64_t file_offset = 0; // of the same
  std::uint32_t bytes = 0;       // how many differ
  bool only_breakpoints = false; // each of them is an INT3 in memory
  std::array<std::byte, 16> expected{}, found{};
  std::size_t shown = 0; // how many of the arrays count
};

struct TextComparison {
  std::uint64_t pages = 0;     // that are in memory
  std::uint64_t copied = 0;    // of these, that are not the file's own
  std::uint64_t unknown = 0;   // of these, whose file has no such page in memory
  std::uint64_t different = 0; // of these, that differ
  std::vector<PageDifference> differences;
  static constexpr std::size_t difference_limit = 4;
};

struct MemorySample {
  std::uint64_t resident = 0; // bytes that are in memory
  Gva address;                // of the first that is not zero; null: none of those that were looked at
  std::array<std::byte, 16> bytes{};
  bool is_image = false; // an ELF header stands at the area's begin
};

// Make one for a look: it keeps where files have their pages. What it reads over its life is bounded.
class ProgramMemory {
public:
  [[nodiscard]] static Result<ProgramMemory> create(const Kernel &kernel);
  ProgramMemory(ProgramMemory &&) noexcept;
  ProgramMemory &operator=(ProgramMemory &&) noexcept;
  ~ProgramMemory();

  // Nothing when the mm_struct cannot be read. By the areas' flags alone: what the page tables allow is not asked.
  [[nodiscard]] std::optional<Program> program(Gva memory) const;

  // The path and all else that /proc/PID/maps shows; nothing when it is another area by now.
  [[nodiscard]] std::optional<MemoryRegion> describe(const Program &program, const ExecutableArea &area) const;

  // The area's pages with the page cache of its file. A page that is the cache's own is not looked into. What the
  // kernel's own uprobes put there is no difference. A page that a process copied and that was swapped out, or whose
  // file's page was evicted, is not compared.
  [[nodiscard]] TextComparison compare(const Program &program, const ExecutableArea &area) const;

  // Whether the code at the program's entry is what its file has there, wherever that memory comes from: so it is where
  // a program moved itself to huge pages. Nothing: no page of both is in memory.
  [[nodiscard]] std::optional<bool> entry_is_of_file(const Program &program) const;

  [[nodiscard]] MemorySample sample(const Program &program, const ExecutableArea &area) const;

  // Whether the program's file was unlinked, and another file has its name now, as after an upgrade.
  [[nodiscard]] bool was_replaced(const Program &program) const;

  // A bound was reached: the guest's areas and page tables are more than there can lawfully be. What came after that
  // was not looked at.
  [[nodiscard]] bool exhausted() const;

private:
  struct State;
  explicit ProgramMemory(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

} // namespace lararium::linux_guest
