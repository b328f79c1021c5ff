#include "elf_image.h"

#include <cstdlib>

using namespace lararium;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  const auto image = linux_guest::parse_elf_image(std::as_bytes(std::span(data, size)));
  if (!image)
    return 0;
  for (const auto &segment : image->segments)
    if (segment.file_size > segment.memory_size || segment.file_offset + segment.file_size < segment.file_offset)
      std::abort();
  const auto *segment = image->segment_of(image->entry);
  if (segment != nullptr && image->entry - segment->address >= segment->file_size)
    std::abort();
  return 0;
}
