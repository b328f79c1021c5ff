// A kernel's file: the header of a bzImage, what it packs, and an ELF's sections.
#include "lararium/symbols/kernel_file.h"

#include <cstdlib>

using namespace lararium;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  const auto file = KernelFile::parse(std::as_bytes(std::span(data, size)));
  if (!file)
    return 0;
  for (const KernelFile::Section &section : file->sections()) {
    volatile std::byte last{};
    if (!section.content.empty())
      last = section.content.back();
    const Bytes all = file->at(section.address, section.content.size());
    if (all.size() != section.content.size() && !section.content.empty())
      std::abort();
    static_cast<void>(last);
  }
  static_cast<void>(file->section(".text"));
  return 0;
}
