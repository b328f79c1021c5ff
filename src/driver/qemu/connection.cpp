#include "connection.h"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

namespace lararium::qemu {

Result<UniqueFd> connect_unix(const std::string &path, bool is_abstract, const std::string &description) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  auto length = sizeof address;
  UniqueFd place;
  if (is_abstract) {
    if (path.size() >= sizeof address.sun_path)
      return fail(ErrorCode::usage, fmt::format("the name of {} is too long", description));
    std::ranges::copy(path, address.sun_path + 1);
    length = offsetof(sockaddr_un, sun_path) + 1 + path.size();
  } else {
    // A path under /proc/PID/root can be longer than an address holds; the link of an open descriptor never is.
    place.reset(::open(path.c_str(), O_PATH | O_CLOEXEC));
    if (!place)
      return fail_errno(description, errno);
    fmt::format_to_n(address.sun_path, sizeof address.sun_path - 1, "/proc/self/fd/{}", place.get());
  }
  UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket)
    return fail_errno("cannot create a socket", errno);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr *>(&address), static_cast<socklen_t>(length)) != 0) {
    if (errno == EAGAIN) // the queue of waiting clients is full
      return fail(ErrorCode::timeout, fmt::format("{} is in use by another client", description));
    return fail_errno(description, errno);
  }
  return socket;
}

Result<void> Connection::send(std::string_view text, Clock::time_point deadline) {
  while (!text.empty()) {
    const auto count = ::send(socket_.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count > 0)
      text.remove_prefix(static_cast<std::size_t>(count));
    else if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
      TRY(wait(POLLOUT, deadline));
    else if (count < 0 && errno != EINTR)
      return fail_errno(fmt::format("cannot write to {}", peer_), errno);
  }
  return {};
}

Result<std::string_view> Connection::receive(Clock::time_point deadline) {
  while (true) {
    const auto count = ::recv(socket_.get(), buffer_.data(), buffer_.size(), MSG_DONTWAIT);
    if (count > 0)
      return std::string_view(buffer_.data(), static_cast<std::size_t>(count));
    if (count == 0)
      return fail(ErrorCode::protocol, fmt::format("{} closed the connection", peer_));
    if (errno == EAGAIN || errno == EWOULDBLOCK) {
      // QEMU leaves Nagle's algorithm on: it holds its next answer back until the last one is acknowledged, which the
      // kernel delays by 40 ms unless it is asked each time.
      const int on = 1;
      if (is_tcp_)
        ::setsockopt(socket_.get(), IPPROTO_TCP, TCP_QUICKACK, &on, sizeof on);
      TRY(wait(POLLIN, deadline));
    } else if (errno != EINTR)
      return fail_errno(fmt::format("cannot read from {}", peer_), errno);
  }
}

Result<void> Connection::wait(short events, Clock::time_point deadline) {
  while (true) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    if (left <= 0)
      return fail(ErrorCode::timeout, fmt::format("{} does not answer", peer_));
    pollfd poll_on{socket_.get(), events, 0};
    const int ready = ::poll(&poll_on, 1, static_cast<int>(std::min<std::int64_t>(left, INT32_MAX)));
    if (ready > 0)
      return {};
    if (ready < 0 && errno != EINTR)
      return fail_errno(fmt::format("cannot wait for {}", peer_), errno);
  }
}

} // namespace lararium::qemu
