// The symbols of a Linux kernel, carved from its own memory: the tables of kallsyms.
//
// Every layout from before 4.6 up to 7.x is read, and which one it is follows from the content alone, never from a
// version: distributions backport, and a release string may lie. These commits moved or changed the tables:
//
// - 4.6, 2213e9a66bb8: addresses (u64) become offsets (s32) and a relative base; the old form stays possible until 6.11
// - 4.20, 80ffbaa5b1bd: the count and the markers shrink from 8 to 4 bytes
// - 6.1, 73bbb94466fd: a name's length of 128 or more takes two bytes (ULEB128)
// - 6.2, 60443c88f3a8: seqs_of_names, between markers and token table; backported to 6.1.y
// - 6.4, 404bad70fcf7: count, names, markers, token table, token index, offsets, relative base, seqs_of_names
// - 6.15, 01157ddc58dc: per-CPU symbols are no longer absolute: every offset is added to the base
// - 7.0, a081b5789255: no relative base, an offset is relative to its own place; tables align to 4 bytes, not 8
#pragma once

#include "lararium/base/address.h"
#include "lararium/base/bytes.h"
#include "lararium/base/result.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

namespace lararium {

enum class KallsymsAddresses : std::uint8_t {
  absolute,             // u64 each
  base_relative_percpu, // s32: not negative: the value itself (per-CPU); negative: base - 1 - offset
  base_relative,        // base + u32
  place_relative,       // the offset's own address + s32
};
[[nodiscard]] std::string_view name_of(KallsymsAddresses addresses);

// What was found, and where: distances from the start of the image.
struct KallsymsLayout {
  bool addresses_last = false; // the order of 6.4 and later
  KallsymsAddresses addresses = KallsymsAddresses::absolute;
  std::uint8_t marker_size = 4; // of the count and each marker: 4 or 8 bytes
  bool two_byte_lengths = true; // how names were read; where none is longer than 127 the two ways agree
  std::size_t count = 0, names = 0, markers = 0, token_table = 0, token_index = 0, address_table = 0;
  std::uint64_t relative_base = 0; // 0 where the layout has none
};

struct KallsymsSymbol {
  std::string_view name;
  std::uint64_t value = 0; // the address, or where `absolute` a per-CPU offset
  bool absolute = false;
  char type = '?'; // as nm and /proc/kallsyms print it
};

class Kallsyms {
public:
  // Finds and decodes the tables. `image` is the kernel image, or the part of it that holds its read-only data, in
  // virtual order; `base` is the address of its first byte, at a page boundary and not more than 64 MiB below or above
  // `_text`. It may be a live guest's memory: what is decoded is copied first, so that a guest that writes meanwhile
  // causes wrong symbols or an error, nothing worse. Fails with not_found when there is no token table, with corrupt
  // when there is one but the other tables contradict it.
  [[nodiscard]] static Result<Kallsyms> carve(Bytes image, Gva base);

  [[nodiscard]] const KallsymsLayout &layout() const { return layout_; }
  // False: built without CONFIG_KALLSYMS_ALL, only functions are here.
  [[nodiscard]] bool has_data_symbols() const { return has_data_symbols_; }

  // In the kernel's order: by address, absolute ones first. The views live as long as this object.
  [[nodiscard]] std::size_t size() const { return entries_.size(); }
  [[nodiscard]] KallsymsSymbol operator[](std::size_t index) const {
    const Entry &entry = entries_[index];
    return {{names_.get() + entry.name, entry.name_length}, entry.value, entry.absolute, entry.type};
  }
  // The first symbol of that name; a linear search.
  [[nodiscard]] std::optional<KallsymsSymbol> find(std::string_view name) const;

  static constexpr std::uint32_t max_symbols = 1U << 22;    // kernels have 100,000 to 300,000
  static constexpr std::size_t max_name = 2048;             // KSYM_NAME_LEN is 512
  static constexpr std::size_t max_name_bytes = 128U << 20; // of all names decoded

private:
  friend class KallsymsCarver;
  struct Entry {
    std::uint64_t value = 0;
    std::uint32_t name = 0; // in names_
    std::uint16_t name_length = 0;
    char type = '?';
    bool absolute = false;
  };

  Kallsyms() = default;
  std::unique_ptr<char[]> names_; // all names, one after the other
  std::vector<Entry> entries_;
  KallsymsLayout layout_;
  bool has_data_symbols_ = false;
};

} // namespace lararium
