#include "lararium/policy/tool_process.h"

#include "confinement.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <poll.h>
#include <pwd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

namespace lararium::policy {
namespace {

using namespace std::chrono_literals;
using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr std::size_t longest_message = 64 << 10, longest_read = 16 << 10, most_descriptors = 16;
constexpr int tool_descriptor = 3;
constexpr auto start_limit = 5s, start_pause = 1s;
constexpr int most_questions = 4096; // before a verdict

std::string hex(std::span<const std::byte> bytes) {
  std::string text;
  text.reserve(2 * bytes.size());
  for (const std::byte byte : bytes)
    fmt::format_to(std::back_inserter(text), "{:02x}", std::to_integer<unsigned>(byte));
  return text;
}

std::string dump(const json &document) { return document.dump(-1, ' ', false, json::error_handler_t::replace); }

// A message is one flat object. What nests is nothing of ours, and is not taken apart.
std::optional<json> parse(const std::string &text) {
  bool too_deep = false;
  auto document = json::parse(
      text,
      [&](int depth, json::parse_event_t, json &) {
        too_deep = too_deep || depth > 2;
        return !too_deep;
      },
      false);
  return too_deep || !document.is_object() ? std::nullopt : std::optional(std::move(document));
}

std::string text_in(const json &object, const char *key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : std::string();
}

// Addresses are hexadecimal text, as in all our documents; a number is taken, too.
std::optional<std::uint64_t> number_in(const json &object, const char *key) {
  const auto it = object.find(key);
  if (it == object.end())
    return std::nullopt;
  if (it->is_number_unsigned())
    return it->get<std::uint64_t>();
  if (!it->is_string())
    return std::nullopt;
  std::string_view text = it->get_ref<const std::string &>();
  if (text.starts_with("0x"))
    text.remove_prefix(2);
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  return error == std::errc() && end == text.data() + text.size() ? std::optional(value) : std::nullopt;
}

std::optional<int> error_of(std::string_view name) {
  if (name == "allow")
    return 0;
  if (name == "EPERM")
    return EPERM;
  if (name == "EACCES")
    return EACCES;
  return std::nullopt;
}

[[noreturn]] void become_tool(int socket, const std::vector<char *> &arguments, const Identity &identity) {
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::setsid();
  if (socket != tool_descriptor)
    ::dup2(socket, tool_descriptor);
  ::fcntl(tool_descriptor, F_SETFD, 0);
  ::syscall(SYS_close_range, tool_descriptor + 1U, ~0U, 0U);
  if (const int nothing = ::open("/dev/null", O_RDWR); nothing >= 0) {
    ::dup2(nothing, STDIN_FILENO);
    ::dup2(nothing, STDOUT_FILENO); // what it prints would be taken for a record of ours
    if (nothing > STDERR_FILENO)
      ::close(nothing);
  }
  constexpr int cannot_start = 127;
  static constexpr std::array<char *, 1> environment{nullptr};
  if (confine(identity) == 0)
    ::execve(arguments.front(), arguments.data(), environment.data());
  ::_exit(cannot_start);
}

} // namespace

Result<std::unique_ptr<ToolProcess>> ToolProcess::start(ToolOptions options) {
  if (options.command.empty() || !options.command.front().starts_with('/'))
    return fail(ErrorCode::usage, "a security tool is named by its full path");
  std::unique_ptr<ToolProcess> tool(new ToolProcess(std::move(options)));
  TRY(tool->spawn());
  return tool;
}

ToolProcess::~ToolProcess() { end({}); }

Result<void> ToolProcess::spawn() {
  next_start_ = Clock::now() + start_pause;
  const passwd *user = ::getpwnam(options_.user.c_str());
  if (user == nullptr)
    return fail(ErrorCode::usage, fmt::format("there is no user {} for the security tool", options_.user));
  if (user->pw_uid == 0)
    return fail(ErrorCode::usage, "the security tool must not run as root");
  const Identity identity{user->pw_uid, user->pw_gid};
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
    return fail_errno("cannot make a socket", errno);
  UniqueFd ours(ends[0]), theirs(ends[1]);
  std::vector<char *> arguments;
  for (std::string &word : options_.command)
    arguments.push_back(word.data());
  arguments.push_back(nullptr);
  const pid_t child = ::fork();
  if (child < 0)
    return fail_errno("cannot start a process", errno);
  if (child == 0)
    become_tool(theirs.get(), arguments, identity);
  pid_ = child;
  socket_ = std::move(ours);
  theirs.reset();
  ++counts_.starts;
  std::string text;
  // It speaks first, so that a program that is no tool is found out.
  const auto heard = receive(text, Clock::now() + start_limit);
  const auto hello = heard == Heard::message ? parse(text) : std::nullopt;
  if (!hello || text_in(*hello, "type") != "ready") {
    end({});
    return fail(
        ErrorCode::protocol,
        fmt::format("{} could not be started as a security tool: it did not say that it is ready (user {}, with "
                    "no rights; it must be executable for that user)",
                    options_.command.front(), options_.user));
  }
  return greet();
}

Result<void> ToolProcess::greet() {
  if (access_.memory == nullptr || !socket_)
    return {};
  json document{{"type", "guest"}, {"version", 1}, {"vm", {{"name", vm_.name}, {"uuid", vm_.uuid}, {"pid", vm_.pid}}}};
  json ranges = json::array();
  std::vector<int> descriptors;
  for (const SharedRange &range : access_.memory->shared_ranges()) {
    auto known = std::ranges::find(descriptors, range.descriptor);
    if (known == descriptors.end()) {
      if (descriptors.size() == most_descriptors)
        break;
      descriptors.push_back(range.descriptor);
      known = descriptors.end() - 1;
    }
    ranges.push_back({{"base", fmt::format("{:#x}", range.base.value)},
                      {"size", range.size},
                      {"descriptor", known - descriptors.begin()},
                      {"offset", range.offset}});
  }
  document["memory"] = std::move(ranges);
  if (!send(dump(document), descriptors))
    return fail(ErrorCode::io, "the security tool cannot be talked to");
  return {};
}

void ToolProcess::attach(ToolAccess access, const RecordVm &vm) {
  access_ = access;
  vm_ = vm;
  if (!greet())
    end("it cannot be talked to");
}

void ToolProcess::end(std::string why) {
  socket_.reset();
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    while (::waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
    }
    pid_ = -1;
  }
  if (!why.empty())
    news_.push_back(fmt::format("the security tool was ended, and is started again: {}", why));
}

