// /proc of a QEMU: its arguments, and the kernel's text about it, which has names in it that others chose.
#include "lararium/driver/qemu/command_line.h"
#include "lararium/driver/qemu/layout.h"
#include "lararium/driver/qemu/process.h"

#include <cstdlib>
#include <cstring>

using namespace lararium;
using namespace lararium::qemu;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char *>(data), size);
  static_cast<void>(parse_stat(text));
  static_cast<void>(parse_unix_sockets(text));
  static_cast<void>(parse_net_dev(text));
  const auto line = parse_command_line(text);
  const auto ram_size = line.ram_size != 0 ? line.ram_size : 128 << 20;
  const auto layouts = possible_layouts(line.machine, ram_size, line.max_ram_below_4g);
  const auto read = [&](std::uint64_t offset, std::span<std::byte> out) {
    // The input stands for the BIOS area, and for whatever a pointer in it leads to.
    std::memset(out.data(), 0, out.size());
    const auto at = static_cast<std::size_t>(offset % 4096);
    if (at < size)
      std::memcpy(out.data(), data + at, std::min(size - at, out.size()));
    return true;
  };
  if (choose_layout(layouts, find_acpi_root(read)).below_4g > ram_size)
    std::abort();
  const auto joined = join_mappings(parse_maps(text));
  for (const auto &mapping : joined)
    if (mapping.begin >= mapping.end)
      std::abort();
  if (const auto ram = find_ram(joined, line, ram_size))
    for (const auto &piece : ram->pieces)
      if (piece.size == 0)
        std::abort();
  return 0;
}
