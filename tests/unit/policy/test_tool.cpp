// A security tool that behaves as its argument says, for tool_process_test.cpp.
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <string>
#include <string_view>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

namespace {

void say(const std::string &text) { ::send(3, text.data(), text.size(), MSG_NOSIGNAL); }

std::string hear() {
  std::string text(64 << 10, '\0');
  const ssize_t count = ::recv(3, text.data(), text.size(), 0);
  if (count <= 0)
    ::_exit(0);
  text.resize(static_cast<std::size_t>(count));
  return text;
}

std::string id_of(const std::string &event) {
  const auto at = event.find("\"id\":") + 5;
  return event.substr(at, event.find(',', at) - at);
}

void judge(const std::string &event, std::string_view verdict, const std::string &reason) {
  say("{\"type\":\"verdict\",\"id\":" + id_of(event) + ",\"verdict\":\"" + std::string(verdict) + "\",\"reason\":\"" +
      reason + "\"}");
}

// What it could do, of what it should not.
std::string what_it_can() {
  std::string text;
  const auto note = [&](const char *what, bool could) { text += could ? std::string(what) + " " : ""; };
  note("root", ::getuid() == 0 || ::geteuid() == 0);
  note("write", ::open("/tmp/lararium-test-tool", O_WRONLY | O_CREAT, 0600) >= 0);
  note("socket", ::socket(AF_INET, SOCK_STREAM, 0) >= 0);
  note("fork", ::fork() >= 0);
  note("descriptors", ::fcntl(4, F_GETFD) >= 0 || ::fcntl(9, F_GETFD) >= 0);
  note("setuid", ::setuid(0) == 0);
  note("environment", ::getenv("PATH") != nullptr);
  return text.empty() ? "nothing" : text;
}

} // namespace

int main(int, char **argv) {
  const std::string_view mode = argv[1] == nullptr ? "" : argv[1];
  if (mode == "silent")
    ::pause();
  say("{\"type\":\"ready\"}");
  for (std::string event = hear();; event = hear()) {
    if (event.find("\"type\":\"event\"") == std::string::npos)
      continue;
    if (mode == "deny")
      judge(event, "EACCES", "no");
    else if (mode == "rights")
      judge(event, "allow", what_it_can());
    else if (mode == "hang")
      for (;;)
        ::usleep(1'000'000);
    else if (mode == "die")
      ::_exit(1);
    else if (mode == "nonsense")
      say("{\"type\":[[[[[[1]]]]]]}");
    else if (mode == "flood")
      for (;;)
        say("{\"type\":\"verdict\",\"id\":0,\"verdict\":\"allow\"}");
  }
}
