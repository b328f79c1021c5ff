// Bounded readers on spans of foreign bytes. No read ever leaves the span; what would, is an error.
#pragma once

#include "lararium/base/result.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>

namespace lararium {

using Bytes = std::span<const std::byte>;

static_assert(std::endian::native == std::endian::little, "guests and host are little-endian so far");

// The T at `offset`, unaligned; nothing when it does not lie wholly inside.
template <class T>
  requires std::is_trivially_copyable_v<T>
[[nodiscard]] constexpr std::optional<T> load(Bytes bytes, std::size_t offset) {
  if (offset > bytes.size() || bytes.size() - offset < sizeof(T))
    return std::nullopt;
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

// The part [offset, offset + length) that lies inside, possibly empty.
[[nodiscard]] inline Bytes clamp_subspan(Bytes bytes, std::size_t offset, std::size_t length) {
  if (offset >= bytes.size())
    return {};
  return bytes.subspan(offset, std::min(length, bytes.size() - offset));
}

// The bytes from `offset` up to the first NUL or the end, at most `limit`, as text.
[[nodiscard]] inline std::string_view c_string(Bytes bytes, std::size_t offset, std::size_t limit = SIZE_MAX) {
  const Bytes part = clamp_subspan(bytes, offset, limit);
  const auto *text = reinterpret_cast<const char *>(part.data());
  return part.empty() ? std::string_view() : std::string_view(text, ::strnlen(text, part.size()));
}

template <class T>
  requires std::is_trivially_copyable_v<T>
[[nodiscard]] std::span<std::byte> writable_bytes_of(T &value) {
  return std::as_writable_bytes(std::span<T, 1>(&value, 1));
}

[[nodiscard]] inline Bytes bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

} // namespace lararium
