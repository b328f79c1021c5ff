#include "gdb_stub.h"

#include <gtest/gtest.h>

namespace lararium::qemu {
namespace {

TEST(GdbPackets, AreCutOutOfWhateverComes) {
  GdbPackets packets;
  EXPECT_TRUE(packets.add("++$OK#9a+$T05"));
  EXPECT_EQ(packets.next(), "OK");
  EXPECT_EQ(packets.next(), std::nullopt);
  EXPECT_TRUE(packets.add("thread:01;#"));
  EXPECT_TRUE(packets.add("07$#00"));
  EXPECT_EQ(packets.next(), "T05thread:01;");
  EXPECT_EQ(packets.next(), "");
  EXPECT_EQ(packets.next(), std::nullopt);
}

TEST(GdbPackets, RefuseWhatNoStubSends) {
  EXPECT_FALSE(GdbPackets().add("$OK#9b"));
  EXPECT_FALSE(GdbPackets().add("$OK#zz"));
  EXPECT_FALSE(GdbPackets().add("-"));
  EXPECT_FALSE(GdbPackets().add("$" + std::string(GdbPackets::longest + 1, 'a')));
}

TEST(GdbPackets, AreMadeWithTheirSum) {
  EXPECT_EQ(gdb_packet("OK"), "$OK#9a");
  EXPECT_EQ(gdb_packet("D"), "$D#44");
  GdbPackets packets;
  EXPECT_TRUE(packets.add(gdb_packet("M1000,2:0fff")));
  EXPECT_EQ(packets.next(), "M1000,2:0fff");
}

} // namespace
} // namespace lararium::qemu
