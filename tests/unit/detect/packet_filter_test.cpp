#include "packet_filter.h"

#include <gtest/gtest.h>

namespace lararium::detect {
namespace {

constexpr std::uint16_t load_half = 0x28, load_half_indexed = 0x48, load_byte = 0x30, load_word = 0x20, equal = 0x15,
                        any_bit = 0x45, load_length = 0xb1, give = 0x06;

// What dhclient asks for: IPv4, UDP, no fragment, to port 68.
const std::vector<FilterInstruction> dhcp_client{
    {load_half, 0, 0, 12}, {equal, 0, 8, 0x0800},   {load_byte, 0, 0, 23},   {equal, 0, 6, 17},
    {load_half, 0, 0, 20}, {any_bit, 4, 0, 0x1fff}, {load_length, 0, 0, 14}, {load_half_indexed, 0, 0, 16},
    {equal, 0, 1, 68},     {give, 0, 0, 262144},    {give, 0, 0, 0}};

TEST(PacketFilter, ComparedConstantsComeOnceEach) {
  EXPECT_EQ(compared_constants(dhcp_client), (std::vector<std::uint32_t>{0x0800, 17, 68}));
  auto twice = dhcp_client;
  twice.push_back({equal, 0, 0, 17});
  EXPECT_EQ(compared_constants(twice).size(), 3u);
  EXPECT_TRUE(compared_constants({}).empty());
}

TEST(PacketFilter, DhcpIsToldFromOthers) {
  EXPECT_TRUE(is_for_dhcp(dhcp_client));
  EXPECT_FALSE(is_for_dhcp({}));
  auto web = dhcp_client;
  web[8].constant = 80;
  EXPECT_FALSE(is_for_dhcp(web));
}

TEST(PacketFilter, AnotherPortBesidesDhcpIsNoDhcp) {
  auto both = dhcp_client;
  both.insert(both.begin() + 9, {equal, 0, 0, 22});
  EXPECT_FALSE(is_for_dhcp(both));
}

TEST(PacketFilter, AWordThatTheFilterWaitsForIsNoDhcp) {
  auto magic = dhcp_client;
  magic.insert(magic.begin() + 9, {equal, 0, 0, 0x7255});
  EXPECT_FALSE(is_for_dhcp(magic));
}

TEST(PacketFilter, WordsAndBytesAreNoPorts) {
  auto with_cookie = dhcp_client; // systemd asks for DHCP's magic number and its own hardware address, too
  with_cookie.insert(
      with_cookie.end() - 2,
      {{load_word, 0, 0, 264}, {equal, 0, 0, 0x63825363}, {load_half, 0, 0, 60 + 2}, {equal, 0, 0, 0x1234}});
  EXPECT_TRUE(is_for_dhcp(with_cookie));
}

} // namespace
} // namespace lararium::detect
