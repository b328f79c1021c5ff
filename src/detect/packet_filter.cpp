#include "packet_filter.h"

#include <algorithm>
#include <array>

namespace lararium::detect {
namespace {

// uapi/linux/bpf_common.h
constexpr std::uint16_t load_half_absolute = 0x28, load_half_indexed = 0x48, load_word_absolute = 0x20,
                        load_word_indexed = 0x40, load_byte_absolute = 0x30, load_byte_indexed = 0x50,
                        jump_equal_constant = 0x15;
constexpr std::array<std::uint32_t, 4> dhcp_ports{67, 68, 546, 547};
// Where the port of the receiver lies at most: behind an Ethernet header with a VLAN tag and an IPv6 header, and behind
// an Ethernet header and as many bytes as the index says.
constexpr std::uint32_t last_port_absolute = 18 + 40 + 2, last_port_indexed = 14 + 2;
constexpr std::uint32_t first_kind = 0x0600; // smaller ones are no kind of packet (ETH_P_802_3_MIN)

bool is_load(std::uint16_t code) {
  constexpr std::array loads{load_half_absolute, load_half_indexed,  load_word_absolute,
                             load_word_indexed,  load_byte_absolute, load_byte_indexed};
  return std::ranges::find(loads, code) != loads.end();
}

} // namespace

std::vector<std::uint32_t> compared_constants(std::span<const FilterInstruction> filter) {
  std::vector<std::uint32_t> result;
  for (const FilterInstruction &each : filter)
    if (each.code == jump_equal_constant && std::ranges::find(result, each.constant) == result.end())
      result.push_back(each.constant);
  return result;
}

bool is_for_dhcp(std::span<const FilterInstruction> filter) {
  // Kinds of packet that filters ask for before they look at ports: IPv4, ARP, VLAN, IPv6.
  constexpr std::array<std::uint32_t, 4> kinds{0x0800, 0x0806, 0x8100, 0x86dd};
  bool dhcp = false, may_be_port = false;
  for (const FilterInstruction &each : filter) {
    if (is_load(each.code))
      may_be_port = (each.code == load_half_absolute && each.constant <= last_port_absolute) ||
                    (each.code == load_half_indexed && each.constant <= last_port_indexed);
    if (each.code != jump_equal_constant || !may_be_port)
      continue; // bytes and words hold protocols, addresses and DHCP's own words
    if (std::ranges::find(dhcp_ports, each.constant) != dhcp_ports.end())
      dhcp = true;
    else if (each.constant >= 16 &&
             (each.constant < first_kind || std::ranges::find(kinds, each.constant) == kinds.end()))
      return false; // hardware types are smaller
  }
  return dhcp;
}

} // namespace lararium::detect
