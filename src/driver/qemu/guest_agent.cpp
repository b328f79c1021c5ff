#include "lararium/driver/qemu/guest_agent.h"

#include "connection.h"
#include "lararium/driver/qemu/monitor.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <thread>

namespace lararium::qemu {
namespace {

using nlohmann::json;
using Clock = Connection::Clock;

constexpr std::string_view alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
constexpr std::chrono::seconds first_answer{10}; // of an agent that is there; guests are slow at times
constexpr char delimiter = '\xff';

class Agent {
public:
  static Result<Agent> open(const std::string &socket, Clock::time_point deadline) {
    const std::string name = "guest agent at " + socket;
    TRY_ASSIGN(UniqueFd connected, connect_unix(socket, false, name));
    Agent agent(Connection(std::move(connected), false, name));
    TRY(agent.synchronise(std::min(deadline, Clock::now() + first_answer)));
    return agent;
  }

  Result<std::string> execute(std::string_view command, const json &arguments, Clock::time_point deadline) {
    const json request = {{"execute", command}, {"arguments", arguments}};
    TRY(connection_.send(request.dump() + '\n', deadline));
    TRY_ASSIGN(auto message, next_message(deadline));
    if (message.kind == QmpMessage::Kind::error)
      return fail(ErrorCode::protocol, fmt::format("the guest agent refuses {}: {}", command, message.text));
    if (message.kind != QmpMessage::Kind::answer)
      return fail(ErrorCode::protocol, "the guest agent answers something else than was asked");
    return std::move(message.text);
  }

private:
  explicit Agent(Connection connection) : connection_(std::move(connection)) {}

  // The port may hold what is left of another conversation, in both directions. The agent drops what it has of a
  // command at the delimiter, and puts one before its answer.
  Result<void> synchronise(Clock::time_point deadline) {
    const auto id = static_cast<std::uint32_t>(Clock::now().time_since_epoch().count());
    TRY(connection_.send(
        fmt::format("{}{{\"execute\":\"guest-sync-delimited\",\"arguments\":{{\"id\":{}}}}}\n", delimiter, id),
        deadline));
    bool delimited = false;
    while (true) {
      auto received = connection_.receive(deadline);
      if (!received && received.error().code == ErrorCode::timeout)
        return fail(ErrorCode::timeout, "no guest agent answers: qemu-ga does not run in the guest, another client has "
                                        "its socket, or this is none");
      if (!received)
        return std::unexpected(std::move(received).error());
      auto bytes = *received;
      if (const auto at = bytes.rfind(delimiter); at != bytes.npos) {
        delimited = true;
        splitter_ = {};
        bytes.remove_prefix(at + 1);
      }
      if (!delimited)
        continue; // of somebody else
      if (!splitter_.add(bytes))
        return too_long();
      while (const auto line = splitter_.next()) {
        const auto message = parse_qmp_message(*line);
        if (message && message->kind == QmpMessage::Kind::answer && message->text == std::to_string(id))
          return {};
      }
      if (Clock::now() > deadline)
        return fail(ErrorCode::timeout, "the guest agent does not come to its answer");
    }
  }

  Result<QmpMessage> next_message(Clock::time_point deadline) {
    while (true) {
      if (const auto line = splitter_.next())
        return parse_qmp_message(*line);
      TRY_ASSIGN(const auto bytes, connection_.receive(deadline));
      if (!splitter_.add(bytes))
        return too_long();
      if (Clock::now() > deadline)
        return fail(ErrorCode::timeout, "the guest agent does not come to its answer");
    }
  }

  static std::unexpected<Error> too_long() { return fail(ErrorCode::protocol, "the guest agent's answer is too long"); }

