// What a classic packet filter of a socket looks for: a DHCP client's is told from a sniffer's.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace lararium::detect {

struct FilterInstruction { // struct sock_filter, uapi/linux/filter.h
  std::uint16_t code = 0;
  std::uint8_t jump_true = 0, jump_false = 0;
  std::uint32_t constant = 0;
};
static_assert(sizeof(FilterInstruction) == 8);

// The constants that it compares with for equality, in order, each once.
[[nodiscard]] std::vector<std::uint32_t> compared_constants(std::span<const FilterInstruction> filter);

// Whether it compares with a port of DHCP, and with no other port than these: a packet's kind and protocol apart, which
// are no ports.
[[nodiscard]] bool is_for_dhcp(std::span<const FilterInstruction> filter);

} // namespace lararium::detect
