// QEMU's guest agent (qemu-ga): a program in the guest that carries out what comes over a serial port, of which QEMU
// has the other end as a socket on the host. What it answers is the guest's own word, and foreign.
//
// Its protocol is that of QMP with commands of its own (QEMU's qga/qapi-schema.json), without greeting and events.
#pragma once

#include "lararium/base/result.h"

#include <chrono>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lararium::qemu {

struct AgentLimits {
  std::chrono::milliseconds time{120'000};
  std::size_t bytes = 12 << 20; // of what the program prints; the agent itself keeps 16 MiB
};

// Runs `sh -s` in the guest with this input, as the agent's user, and gives what it prints. `timeout`: nobody answers
// at the socket, or the program does not end; `protocol`: the agent does not allow it (guest-exec is often switched
// off).
[[nodiscard]] Result<std::string> run_in_guest(const std::string &socket, std::string_view input,
                                               const AgentLimits &limits = {});

// Pure parts, open for tests and fuzzers.

[[nodiscard]] std::string encode_base64(std::string_view bytes);
// Nothing: it is no base64, with its padding.
[[nodiscard]] std::optional<std::string> decode_base64(std::string_view text);

// What guest-exec-status returned.
struct AgentStatus {
  bool exited = false;
  int code = 0; // -1: ended by a signal
  std::string output;
};
[[nodiscard]] Result<AgentStatus> parse_agent_status(std::string_view json);

} // namespace lararium::qemu
