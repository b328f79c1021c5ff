#include "btf_writer.h"

#include <array>
#include <cstring>

namespace lararium::isf {

std::uint32_t BtfWriter::string(std::uint32_t key, std::string_view text) {
  if (key == 0)
    return 0;
  if (key >= offsets_.size())
    offsets_.resize(std::size_t{key} + 1);
  if (offsets_[key] == 0) {
    offsets_[key] = static_cast<std::uint32_t>(strings_.size());
    strings_ += text;
    strings_ += '\0';
  }
  return offsets_[key];
}

TypeId BtfWriter::begin(std::uint32_t name, TypeKind kind, bool kind_flag, std::uint32_t count,
                        std::uint32_t size_or_type) {
  word(name);
  word((kind_flag ? 1U << 31 : 0U) | static_cast<std::uint32_t>(kind) << 24 | count);
  word(size_or_type);
  return ++count_;
}

std::vector<std::byte> BtfWriter::finish() const {
  const auto type_length = static_cast<std::uint32_t>(words_.size() * 4);
  const auto string_length = static_cast<std::uint32_t>(strings_.size());
  // magic, version and flags; the header's length; offset and length of the types, then of the strings
  const std::array<std::uint32_t, 6> header{0x0001eb9f, 24, 0, type_length, type_length, string_length};
  std::vector<std::byte> bytes(sizeof header + type_length + string_length);
  std::memcpy(bytes.data(), header.data(), sizeof header);
  if (type_length != 0)
    std::memcpy(bytes.data() + sizeof header, words_.data(), type_length);
  std::memcpy(bytes.data() + sizeof header + type_length, strings_.data(), string_length);
  return bytes;
}

} // namespace lararium::isf
