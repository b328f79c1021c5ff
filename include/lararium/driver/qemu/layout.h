// Where QEMU's x86 machines put RAM, for when there is no monitor to ask.
#pragma once

#include "lararium/driver/qemu/command_line.h"
#include "lararium/driver/qemu/process.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lararium::qemu {

// How RAM is split around the hole below 4 GiB.
struct RamLayout {
  std::string machine; // whose rule it is: "pc", "q35", "microvm"
  std::uint64_t below_4g = 0;
  Gpa above_base{1ULL << 32};
  // Where something else than RAM answers below 1 MiB: the VGA window, or microvm's firmware.
  std::uint64_t low_hole_begin = 0xa0000, low_hole_end = 0xc0000;

  bool operator==(const RamLayout &) const = default;
};

// The layouts that are possible, the likeliest first. The rules are those of pc_init1(), pc_q35_init() and
// microvm_memory_init() (QEMU's hw/i386/pc_piix.c, pc_q35.c, microvm.c), the same from 2.0 to 10.0.
[[nodiscard]] std::vector<RamLayout> possible_layouts(std::string_view machine, std::uint64_t ram_size,
                                                      std::optional<std::uint64_t> max_ram_below_4g);

// Reads RAM at an offset from its start; false when that is not possible.
using RamReader = std::function<bool(std::uint64_t offset, std::span<std::byte> out)>;

// The guest-physical address of the ACPI root table, found as firmware leaves it for an operating system: the RSDP in
// the BIOS area names it, and it is where it is said to be. That proves that offsets in RAM are guest-physical
// addresses up to there. Nothing where there is no such (UEFI, microvm, or firmware still running).
[[nodiscard]] std::optional<Gpa> find_acpi_root(const RamReader &read);

// The layout that the place of the ACPI tables, which SeaBIOS puts at the end of low RAM, speaks for; the likeliest
// when there are none. `layouts` is not empty.
[[nodiscard]] const RamLayout &choose_layout(const std::vector<RamLayout> &layouts, std::optional<Gpa> acpi_root);

// A piece of RAM as one host mapping holds it, in the order in which the pieces make up the machine's RAM.
struct RamPiece {
  Hva host;
  std::uint64_t size = 0;
  std::string block; // the backend's id, or "ram"
};

struct FoundRam {
  std::vector<RamPiece> pieces;
  std::vector<Hva> also_first; // other places where the first piece could be just as well
  bool ambiguous = false;      // some piece could be elsewhere just as well
};
// Finds the machine's RAM among the process's mappings (joined) by what the command line says.
[[nodiscard]] Result<FoundRam> find_ram(std::span<const HostMapping> mappings, const CommandLine &line,
                                        std::uint64_t ram_size);

} // namespace lararium::qemu
