// Small dumps of every format, built byte by byte.
#pragma once

#include "lararium/base/bytes.h"
#include "lararium/vm/target.h"

#include <cstdint>
#include <elf.h>
#include <string>
#include <vector>

namespace lararium::samples {

using Image = std::vector<std::byte>;

void append(Image &image, Bytes bytes);
template <class T> void append_value(Image &image, const T &value) {
  append(image, std::as_bytes(std::span(&value, 1)));
}
template <class T> void put_value(Image &image, std::size_t offset, const T &value) {
  if (image.size() < offset + sizeof(T))
    image.resize(offset + sizeof(T));
  std::memcpy(image.data() + offset, &value, sizeof(T));
}

// The page of this number: text-like bytes that compress, none of them zero.
[[nodiscard]] Image page(std::uint64_t number);

struct Load {
  std::uint64_t physical = 0, offset = 0, file_size = 0, memory_size = 0, virtual_address = 0;
};
struct ElfOptions {
  std::uint16_t machine = EM_X86_64, type = ET_CORE;
  bool extended_count = false; // PN_XNUM
};
// Headers, notes, then `content`, whose offset in the file is added to each load's.
[[nodiscard]] Image elf(const std::vector<Load> &loads, Bytes notes, Bytes content, const ElfOptions &options = {});

[[nodiscard]] Image note(std::string_view name, std::uint32_t type, Bytes content);
[[nodiscard]] Image prstatus_note(std::uint64_t rip, std::uint64_t rax);
[[nodiscard]] Image qemu_note(std::uint64_t rip, std::uint64_t cr3, std::uint64_t kernel_gs,
                              bool with_kernel_gs = true);

enum class Packing : std::uint8_t { none, zlib, lzo, snappy, zstd };
struct KdumpOptions {
  Packing packing = Packing::zlib;
  std::int32_t version = 6, dump_level = 1;
  std::uint32_t status = 0;                   // added to that of the packing
  std::vector<std::uint64_t> present, stored; // page numbers, ascending
  std::uint64_t max_mapnr = 0;                // 0: the last present page + 1
  std::uint64_t split_start = 0, split_end = 0;
  std::string vmcoreinfo;
  Image notes;
};
// Page N holds page(N).
[[nodiscard]] Image kdump(const KdumpOptions &options);

// As flattened records of `record` bytes, in an order that is not that of the file.
[[nodiscard]] Image flatten(const Image &image, std::size_t record, bool with_end = true);

// LiME and AVML: ranges of whole pages; page N holds page(N).
struct PageRange {
  std::uint64_t first = 0, count = 0;
};
[[nodiscard]] Image lime(const std::vector<PageRange> &ranges);
[[nodiscard]] Image avml(const std::vector<PageRange> &ranges);

[[nodiscard]] bool has_page(const PhysicalMemory &memory, std::uint64_t address, std::uint64_t number);
[[nodiscard]] bool has_zeros(const PhysicalMemory &memory, std::uint64_t address, std::size_t size);
[[nodiscard]] bool unreadable(const PhysicalMemory &memory, std::uint64_t address);
[[nodiscard]] bool mentions(const Target &target, std::string_view text);

} // namespace lararium::samples
