#include "lararium/driver/qemu/process.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace lararium::qemu {
namespace {

TEST(ProcText, Maps) {
  const auto mappings = parse_maps("7f79c77ff000-7f79c7fff000 rw-p 00000000 00:00 0 \n"
                                   "7f79c7fff000-7f79e7fff000 rw-s 00001000 00:01 30                         "
                                   "/memfd:memory-backend-memfd (deleted)\n"
                                   "7f79e7fff000-7f79e8000000 ---p 00000000 00:00 0 \n"
                                   "garbage\n"
                                   "2-1 rw-p 0 00:00 0\n"
                                   "7ffc50c00000-7ffc50c21000 rw-p 00000000 00:00 0                          [stack]");
  ASSERT_EQ(mappings.size(), 4u);
  EXPECT_EQ(mappings[1].begin, Hva{0x7f79c7fff000});
  EXPECT_EQ(mappings[1].size(), 512u << 20);
  EXPECT_TRUE(mappings[1].shared);
  EXPECT_EQ(mappings[1].offset, 0x1000u);
  EXPECT_EQ(mappings[1].device_minor, 1u);
  EXPECT_EQ(mappings[1].inode, 30u);
  EXPECT_EQ(mappings[1].path, "/memfd:memory-backend-memfd (deleted)");
  EXPECT_FALSE(mappings[2].readable);
  EXPECT_EQ(mappings[3].path, "[stack]");
}

TEST(ProcText, SplitMappingsAreJoined) {
  // One page of RAM has another flag; then a neighbour that is another part of the file.
  const auto joined = join_mappings(parse_maps("1000-3000 rw-s 00000000 00:01 30 /memfd:a\n"
                                               "3000-4000 rw-s 00002000 00:01 30 /memfd:a\n"
                                               "4000-8000 rw-s 00003000 00:01 30 /memfd:a\n"
                                               "8000-9000 rw-s 00000000 00:01 30 /memfd:a\n"
                                               "a000-b000 rw-p 00000000 00:00 0\n"
                                               "b000-c000 rw-p 00000000 00:00 0\n"
                                               "c000-d000 r--p 00000000 00:00 0\n"));
  ASSERT_EQ(joined.size(), 4u);
  EXPECT_EQ(joined[0].size(), 0x7000u);
  EXPECT_EQ(joined[1].begin, Hva{0x8000});
  EXPECT_EQ(joined[2].size(), 0x2000u);
}

TEST(ProcText, StatWithParenthesesInTheName) {
  const auto stat = parse_stat("42 (a) b (c)) S 1 42 42 0 -1 4194560 1 0 0 0 7 8 0 0 20 0 3 0 123456 1 2 3");
  ASSERT_TRUE(stat);
  EXPECT_EQ(stat->name, "a) b (c)");
  EXPECT_EQ(stat->state, 'S');
  EXPECT_EQ(stat->start_ticks, 123456u);
  EXPECT_FALSE(parse_stat("42 (a) S 1 2"));
  EXPECT_FALSE(parse_stat(")("));
}

TEST(ProcText, UnixSockets) {
  const auto sockets = parse_unix_sockets("Num       RefCount Protocol Flags    Type St Inode Path\n"
                                          "000000000fbe5f19: 00000002 00000000 00010000 0001 01 43928 /run/a b.sock\n"
                                          "000000006d782da6: 00000003 00000000 00000000 0001 03 57024\n"
                                          "000000006d782da6: 00000003 00000000 00000000 0001 02 57025 /run/a b.sock\n");
  ASSERT_EQ(sockets.size(), 3u);
  EXPECT_TRUE(sockets[0].listening);
  EXPECT_EQ(sockets[0].path, "/run/a b.sock");
  EXPECT_TRUE(sockets[1].connected);
  EXPECT_TRUE(sockets[2].waiting);
}

TEST(ProcText, InterfaceCounters) {
  const auto counters = parse_net_dev("Inter-|   Receive  |  Transmit\n face |bytes ...\n"
                                      "    lo: 1 2 0 0 0 0 0 0 3 4 0 0 0 0 0 0\n"
                                      "vnet0:100 2 0 0 0 0 0 0 300 4 0 0 0 0 0 0\n");
  ASSERT_EQ(counters.size(), 2u);
  EXPECT_EQ(counters[1].name, "vnet0");
  EXPECT_EQ(counters[1].received_bytes, 100u);
  EXPECT_EQ(counters[1].sent_packets, 4u);
}

TEST(Process, AReusedPidIsNotTakenForTheOldOne) {
  const auto self = Process::open(::getpid());
  ASSERT_TRUE(self);
  EXPECT_TRUE(self->alive());
  const auto other = Process::open(::getpid(), 1);
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().code, ErrorCode::gone);
}

TEST(Process, TellsWhenItEnded) {
  const pid_t child = ::fork();
  if (child == 0)
    ::_exit(0);
  auto process = Process::open(child);
  ASSERT_TRUE(process);
  ::waitpid(child, nullptr, 0);
  EXPECT_FALSE(process->alive());
  const auto mappings = process->mappings();
  ASSERT_FALSE(mappings);
  EXPECT_EQ(mappings.error().code, ErrorCode::gone);
}

} // namespace
} // namespace lararium::qemu
