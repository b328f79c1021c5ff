// The layout of BTF, as include/uapi/linux/btf.h has it.
#pragma once

#include "lararium/base/bytes.h"
#include "lararium/symbols/btf.h"
#include "lararium/symbols/types.h"

#include <cstdint>
#include <optional>
#include <string_view>

namespace lararium::btf_format {

inline constexpr std::uint16_t magic = 0xeb9f;
inline constexpr std::uint8_t version = 1;

struct Header { // with hdr_len 24; with 32 two words for the layout section follow
  std::uint16_t magic;
  std::uint8_t version, flags;
  std::uint32_t header_length;
  std::uint32_t type_offset, type_length; // from the end of the header
  std::uint32_t string_offset, string_length;
};
static_assert(sizeof(Header) == 24);

struct KindLayout { // of each kind, in the layout section
  std::uint8_t info_size;
  std::uint8_t element_size;
  std::uint16_t flags;
};

// Linux 7 widened the count from 16 to 24 bits and the kind from 5 to 7; the bits were 0 before.
struct TypeEntry {
  std::uint32_t name;
  std::uint32_t info;
  std::uint32_t size_or_type;

  [[nodiscard]] std::uint32_t kind_number() const { return (info >> 24) & 0x7f; }
  [[nodiscard]] TypeKind kind() const {
    return kind_number() <= static_cast<std::uint32_t>(TypeKind::enumeration64) ? static_cast<TypeKind>(kind_number())
                                                                                : TypeKind::none;
  }
  [[nodiscard]] std::uint32_t count() const { return info & 0xffffff; }
  [[nodiscard]] bool kind_flag() const { return (info >> 31) != 0; }
};
static_assert(sizeof(TypeEntry) == 12);

struct ArrayEntry {
  std::uint32_t element, index_type, count;
};
struct MemberEntry {
  std::uint32_t name, type, offset;
};
struct EnumeratorEntry {
  std::uint32_t name, value;
};
struct Enumerator64Entry {
  std::uint32_t name, low, high;
};
struct ParameterEntry {
  std::uint32_t name, type;
};
struct SectionVariableEntry {
  std::uint32_t type, offset, size;
};

struct IntegerEncoding {
  std::uint32_t word;
  [[nodiscard]] bool is_signed() const { return (word & (1U << 24)) != 0; }
  [[nodiscard]] bool is_char() const { return (word & (2U << 24)) != 0; }
  [[nodiscard]] bool is_bool() const { return (word & (4U << 24)) != 0; }
  [[nodiscard]] std::uint32_t bit_offset() const { return (word >> 16) & 0xff; }
  [[nodiscard]] std::uint32_t bits() const { return word & 0xff; }
};

// The bytes that follow a TypeEntry; nothing for a kind that neither we nor the layout section know.
[[nodiscard]] std::optional<std::uint64_t> trailing_size(const TypeEntry &entry, Bytes layout);

// The string at `offset`; empty when there is none or it is longer than btf_name_limit.
[[nodiscard]] std::string_view string_at(Bytes strings, std::uint32_t offset);

// What a slot of the enumerators' name_index holds: where the enumerator lies, and how to read its value.
struct EnumeratorSlot {
  std::uint32_t offset = 0; // in the type section
  bool wide = false;        // of an ENUM64
  bool is_signed = false;

  [[nodiscard]] std::uint32_t pack() const { return offset / 4 << 2 | (wide ? 2U : 0U) | (is_signed ? 1U : 0U); }
  [[nodiscard]] static EnumeratorSlot unpack(std::uint32_t word) {
    return {word >> 2 << 2, (word & 2) != 0, (word & 1) != 0};
  }
};
static_assert(btf_size_limit <= 1ULL << 30, "an offset leaves two bits of a slot free");

[[nodiscard]] inline std::int64_t value_of(std::uint32_t low, bool is_signed) {
  return is_signed ? static_cast<std::int32_t>(low) : static_cast<std::int64_t>(low);
}
[[nodiscard]] inline std::int64_t value_of(std::uint32_t low, std::uint32_t high) {
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(high) << 32 | low);
}

} // namespace lararium::btf_format
