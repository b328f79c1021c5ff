// A virtual address space of the guest: page walks with a cache of translations, and bounded reads.
#pragma once

#include "lararium/arch/x86_64_paging.h"
#include "lararium/vm/physical_memory.h"

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace lararium {

// Part of a virtual range that is mapped by physically contiguous pages with equal rights.
struct MappedExtent {
  Gva base;
  Gpa physical;
  std::uint64_t size = 0;
  bool writable = false, user = false, executable = false;
};

// Translations are cached until flush(): a mapping that the guest changes meanwhile is seen late. Call flush() before
// each view. Not thread-safe.
class AddressSpace {
public:
  AddressSpace(const PhysicalMemory &memory, x86_64::PageTableRoot root) : memory_(&memory), root_(root) {}

  [[nodiscard]] x86_64::PageTableRoot root() const { return root_; }
  [[nodiscard]] const PhysicalMemory &memory() const { return *memory_; }

  [[nodiscard]] std::optional<x86_64::Translation> translate(Gva address) const;
  void flush() const {
    cache_.fill({});
    large_pages_.fill({});
  }

  // All of `out` or false; on false what is in `out` is unspecified.
  [[nodiscard]] bool read(Gva address, std::span<std::byte> out) const {
    const std::uint64_t offset = address.page_offset();
    const CacheLine &line = cache_[slot_of(address)];
    if (line.tag == tag_of(address) && line.host_age == memory_->copies_age() && out.size() <= page_size - offset)
        [[likely]] {
      std::memcpy(out.data(), line.host + offset, out.size());
      return true;
    }
    return read_slowly(address, out);
  }

  // The guest's bytes in place from `address` to the end of its page, where the driver has them mapped; else empty.
  // They change under the reader's eyes, as PhysicalMemory::view()'s do.
  [[nodiscard]] Bytes view(Gva address) const {
    const CacheLine *const line = look_up(address);
    if (line == nullptr)
      return {};
    const Bytes bytes = memory_->view(line->physical);
    return bytes.size() < page_size ? Bytes() : bytes.first(page_size).subspan(address.page_offset());
  }

  template <class T>
    requires std::is_trivially_copyable_v<T>
  [[nodiscard]] std::optional<T> read(Gva address) const {
    T value;
    if (!read(address, writable_bytes_of(value)))
      return std::nullopt;
    return value;
  }
  [[nodiscard]] std::optional<Gva> read_pointer(Gva address) const {
    if (const auto value = read<std::uint64_t>(address))
      return Gva{*value};
    return std::nullopt;
  }

  // PhysicalMemory::expect() of what these addresses lead to.
  void expect(std::span<const Gva> addresses) const;

  // The bytes up to the first NUL, at most `limit`; nothing when the first byte cannot be read. A string that runs into
  // an unmapped page ends there.
  [[nodiscard]] std::optional<std::string> read_c_string(Gva address, std::size_t limit) const;

  // As many bytes from the start of [address, address + out.size()) as are mapped.
  [[nodiscard]] std::size_t read_prefix(Gva address, std::span<std::byte> out) const;

  // The mapped parts of [begin, end), in order, at most `limit`; skips absent tables wholly, so that a search through
  // an almost empty range is cheap. Bounded by the number of page table entries below the range.
  [[nodiscard]] std::vector<MappedExtent> extents(Gva begin, Gva end, std::size_t limit) const;

private:
  struct CacheLine {
    std::uint64_t tag = 0; // page number + 1, so that the empty line fits no address
    Gpa physical;
    const std::byte *host = nullptr;  // the page in our own memory: mapped there, or the driver's copy
    std::uint64_t host_age = no_host; // PhysicalMemory::copies_age() for which `host` is good
  };
  static constexpr std::uint64_t no_host = UINT64_MAX;
  // What a large page of the guest maps needs no walk for each of its small pages: most of what a kernel has at hand
  // lies in such ones.
  struct LargePage {
    std::uint64_t tag = 0; // number of the 2 MiB unit + 1
    Gpa physical;
  };
  static constexpr std::size_t cache_lines = 1024, large_page_lines = 256;
  static constexpr std::uint64_t large_page_shift = 21;
  static constexpr std::uint64_t tag_of(Gva address) { return (address.value >> 12) + 1; }
  static constexpr std::size_t slot_of(Gva address) {
    const std::uint64_t page = address.value >> 12;
    return (page ^ page >> 10) % cache_lines;
  }
  [[nodiscard]] bool read_slowly(Gva address, std::span<std::byte> out) const;
  [[nodiscard]] CacheLine *look_up(Gva address) const;
  void find_host(CacheLine &line) const;
  [[nodiscard]] std::optional<Gpa> page_of(Gva page) const;
  [[nodiscard]] std::optional<std::uint64_t> read_entry(Gpa address) const;

  const PhysicalMemory *memory_;
  x86_64::PageTableRoot root_;
  mutable std::array<CacheLine, cache_lines> cache_{};
  mutable std::array<LargePage, large_page_lines> large_pages_{};
  mutable std::vector<Gpa> expected_; // expect()'s own
};

// As many bytes from the start as are mapped, walking `root` with no cache: for a few reads each in many address
// spaces, where setting up an AddressSpace would cost more than it saves.
[[nodiscard]] std::size_t read_uncached(const PhysicalMemory &memory, x86_64::PageTableRoot root, Gva address,
                                        std::span<std::byte> out);

} // namespace lararium
