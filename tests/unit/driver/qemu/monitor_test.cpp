#include "lararium/driver/qemu/monitor.h"

#include "lararium/base/unique_fd.h"
#include "recorded.h"

#include <array>
#include <cstdio>
#include <cstring>
#include <functional>
#include <sys/socket.h>
#include <sys/un.h>
#include <thread>

namespace lararium::qemu {
namespace {

using namespace std::chrono_literals;

constexpr std::string_view greeting =
    "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}, \"package\": \"x\"}, "
    "\"capabilities\": [\"oob\"]}}\r\n";

// The server's end of one conversation.
class Peer {
public:
  explicit Peer(UniqueFd socket) : socket_(std::move(socket)) {}
  void say(std::string_view text) {
    while (!text.empty()) {
      const auto count = ::send(socket_.get(), text.data(), text.size(), MSG_NOSIGNAL);
      if (count <= 0)
        return;
      text.remove_prefix(static_cast<std::size_t>(count));
    }
  }
  // The next line, empty when the client left.
  std::string hear() {
    while (true) {
      if (const auto end = heard_.find('\n'); end != std::string::npos) {
        auto line = heard_.substr(0, end);
        heard_.erase(0, end + 1);
        return line;
      }
      std::array<char, 4096> buffer;
      const auto count = ::recv(socket_.get(), buffer.data(), buffer.size(), 0);
      if (count <= 0)
        return {};
      heard_.append(buffer.data(), static_cast<std::size_t>(count));
    }
  }
  static std::string id_in(const std::string &line) {
    const auto at = line.find("\"id\":") + 5;
    return line.substr(at, line.find_first_not_of("0123456789", at) - at);
  }
  void shake_hands() {
    say(greeting);
    say("{\"return\": {}, \"id\": " + id_in(hear()) + "}\r\n");
  }

private:
  UniqueFd socket_;
  std::string heard_;
};

// A monitor's socket that treats its first client as the test says.
class FakeMonitor {
public:
  explicit FakeMonitor(std::function<void(Peer &)> script) {
    std::snprintf(folder_, sizeof folder_, "/tmp/monitor_test.XXXXXX");
    EXPECT_NE(::mkdtemp(folder_), nullptr);
    route_.path = route_.bound = std::string(folder_) + "/socket";
    route_.pid = ::getpid();
    listening_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, route_.path.c_str(), sizeof address.sun_path - 1);
    EXPECT_EQ(::bind(listening_.get(), reinterpret_cast<sockaddr *>(&address), sizeof address), 0);
    EXPECT_EQ(::listen(listening_.get(), 8), 0);
    thread_ = std::thread([this, script = std::move(script)] {
      Peer peer(UniqueFd(::accept(listening_.get(), nullptr, nullptr)));
      script(peer);
    });
  }
  ~FakeMonitor() {
    ::shutdown(listening_.get(), SHUT_RDWR);
    thread_.join();
    ::unlink(route_.path.c_str());
    ::rmdir(folder_);
  }
  const MonitorRoute &route() const { return route_; }

private:
  char folder_[64];
  MonitorRoute route_;
  UniqueFd listening_;
  std::thread thread_;
};

constexpr MonitorTimeouts patient{.greeting = 300ms, .command = 5s};
constexpr MonitorTimeouts hasty{.greeting = 30ms, .command = 100ms};

TEST(QmpMonitor, AnswersAreFoundByTheirId) {
  FakeMonitor fake([](Peer &peer) {
    peer.shake_hands();
    const auto command = peer.hear();
    EXPECT_NE(command.find("\"execute\":\"query-status\""), std::string::npos);
    peer.say("{\"timestamp\": {}, \"event\": \"RESUME\"}\r\n{\"return\": \"late\", \"id\": 999}\r\n");
    peer.say("{\"return\": {\"status\": \"running\"}, \"id\": " + Peer::id_in(command) + "}\r\n");
    const auto wrong = peer.hear();
    peer.say("{\"id\": " + Peer::id_in(wrong) +
             ", \"error\": {\"class\": \"GenericError\", \"desc\": \"no such\"}}\r\n");
    const auto human = peer.hear();
    EXPECT_NE(human.find(R"("arguments":{"command-line":"say \"x\""})"), std::string::npos);
    peer.say("{\"return\": \"one\\r\\ntwo\\r\\n\", \"id\": " + Peer::id_in(human) + "}\r\n");
  });
  const auto monitor = open_monitor(fake.route(), patient);
  ASSERT_TRUE(monitor) << monitor.error().describe();
  EXPECT_EQ((*monitor)->version(), "7.2.22");
  EXPECT_EQ((*monitor)->qmp("query-status"), "{\"status\":\"running\"}");
  EXPECT_EQ((*monitor)->take_events().size(), 1u);
  const auto refused = (*monitor)->qmp("nonsense");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::protocol);
  EXPECT_NE(refused.error().message.find("no such"), std::string::npos);
  EXPECT_EQ((*monitor)->hmp("say \"x\""), "one\ntwo\n");
}

