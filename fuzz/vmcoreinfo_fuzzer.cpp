#include "lararium/symbols/vmcoreinfo.h"

#include <cstdlib>

using namespace lararium;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  const Bytes memory = std::as_bytes(std::span(data, size));
  static_cast<void>(vmcoreinfo_text_offset(memory.first(std::min<std::size_t>(size, 64))));
  const auto info = Vmcoreinfo::read(memory);
  if (!info)
    return 0;
  // What passed holds all that a caller relies on, and passes again.
  if (info->release().empty() || info->release().size() > 64 || info->guest_page_size() < page_size ||
      !Vmcoreinfo::parse(info->text()))
    std::abort();
  static_cast<void>(info->build_id());
  static_cast<void>(info->kernel_offset());
  static_cast<void>(info->crash_time());
  static_cast<void>(info->symbol("_stext"));
  static_cast<void>(info->size("list_head"));
  static_cast<void>(info->offset("list_head.next"));
  static_cast<void>(info->length("zone.free_area"));
  static_cast<void>(info->number("phys_base"));
  return 0;
}
