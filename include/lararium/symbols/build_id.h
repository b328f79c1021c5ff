// The GNU build id of a kernel: names one build, whatever its release string says.
#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace lararium {

// 20 bytes (SHA-1) in practice; a linker may be told to make 8, 16 or others. `size` 0: the kernel has none.
struct BuildId {
  std::array<std::uint8_t, 32> bytes{};
  std::uint8_t size = 0;

  auto operator<=>(const BuildId &) const = default;
  [[nodiscard]] std::string hex() const {
    constexpr char digits[] = "0123456789abcdef";
    std::string text;
    for (std::size_t i = 0; i < size && i < bytes.size(); ++i) {
      text += digits[bytes[i] >> 4];
      text += digits[bytes[i] & 15];
    }
    return text;
  }
};

} // namespace lararium
