// A conversation over a socket, with an end to every wait.
#pragma once

#include "lararium/base/result.h"
#include "lararium/base/unique_fd.h"

#include <chrono>
#include <string>
#include <string_view>
#include <vector>

namespace lararium::qemu {

// Connects to a UNIX socket; `description` is what errors call it.
[[nodiscard]] Result<UniqueFd> connect_unix(const std::string &path, bool is_abstract, const std::string &description);

// A connected socket, every wait on which ends by a deadline.
class Connection {
public:
  using Clock = std::chrono::steady_clock;

  // `peer`: who answers, for errors.
  Connection(UniqueFd socket, bool is_tcp, std::string peer)
      : socket_(std::move(socket)), is_tcp_(is_tcp), peer_(std::move(peer)) {}

  [[nodiscard]] Result<void> send(std::string_view text, Clock::time_point deadline);
  // At least one byte, or an error. What it gives stays until the next call.
  [[nodiscard]] Result<std::string_view> receive(Clock::time_point deadline);

private:
  [[nodiscard]] Result<void> wait(short events, Clock::time_point deadline);

  UniqueFd socket_;
  bool is_tcp_;
  std::string peer_;
  std::vector<char> buffer_ = std::vector<char>(64 << 10);
};

} // namespace lararium::qemu
