// Strong integers for the kinds of address that Lararium handles. A bare integer is never an address, so that a
// guest-virtual address cannot reach a call that wants a guest-physical one.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>

namespace lararium {

inline constexpr std::uint64_t page_size = 4096;
inline constexpr std::uint64_t page_mask = page_size - 1;

template <class Tag> struct Address {
  std::uint64_t value = 0;

  constexpr auto operator<=>(const Address &) const = default;
  // Arithmetic wraps, as the guest's own does; who reads at the result checks that it is mapped.
  constexpr Address operator+(std::uint64_t distance) const { return {value + distance}; }
  constexpr Address operator-(std::uint64_t distance) const { return {value - distance}; }
  constexpr std::uint64_t operator-(Address other) const { return value - other.value; }
  constexpr Address &operator+=(std::uint64_t distance) {
    value += distance;
    return *this;
  }
  [[nodiscard]] constexpr Address page() const { return {value & ~page_mask}; }
  [[nodiscard]] constexpr std::uint64_t page_offset() const { return value & page_mask; }
  explicit constexpr operator bool() const { return value != 0; }
};

using Gpa = Address<struct GuestPhysicalTag>; // guest-physical address
using Gva = Address<struct GuestVirtualTag>;  // guest-virtual address
using Hva = Address<struct HostVirtualTag>;   // address in the process that runs the VM (QEMU)

} // namespace lararium

template <class Tag> struct std::hash<lararium::Address<Tag>> {
  std::size_t operator()(lararium::Address<Tag> address) const noexcept {
    return std::hash<std::uint64_t>{}(address.value);
  }
};