  Connection connection_;
  MessageSplitter splitter_;
};

} // namespace

Result<std::string> run_in_guest(const std::string &socket, std::string_view input, const AgentLimits &limits) {
  const auto deadline = Clock::now() + limits.time;
  TRY_ASSIGN(auto agent, Agent::open(socket, deadline));
  const json arguments = {
      {"path", "/bin/sh"}, {"arg", {"-s"}}, {"input-data", encode_base64(input)}, {"capture-output", true}};
  TRY_ASSIGN(const auto started, agent.execute("guest-exec", arguments, deadline));
  const auto answer = json::parse(started, nullptr, false);
  if (!answer.is_object() || !answer.contains("pid") || !answer["pid"].is_number_integer())
    return fail(ErrorCode::protocol, "the guest agent does not say what it started");
  const json which = {{"pid", answer["pid"]}};
  // Asked often at first: the agent does not tell by itself.
  for (std::chrono::milliseconds pause{10};; pause = std::min(2 * pause, std::chrono::milliseconds(500))) {
    TRY_ASSIGN(const auto text, agent.execute("guest-exec-status", which, deadline));
    TRY_ASSIGN(auto status, parse_agent_status(text));
    if (status.exited) {
      if (status.output.size() > limits.bytes)
        return fail(ErrorCode::protocol, fmt::format("the guest's answer has more than {} bytes", limits.bytes));
      if (status.code != 0 && status.output.empty())
        return fail(ErrorCode::protocol, fmt::format("the shell that the guest agent ran ended with {}", status.code));
      return std::move(status.output);
    }
    if (Clock::now() + pause > deadline)
      return fail(ErrorCode::timeout, "what the guest agent runs does not end");
    std::this_thread::sleep_for(pause);
  }
}

std::string encode_base64(std::string_view bytes) {
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const auto byte = [&](std::size_t at) -> std::uint32_t {
      return at < bytes.size() ? static_cast<unsigned char>(bytes[at]) : 0;
    };
    const std::uint32_t group = byte(i) << 16 | byte(i + 1) << 8 | byte(i + 2);
    text += alphabet[group >> 18];
    text += alphabet[group >> 12 & 63];
    text += i + 1 < bytes.size() ? alphabet[group >> 6 & 63] : '=';
    text += i + 2 < bytes.size() ? alphabet[group & 63] : '=';
  }
  return text;
}

std::optional<std::string> decode_base64(std::string_view text) {
  static constexpr auto values = [] {
    std::array<std::uint8_t, 256> table{};
    table.fill(0xff);
    for (std::size_t i = 0; i < alphabet.size(); i++)
      table[static_cast<unsigned char>(alphabet[i])] = static_cast<std::uint8_t>(i);
    return table;
  }();
  if (text.size() % 4 != 0)
    return std::nullopt;
  std::size_t padding = 0;
  while (padding < 2 && padding < text.size() && text[text.size() - 1 - padding] == '=')
    padding++;
  std::string bytes;
  bytes.reserve(text.size() / 4 * 3);
  for (std::size_t i = 0; i < text.size(); i += 4) {
    std::uint32_t group = 0;
    for (std::size_t k = i; k < i + 4; k++) {
      const bool padded = k >= text.size() - padding;
      const auto value = padded ? std::uint8_t{0} : values[static_cast<unsigned char>(text[k])];
      if (value == 0xff)
        return std::nullopt;
      group = group << 6 | value;
    }
    for (const int shift : {16, 8, 0})
      bytes += static_cast<char>(group >> shift & 0xff);
  }
  bytes.resize(bytes.size() - padding);
  return bytes;
}

Result<AgentStatus> parse_agent_status(std::string_view text) {
  const auto wrong = [] { return fail(ErrorCode::protocol, "the guest agent's status is not understood"); };
  const auto answer = json::parse(text, nullptr, false);
  if (!answer.is_object())
    return wrong();
  const auto member = [&](const char *name) { return answer.find(name); };
  AgentStatus status;
  if (const auto exited = member("exited"); exited != answer.end() && exited->is_boolean())
    status.exited = exited->get<bool>();
  else
    return wrong();
  if (const auto cut = member("out-truncated"); cut != answer.end() && cut->is_boolean() && cut->get<bool>())
    return fail(ErrorCode::protocol, "the guest's answer is longer than its agent keeps");
  if (const auto code = member("exitcode"); code != answer.end() && code->is_number_integer())
    status.code = code->get<int>();
  if (member("signal") != answer.end())
    status.code = -1;
  if (const auto output = member("out-data"); output != answer.end()) {
    auto decoded = output->is_string() ? decode_base64(output->get<std::string>()) : std::nullopt;
    if (!decoded)
      return wrong();
    status.output = std::move(*decoded);
  }
  return status;
}

} // namespace lararium::qemu
