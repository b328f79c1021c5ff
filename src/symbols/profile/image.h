// The flat image of a profile, in memory as on disk. Sections follow the header in this order, each at a multiple of 8.
#pragma once

#include "lararium/base/bytes.h"
#include "lararium/symbols/build_id.h"

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <type_traits>

namespace lararium::profile_image {

inline constexpr std::array<char, 8> magic{'L', 'A', 'R', 'P', 'R', 'O', 'F', '\n'};
// Raise it with every change of what is stored or how names are hashed: files of other versions are not used.
inline constexpr std::uint32_t version = 1;

enum Section : std::size_t {
  banner,
  symbols,      // SymbolRecord
  symbol_names, // text, not terminated
  symbol_slots, // u32: name_index of the symbols
  btf,          // as the kernel has it
  type_offsets, // u32, type_slots, enumerator_slots: BtfIndex
  type_slots,
  enumerator_slots,
  section_count,
};

struct SectionPlace {
  std::uint64_t offset, size;
};

struct Header {
  std::array<char, 8> magic;
  std::uint32_t version;
  std::uint32_t header_size;
  std::uint64_t total_size;
  std::uint64_t checksum; // of the whole image, this field as 0
  std::array<std::uint8_t, 32> build_id;
  std::uint64_t build_id_size;
  std::uint64_t build_id_offset;
  std::uint64_t name_seed;
  std::uint32_t symbol_count;
  std::uint32_t image_symbol_count; // they come first
  std::uint8_t signed_enumerations, odd_integers;
  std::array<std::uint8_t, 30> unused; // to a multiple of the 64 bytes that the checksum takes at a time
  std::array<SectionPlace, section_count> sections;
};
static_assert(std::is_trivially_copyable_v<Header> && std::has_unique_object_representations_v<Header>);

struct SymbolRecord {
  std::uint64_t value;
  std::uint32_t name; // in symbol_names
  std::uint16_t name_length;
  char type;
  std::uint8_t unused;
};
static_assert(sizeof(SymbolRecord) == 16 && std::has_unique_object_representations_v<SymbolRecord>);

inline constexpr std::size_t size_limit = 1U << 30;
inline constexpr std::uint32_t symbol_limit = 1U << 22;
inline constexpr std::size_t symbol_name_limit = 2048; // KSYM_NAME_LEN is 512
inline constexpr std::size_t banner_limit = 4096;

// The header, when its own fields hold together; what it says of sections is checked with the whole image at hand.
[[nodiscard]] std::optional<Header> read_header(Bytes head);
[[nodiscard]] BuildId build_id_of(const Header &header);

// Of the whole image, which is at least a header. Against torn files and failing disks, not against forgers: a file
// that passes may still be a lie, and then look-ups yield nonsense within its bounds.
[[nodiscard]] std::uint64_t checksum_of(Bytes image);

} // namespace lararium::profile_image
