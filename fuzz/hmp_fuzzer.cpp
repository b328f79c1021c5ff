// What the human monitor prints.
#include "lararium/driver/qemu/monitor.h"
#include "lararium/driver/qemu/monitor_text.h"

#include <cstdlib>

using namespace lararium;
using namespace lararium::qemu;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char *>(data), size);
  static_cast<void>(hmp_answer(text));
  static_cast<void>(parse_registers(text));
  static_cast<void>(parse_block_counters(text));
  static_cast<void>(parse_run_state(text));
  static_cast<void>(parse_host_address(text));
  static_cast<void>(parse_network_devices(text));
  static_cast<void>(parse_configured_macs(text));
  const auto blocks = parse_ram_blocks(text);
  const auto view = parse_flat_view(text);
  if (!blocks || !view)
    return 0;
  const auto ranges = main_memory(*blocks, *view);
  if (!ranges)
    return 0;
  // What is let through must be fit to build a memory on.
  for (std::size_t i = 0; i < ranges->size(); i++) {
    const auto &range = (*ranges)[i];
    const auto &block = (*blocks)[range.block];
    if (range.size == 0 || range.offset > block.used || range.size > block.used - range.offset)
      std::abort();
    if (i > 0 && range.base - (*ranges)[i - 1].base < (*ranges)[i - 1].size)
      std::abort();
  }
  return 0;
}