TEST(QmpMonitor, AMonitorThatAnotherClientHoldsIsLeftAlone) {
  // The first client is served and stays; we are the second, which hears nothing and must say nothing.
  FakeMonitor fake([](Peer &peer) {
    peer.shake_hands();
    EXPECT_EQ(peer.hear(), ""); // until the first client leaves
  });
  const auto first = open_monitor(fake.route(), patient);
  ASSERT_TRUE(first);
  const auto begin = std::chrono::steady_clock::now();
  const auto second = open_monitor(fake.route(), {.greeting = 50ms, .command = 5s});
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, ErrorCode::timeout);
  EXPECT_NE(second.error().message.find("in use by another client"), std::string::npos);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 2s);
}

TEST(QmpMonitor, AHeldMonitorIsPassedOverForAFreeOne) {
  FakeMonitor held([](Peer &peer) {
    peer.shake_hands();
    EXPECT_EQ(peer.hear(), "");
  });
  FakeMonitor free([](Peer &peer) {
    peer.say(recorded("hmp_banner_7.2.bin"));
    EXPECT_EQ(peer.hear(), "");
  });
  const auto first = open_monitor(held.route(), patient);
  ASSERT_TRUE(first);
  MonitorRoute human = free.route();
  human.kind = MonitorRoute::Kind::hmp;
  const auto begin = std::chrono::steady_clock::now();
  const auto second = MonitorAccess({held.route(), human}, patient).open();
  ASSERT_TRUE(second) << second.error().describe();
  EXPECT_FALSE((*second)->speaks_qmp());
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 250ms);
}

TEST(QmpMonitor, ALateGreetingIsWaitedForWhenNobodyElseIsThere) {
  FakeMonitor fake([](Peer &peer) {
    std::this_thread::sleep_for(100ms);
    peer.shake_hands();
  });
  EXPECT_TRUE(open_monitor(fake.route(), {.greeting = 20ms, .command = 5s}));
}

TEST(QmpMonitor, SilenceEndsInATimeoutAndNothingMoreIsAsked) {
  FakeMonitor fake([](Peer &peer) {
    peer.shake_hands();
    peer.hear();
    EXPECT_EQ(peer.hear(), "");
  });
  const auto monitor = open_monitor(fake.route(), hasty);
  ASSERT_TRUE(monitor);
  const auto answer = (*monitor)->qmp("query-status");
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().code, ErrorCode::timeout);
  const auto again = (*monitor)->qmp("query-status");
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code, ErrorCode::protocol);
}