std::vector<std::string> ToolProcess::take_news() { return std::exchange(news_, {}); }

bool ToolProcess::send(const std::string &text, const std::vector<int> &descriptors) {
  iovec part{const_cast<char *>(text.data()), text.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * most_descriptors)> control{};
  if (!descriptors.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(sizeof(int) * descriptors.size());
    cmsghdr *const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * descriptors.size());
    std::memcpy(CMSG_DATA(header), descriptors.data(), sizeof(int) * descriptors.size());
  }
  // A tool that does not read must not hold the guest: its socket's buffer takes hundreds of messages.
  return ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT) == static_cast<ssize_t>(text.size());
}

ToolProcess::Heard ToolProcess::receive(std::string &text, Clock::time_point deadline) {
  text.resize(longest_message);
  while (true) {
    // Descriptors that it sends are not taken: there is no room for them.
    const auto count = ::recv(socket_.get(), text.data(), text.size(), MSG_DONTWAIT | MSG_TRUNC);
    if (count > 0 && static_cast<std::size_t>(count) <= text.size()) {
      text.resize(static_cast<std::size_t>(count));
      return Heard::message;
    }
    if (count >= 0 || (errno != EAGAIN && errno != EINTR))
      return Heard::gone;
    const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(deadline - Clock::now()).count();
    if (left <= 0)
      return Heard::nothing;
    const timespec limit{left / 1'000'000'000, left % 1'000'000'000};
    pollfd source{socket_.get(), POLLIN, 0};
    ::ppoll(&source, 1, &limit, nullptr);
  }
}

bool ToolProcess::serve(const std::string &text) {
  const auto question = parse(text);
  if (!question || access_.system == nullptr)
    return false;
  const std::string type = text_in(*question, "type");
  json answer{{"type", type}, {"id", question->value("id", json())}};
  if (type == "symbol") {
    const auto symbol = access_.system->find_symbol(text_in(*question, "name"));
    answer["address"] = symbol ? json(fmt::format("{:#x}", symbol->address.value)) : json();
  } else if (type == "read") {
    const auto address = number_in(*question, "address"), size = number_in(*question, "size");
    if (!address || !size)
      return false;
    std::vector<std::byte> bytes(std::min<std::uint64_t>(*size, longest_read));
    std::size_t got = 0;
    if (text_in(*question, "space") == "physical")
      got = access_.memory->read(Gpa{*address}, bytes) ? bytes.size() : 0;
    else
      got = access_.system->read_kernel(Gva{*address}, bytes);
    answer["bytes"] = hex(std::span(bytes).first(got));
  } else {
    return false;
  }
  return send(dump(answer));
}

gate::Verdict ToolProcess::decide(const gate::HookEntry &hook, const Record &record) {
  const auto by_default = [&](std::string_view why) {
    return gate::Verdict{options_.default_verdict, fmt::format("default: {}", why)};
  };
  if (!socket_) {
    if (Clock::now() < next_start_)
      return by_default("the security tool is not there");
    if (const auto started = spawn(); !started) {
      news_.push_back(started.error().describe());
      return by_default("the security tool is not there");
    }
  }
  ++counts_.asked;
  const auto deadline = Clock::now() + options_.limit;
  const std::uint64_t id = next_id_++;
  if (!send(fmt::format(R"({{"type":"event","id":{},"hook":"{}","may_deny":{},"record":{}}})", id, hook.name,
                        hook.may_deny, options_.to_json(record)))) {
    end("it does not read what it is told");
    return by_default("the security tool does not read");
  }
  std::string text;
  for (int i = 0; i < most_questions; ++i) {
    const Heard heard = receive(text, deadline);
    if (heard == Heard::gone) {
      end("it ended");
      return by_default("the security tool ended");
    }
    if (heard == Heard::nothing)
      break;
    const auto message = parse(text);
    if (!message) {
      end("it sent what is not understood");
      return by_default("the security tool talks nonsense");
    }
    if (text_in(*message, "type") != "verdict") {
      if (!serve(text)) {
        end("it asked what is not understood");
        return by_default("the security tool talks nonsense");
      }
      continue;
    }
    if (number_in(*message, "id") != id) // of an earlier event, which was decided without it
      continue;
    const auto verdict = error_of(text_in(*message, "verdict"));
    if (!verdict) {
      end("it gave a verdict that there is not");
      return by_default("the security tool talks nonsense");
    }
    std::string reason = text_in(*message, "reason");
    constexpr std::size_t longest_reason = 256;
    reason.resize(std::min(reason.size(), longest_reason));
    return {*verdict, *verdict == 0 && reason.empty()
                          ? std::string()
                          : fmt::format("the security tool{}{}", reason.empty() ? "" : ": ", reason)};
  }
  ++counts_.late;
  end(fmt::format("it gave no verdict within {} ms", options_.limit.count()));
  return by_default("the security tool did not answer in time");
}

} // namespace lararium::policy
