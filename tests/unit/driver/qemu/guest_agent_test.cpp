#include "lararium/driver/qemu/guest_agent.h"

#include <array>
#include <cstring>
#include <filesystem>
#include <functional>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <thread>
#include <unistd.h>

namespace lararium::qemu {
namespace {

using namespace std::chrono_literals;

TEST(GuestAgent, Base64) {
  for (const auto &[bytes, text] : {std::pair("", ""), std::pair("f", "Zg=="), std::pair("fo", "Zm8="),
                                    std::pair("foo", "Zm9v"), std::pair("foob", "Zm9vYg==")}) {
    EXPECT_EQ(encode_base64(bytes), text);
    EXPECT_EQ(decode_base64(text), bytes);
  }
  const std::string all = [] {
    std::string bytes;
    for (int i = 0; i < 256; i++)
      bytes += static_cast<char>(i);
    return bytes;
  }();
  EXPECT_EQ(decode_base64(encode_base64(all)), all);
  for (const char *wrong : {"Zg", "Zg=", "Z===", "Zg==Zg==", "Zm9*", "====", "Zm 9"})
    EXPECT_FALSE(decode_base64(wrong)) << wrong;
}

TEST(GuestAgent, Status) {
  EXPECT_FALSE(parse_agent_status(R"({"exited": false})")->exited);
  const auto ended = parse_agent_status(R"({"exited": true, "exitcode": 2, "out-data": "Zm9v", "err-data": "Zg=="})");
  ASSERT_TRUE(ended);
  EXPECT_TRUE(ended->exited);
  EXPECT_EQ(ended->code, 2);
  EXPECT_EQ(ended->output, "foo");
  EXPECT_EQ(parse_agent_status(R"({"exited": true, "signal": 9})")->code, -1);
  for (const char *wrong : {"", "[]", "{}", R"({"exited": 1})", R"({"exited": true, "out-data": 1})",
                            R"({"exited": true, "out-data": "*"})", R"({"exited": true, "out-truncated": true})"})
    EXPECT_FALSE(parse_agent_status(wrong)) << wrong;
}

// A socket at which somebody answers each line.
class Answering {
public:
  explicit Answering(std::function<std::string(const std::string &)> answer)
      : path_(std::filesystem::temp_directory_path() / ("agent-test-" + std::to_string(::getpid()))) {
    std::filesystem::remove(path_);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path_.c_str(), sizeof address.sun_path - 1);
    listener_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT_EQ(::bind(listener_, reinterpret_cast<const sockaddr *>(&address), sizeof address), 0);
    EXPECT_EQ(::listen(listener_, 1), 0);
    thread_ = std::thread([this, answer = std::move(answer)] {
      const int client = ::accept(listener_, nullptr, nullptr);
      std::string received;
      std::array<char, 4096> buffer;
      for (ssize_t count; (count = ::recv(client, buffer.data(), buffer.size(), 0)) > 0;) {
        received.append(buffer.data(), static_cast<std::size_t>(count));
        for (std::size_t end; (end = received.find('\n')) != received.npos; received.erase(0, end + 1)) {
          const std::string reply = answer(received.substr(0, end));
          static_cast<void>(::send(client, reply.data(), reply.size(), MSG_NOSIGNAL));
        }
      }
      ::close(client);
    });
  }
  Answering(const Answering &) = delete;
  Answering &operator=(const Answering &) = delete;
  ~Answering() {
    ::shutdown(listener_, SHUT_RDWR);
    thread_.join();
    ::close(listener_);
    std::filesystem::remove(path_);
  }
  [[nodiscard]] std::string path() const { return path_; }

private:
  std::filesystem::path path_;
  int listener_ = -1;
  std::thread thread_;
};

// An agent that answers a synchronisation rightly.
std::string synchronised(const std::string &line) {
  const auto at = line.find("\"id\":");
  return "{\"return\": {\"left over\": true}}\n\xff{\"return\": " + line.substr(at + 5, line.find('}', at) - at - 5) +
         "}\n";
}

TEST(GuestAgent, RunsAScript) {
  std::vector<std::string> lines;
  int asked = 0;
  std::string answer;
  {
    const Answering agent([&](const std::string &line) -> std::string {
      lines.push_back(line);
      if (line.find("guest-sync-delimited") != line.npos)
        return synchronised(line);
      if (line.find("guest-exec-status") != line.npos)
        return ++asked < 3 ? "{\"return\": {\"exited\": false}}\n"
                           : "{\"return\": {\"exited\": true, \"exitcode\": 0, \"out-data\": \"Zm9v\"}}\n";
      return "{\"return\": {\"pid\": 42}}\n";
    });
    const auto result = run_in_guest(agent.path(), "echo foo", {10s, 1000});
    ASSERT_TRUE(result) << result.error().describe();
    answer = *result;
  }
  EXPECT_EQ(answer, "foo");
  ASSERT_EQ(lines.size(), 5U);
  EXPECT_EQ(lines[0][0], '\xff');
  EXPECT_NE(lines[1].find(encode_base64("echo foo")), std::string::npos);
  EXPECT_NE(lines[2].find("42"), std::string::npos);
}

TEST(GuestAgent, SaysWhatIsNotAllowed) {
  const Answering agent([](const std::string &line) -> std::string {
    return line.find("guest-sync-delimited") != line.npos
               ? synchronised(line)
               : R"({"error": {"class": "CommandNotFound", "desc": "Command guest-exec has been disabled"}})"
                 "\n";
  });
  const auto result = run_in_guest(agent.path(), "true", {10s, 1000});
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().message, "the guest agent refuses guest-exec: Command guest-exec has been disabled");
}

TEST(GuestAgent, NobodyAnswers) {
  const Answering agent([](const std::string &) { return std::string(); });
  const auto result = run_in_guest(agent.path(), "true", {100ms, 1000});
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, ErrorCode::timeout);
  EXPECT_FALSE(run_in_guest("/no/such/socket", "true"));
}

TEST(GuestAgent, AnEndlessAnswerEnds) {
  const Answering agent([](const std::string &line) {
    return line.find("guest-sync-delimited") != line.npos ? synchronised(line) : std::string(20 << 20, 'x');
  });
  const auto result = run_in_guest(agent.path(), "true", {30s, 1000});
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, ErrorCode::protocol);
}

} // namespace
} // namespace lararium::qemu
