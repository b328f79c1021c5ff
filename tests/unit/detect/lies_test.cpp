#include "lararium/detect/lies.h"

#include <gtest/gtest.h>

namespace lararium::detect {
namespace {

constexpr std::string_view answer_text = R"(Last login: today
# sh -s
@@lararium begin
0
100.50 180.00
pid:[4026531836]
net:[4026531840]
@@lararium proc
1 0 2 init
12 0 30 kworker/0:1-events
200 1000 5000 my program
201 - - 
rubbish
@@lararium ps
  PID   UID COMMAND
    1     0 init
   12     0 kworker/0:1-events
  200  1000 my program
@@lararium modules
dummy 16384 1 - Live 0xffffffffc0000000
ext4 999424 0 - Live 0x0000000000000000 (O)
@@lararium lsmod
Module                  Size  Used by
dummy                  16384  1
ext4                  999424  0
@@lararium sysfs
  2345 /sys/module/dummy
 77 /sys/module/ext4
@@lararium net.tcp
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:10E1 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0
@@lararium net.packet
sk       RefCnt Type Proto  Iface R Rmem   User   Inode
0000000000000000 3      3    0003   1     1 0      0      4712
@@lararium ss
Netid State  Recv-Q Send-Q Local Address:Port Peer Address:Port
tcp   LISTEN 0      128        127.0.0.1:4321      0.0.0.0:*    ino:4711 sk:1 cgroup:/ <->
@@lararium end
101.00 180.00
@@lararium done
#
)";

GuestAnswer sample() {
  auto answer = parse_answer(answer_text);
  EXPECT_TRUE(answer) << answer.error().describe();
  return answer ? *answer : GuestAnswer{};
}

// What is there where that answer is honest.
OutsideLook honest() {
  OutsideLook look;
  look.processes[1] = {Gva{0xffff800000000001}, 1, 25'000'000, 0, "init", false, {}};
  look.processes[12] = {Gva{0xffff800000000012}, 12, 300'000'000, 0, "kworker/0:1", true, {}};
  look.processes[200] = {Gva{0xffff800000000200}, 200, 50'000'000'000, 1000, "my program", false, {}};
  look.modules[Gva{0xffffffffc0000000}] = {Gva{0xffffffffc0000000}, "dummy", 1};
  look.modules[Gva{0xffffffffc0100000}] = {Gva{0xffffffffc0100000}, "ext4", 2};
  look.sockets[4711] = {Gva{1}, "tcp", "LISTEN", "127.0.0.1:4321", "0.0.0.0:0", 4711, 4321, 0, 4026531840, {}};
  look.sockets[4712] = {Gva{2}, "packet", "", "lo", "", 4712, 0, 0, 4026531840, {}};
  look.first_pid_namespace = 4026531836;
  return look;
}

std::vector<std::string> lies(const OutsideLook &before, const GuestAnswer &answer, const OutsideLook &after,
                              AnswerTime time = AnswerTime::between) {
  Findings findings;
  compare_answer(before, answer, after, time, findings);
  std::vector<std::string> sentences;
  for (const Finding &finding : findings.items())
    sentences.push_back(finding.sentence);
  return sentences;
}

TEST(GuestAnswer, IsReadAmongWhatAConsolePrints) {
  const GuestAnswer answer = sample();
  EXPECT_EQ(answer.begin_ns, 100'500'000'000u);
  EXPECT_EQ(answer.end_ns, 101'000'000'000u);
  EXPECT_EQ(answer.pid_namespace, 4026531836u);
  EXPECT_EQ(answer.net_namespace, 4026531840u);
  ASSERT_EQ(answer.processes.size(), 4u);
  EXPECT_EQ(answer.processes[2].name, "my program");
  EXPECT_EQ(answer.processes[2].uid, 1000u);
  EXPECT_EQ(answer.processes[2].start_ticks, 5000u);
  EXPECT_FALSE(answer.processes[3].uid);
  ASSERT_TRUE(answer.ps);
  ASSERT_EQ(answer.ps->size(), 3u);
  EXPECT_EQ((*answer.ps)[2].name, "my program");
  ASSERT_EQ(answer.modules.size(), 2u);
  EXPECT_EQ(answer.modules[0].inode, 2345u);
  ASSERT_EQ(answer.sockets.at("tcp").size(), 1u);
  EXPECT_EQ(answer.sockets.at("tcp")[0].local_port, 4321);
  EXPECT_EQ(answer.sockets.at("packet")[0].inode, 4712u);
  ASSERT_TRUE(answer.ss);
  EXPECT_EQ(answer.ss->at(0).inode, 4711u);
  EXPECT_FALSE(answer.sockets.contains("udp"));
}

TEST(GuestAnswer, LinesOfAConsoleEndWithTwoSigns) {
  std::string text(answer_text);
  for (std::size_t at = 0; (at = text.find('\n', at)) != text.npos; at += 2)
    text.replace(at, 1, "\r\n");
  const auto answer = parse_answer(text);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->modules.size(), 2u);
}

TEST(GuestAnswer, OfTwoAnswersTheLastCounts) {
  const std::string text = "@@lararium begin\n@@lararium proc\n77 0 1 x\n@@lararium done\n" + std::string(answer_text);
  const auto answer = parse_answer(text);
  ASSERT_TRUE(answer);
  EXPECT_EQ(answer->processes.size(), 4u);
}

TEST(GuestAnswer, WhatIsCutOffIsNone) {
  const std::size_t end = answer_text.find("@@lararium done") + std::string_view("@@lararium done").size();
  EXPECT_TRUE(is_whole_answer(answer_text));
  for (std::size_t size = 0; size < end; ++size) {
    EXPECT_FALSE(is_whole_answer(answer_text.substr(0, size)));
    EXPECT_FALSE(parse_answer(answer_text.substr(0, size)));
  }
}

TEST(GuestAnswer, NumbersThatCannotBeAreNone) {
  for (const auto &[from, to] : std::vector<std::pair<std::string, std::string>>{{"100.50", "102.50"},
                                                                                 {"100.50", "99999999999999999999"},
                                                                                 {"pid:[4026531836]", "pid:4026531836"},
                                                                                 {"\n0\n100", "\nroot\n100"}}) {
    std::string text(answer_text);
    text.replace(text.find(from), from.size(), to);
    EXPECT_FALSE(parse_answer(text)) << to;
  }
}

TEST(Lies, AnHonestGuestTellsNone) {
  for (const auto time : {AnswerTime::between, AnswerTime::later, AnswerTime::earlier})
    EXPECT_EQ(lies(honest(), sample(), honest(), time), std::vector<std::string>{});
}

TEST(Lies, WhatCameOrWentMeanwhileIsNone) {
  auto more = honest();
  more.processes[300] = {Gva{0xffff800000000300}, 300, 100'000'000'000, 0, "new", false, {}};
  more.modules[Gva{0xffffffffc0200000}] = {Gva{0xffffffffc0200000}, "new", 3};
  more.sockets[5000] = {Gva{3}, "tcp", "LISTEN", "", "", 5000, 1, 0, 4026531840, {}};
  EXPECT_TRUE(lies(honest(), sample(), more).empty());
  EXPECT_TRUE(lies(more, sample(), honest()).empty());
  // The number was used again by another one.
  auto another = more;
  another.processes[300].task = Gva{0xffff800000000301};
  another.modules[Gva{0xffffffffc0200000}].instance = 4;
  another.sockets[5000].socket = Gva{4};
  EXPECT_TRUE(lies(more, sample(), another).empty());
}

TEST(Lies, WhatIsLeftOut) {
  auto more = honest();
  more.processes[300] = {Gva{0xffff800000000300}, 300, 60'000'000'000, 0, "hidden", false, {}};
  more.modules[Gva{0xffffffffc0200000}] = {Gva{0xffffffffc0200000}, "hidden", 3};
  more.sockets[5000] = {Gva{3}, "tcp", "LISTEN", "0.0.0.0:1", "", 5000, 1, 0, 4026531840, {}};
  more.sockets[5001] = {Gva{3}, "udp", "", "0.0.0.0:1", "", 5001, 1, 0, 4026531840, {}};       // no such table was told
  more.sockets[5002] = {Gva{3}, "tcp", "LISTEN", "0.0.0.0:1", "", 5002, 1, 0, 4026532000, {}}; // of another namespace
  more.sockets[5003] = {Gva{3}, "tcp", "TIME_WAIT", "0.0.0.0:1", "", 5003, 1, 0, 4026531840, {}};
  auto answer = sample();
  answer.ss.reset();
  EXPECT_EQ(
      lies(more, answer, more),
      (std::vector<std::string>{"process 300 (hidden) runs, and the guest's /proc and ps leave it out",
                                "the module hidden is loaded, and the guest's /proc/modules and lsmod leave it out",
                                "there is a tcp socket 0.0.0.0:1 that listens, and the guest's /proc/net/tcp leaves "
                                "it out"}));
  EXPECT_EQ(lies(more, answer, more, AnswerTime::earlier).size(), 1u);
}

TEST(Lies, AnOldAnswerSaysNothingOfWhatIsYounger) {
  auto more = honest();
  more.processes[300] = {Gva{0xffff800000000300}, 300, 100'400'000'000, 0, "young", false, {}};
  EXPECT_TRUE(lies(more, sample(), more, AnswerTime::earlier).empty());
  EXPECT_EQ(lies(more, sample(), more, AnswerTime::later).size(), 1u);
}

TEST(Lies, WhatIsToldOtherwise) {
  auto look = honest();
  look.processes[1].comm = "systemd";
  look.processes[200].uid = 0;
  look.sockets[4711].local_port = 22;
  EXPECT_EQ(lies(look, sample(), look).size(), 3u);
  // It changed between the looks: the guest may have seen either.
  EXPECT_TRUE(lies(honest(), sample(), look).empty());
}

TEST(Lies, ANameThatToolsDoNotPrintAsItIsIsNotCompared) {
  auto look = honest();
  look.processes[200].comm = "a\nb";
  EXPECT_TRUE(lies(look, sample(), look).empty());
}

TEST(Lies, WhatIsAdded) {
  auto less = honest();
  less.processes.erase(200);
  less.modules.erase(Gva{0xffffffffc0000000});
  less.sockets.erase(4711);
  EXPECT_EQ(lies(less, sample(), less).size(), 3u);
  EXPECT_TRUE(lies(honest(), sample(), less).empty()); // it went
  EXPECT_TRUE(lies(less, sample(), honest()).empty()); // it came
  EXPECT_TRUE(lies(less, sample(), less, AnswerTime::later).empty());
}

TEST(Lies, WhatMadeTheAnswerIsNotAdded) {
  auto answer = sample();
  answer.processes.push_back({400, 0, answer.begin_ns / 10'000'000 - 50, "sh"});
  answer.processes.push_back({401, 0, answer.begin_ns / 10'000'000 + 10, "ls"});
  answer.processes.push_back({402, 0, UINT64_MAX, "ls"});
  EXPECT_TRUE(lies(honest(), answer, honest()).empty());
}

} // namespace
} // namespace lararium::detect