TEST(QmpMonitor, AStormOfEventsEnds) {
  FakeMonitor fake([](Peer &peer) {
    peer.shake_hands();
    peer.hear();
    const std::string event = "{\"event\": \"STORM\", \"data\": \"" + std::string(2000, 'x') + "\"}\r\n";
    for (int i = 0; i < 60'000; i++)
      peer.say(event);
  });
  const auto monitor = open_monitor(fake.route(), {.greeting = 300ms, .command = 2s});
  ASSERT_TRUE(monitor);
  EXPECT_FALSE((*monitor)->qmp("query-status"));
  EXPECT_LE((*monitor)->take_events().size(), max_kept_events);
}

TEST(QmpMonitor, GarbageHugeMessagesAndHangUpsAreErrors) {
  const auto answer_with = [](const std::string &text) {
    FakeMonitor fake([&](Peer &peer) {
      peer.shake_hands();
      peer.hear();
      peer.say(text);
    });
    const auto monitor = open_monitor(fake.route(), patient);
    EXPECT_TRUE(monitor);
    const auto answer = (*monitor)->qmp("query-status");
    return answer ? ErrorCode::usage : answer.error().code;
  };
  EXPECT_EQ(answer_with("\x01\x02 not JSON\r\n"), ErrorCode::corrupt);
  EXPECT_EQ(answer_with("[1]\r\n"), ErrorCode::corrupt);
  EXPECT_EQ(answer_with("{\"return\":"), ErrorCode::protocol); // and hangs up
  EXPECT_EQ(answer_with(std::string(max_message + 1, ' ')), ErrorCode::protocol);
  EXPECT_EQ(answer_with("{\"return\":" + std::string(100'000, '[') + "\r\n"), ErrorCode::corrupt);
}

TEST(QmpMonitor, OtherServersAreNotTakenForQmp) {
  FakeMonitor fake([](Peer &peer) { peer.say("{\"event\": \"X\"}\r\n{\"return\": {}}\r\n"); });
  const auto monitor = open_monitor(fake.route(), patient);
  ASSERT_FALSE(monitor);
  EXPECT_EQ(monitor.error().code, ErrorCode::protocol);
}

TEST(QmpMonitor, NothingListens) {
  const auto monitor = open_monitor({.path = "/nonexistent/socket", .bound = {}, .connection = {}}, patient);
  ASSERT_FALSE(monitor);
  EXPECT_EQ(monitor.error().code, ErrorCode::not_found);
}

TEST(HmpMonitor, SpeaksWithReadline) {
  FakeMonitor fake([](Peer &peer) {
    peer.say(recorded("hmp_banner_10.0.bin"));
    EXPECT_EQ(peer.hear(), "info status");
    const auto answer = recorded("hmp_status_10.0.bin");
    peer.say(answer.substr(0, 50)); // in two parts, the first of which ends inside the echo
    std::this_thread::sleep_for(20ms);
    peer.say(answer.substr(50));
    peer.hear();
    peer.say("n\x1b[K\r\nunknown command: 'nonsense'\r\n(qemu) ");
  });
  MonitorRoute route = fake.route();
  route.kind = MonitorRoute::Kind::hmp;
  const auto monitor = open_monitor(route, patient);
  ASSERT_TRUE(monitor) << monitor.error().describe();
  EXPECT_EQ((*monitor)->version(), "10.0.2");
  EXPECT_FALSE((*monitor)->speaks_qmp());
  EXPECT_EQ((*monitor)->hmp("info status"), "VM status: running\n");
  EXPECT_FALSE((*monitor)->hmp("nonsense"));
  EXPECT_EQ((*monitor)->hmp("two\nlines").error().code, ErrorCode::usage);
  EXPECT_EQ((*monitor)->qmp("query-status").error().code, ErrorCode::unsupported);
}

TEST(MonitorAccess, TakesTheNextWhenOneFails) {
  FakeMonitor fake([](Peer &peer) { peer.shake_hands(); });
  MonitorRoute broken;
  broken.path = "/nonexistent/socket";
  MonitorAccess access({broken, fake.route()}, patient);
  EXPECT_TRUE(access.open());
  EXPECT_EQ(MonitorAccess({}).open().error().code, ErrorCode::unsupported);
}

TEST(MessageSplitter, LinesAreWholeHoweverTheyArrive) {
  MessageSplitter splitter;
  EXPECT_TRUE(splitter.add("\r\n{\"a\""));
  EXPECT_FALSE(splitter.next());
  EXPECT_TRUE(splitter.add(":1}\r\n{}\n{"));
  EXPECT_EQ(splitter.next(), "{\"a\":1}\r");
  EXPECT_EQ(splitter.next(), "{}");
  EXPECT_FALSE(splitter.next());
}

} // namespace
} // namespace lararium::qemu
