// An example of a security tool for `lararium guard --tool`: it refuses programs in /tmp, and whatever is started by a
// program that is there no more. It knows nothing of Lararium but docs/tool_protocol.md, and uses a JSON library.
//
//     lararium guard web --hooks exec --tool /usr/lib/lararium/example_security_tool
#include <nlohmann/json.hpp>

#include <array>
#include <cstdint>
#include <string>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>
#include <vector>

using nlohmann::json;

namespace {

constexpr int line = 3; // the socket that we were given

void say(const json &message) {
  const std::string text = message.dump(-1, ' ', false, json::error_handler_t::replace);
  ::send(line, text.data(), text.size(), MSG_NOSIGNAL);
}

// One message; with the first, the descriptors of the guest's memory.
std::string hear(std::vector<int> &descriptors) {
  std::string text(64 << 10, '\0');
  iovec part{text.data(), text.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * 16)> control;
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t count = ::recvmsg(line, &message, 0);
  text.resize(count > 0 ? static_cast<std::size_t>(count) : 0);
  for (cmsghdr *header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header))
    if (header->cmsg_type == SCM_RIGHTS) {
      const auto *first = reinterpret_cast<const int *>(CMSG_DATA(header));
      descriptors.assign(first, first + (header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    }
  return text;
}

std::string refusal(const json &event) {
  const json &record = event["record"];
  if (event["hook"] != "exec")
    return {};
  const std::string path = record["fields"].value("path", "");
  if (path.starts_with("/tmp/"))
    return "programs do not live in /tmp";
  if (path.starts_with("/memfd:"))
    return "programs live in files";
  return {};
}

} // namespace

int main() {
  say({{"type", "ready"}});
  std::vector<int> descriptors;
  for (std::string text = hear(descriptors); !text.empty(); text = hear(descriptors)) {
    const json message = json::parse(text, nullptr, false);
    if (message.is_discarded())
      return 1;
    if (message["type"] == "guest") // here one could map the guest's memory, for reading
      continue;
    if (message["type"] != "event")
      continue;
    const std::string reason = refusal(message);
    say({{"type", "verdict"},
         {"id", message["id"]},
         {"verdict", reason.empty() ? "allow" : "EPERM"},
         {"reason", reason}});
  }
}
