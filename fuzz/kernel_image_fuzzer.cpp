// Build id notes and the banner.
#include "lararium/symbols/elf_note.h"
#include "lararium/symbols/linux_banner.h"

#include <cstdlib>

using namespace lararium;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  const Bytes image = std::as_bytes(std::span(data, size));
  const auto notes = find_build_ids(image);
  for (const auto &note : notes)
    if (note.id.size < 8 || note.id.size > note.id.bytes.size() || note.offset + note.id.size > size)
      std::abort();
  static_cast<void>(choose_build_id(notes));
  if (const auto banner = find_linux_banner(image); banner && banner->offset + banner->text.size() + 2 > size)
    std::abort();
  return 0;
}
