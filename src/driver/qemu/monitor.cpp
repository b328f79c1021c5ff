#include "lararium/driver/qemu/monitor.h"

#include "connection.h"
#include "lararium/base/subprocess.h"
#include "lararium/base/unique_fd.h"
#include "lararium/driver/qemu/process.h"

#include <algorithm>
#include <arpa/inet.h>
#include <array>
#include <cerrno>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <nlohmann/json.hpp>
#include <poll.h>
#include <sys/socket.h>

namespace lararium::qemu {
namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::json;

constexpr std::size_t max_json_depth = 64;
constexpr std::size_t max_json_parts = 500'000;
constexpr std::size_t max_bytes_per_command = 4 * max_message; // events may come between; a storm of them must end
constexpr std::string_view prompt = "(qemu) ";

std::string to_text(const json &value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

// nlohmann's parser takes any depth, and its values take far more memory than their text. Neither is left to whoever
// is on the other end.
bool within_bounds(std::string_view text) {
  std::size_t depth = 0, parts = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); i++) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\')
        i++;
      else if (c == '"')
        in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > max_json_depth || ++parts > max_json_parts)
        return false;
    } else if (c == '}' || c == ']') {
      if (depth-- == 0)
        return false;
    } else if (c == ',' && ++parts > max_json_parts) {
      return false;
    }
  }
  return true;
}

// How many clients a socket serves, and how many wait to be served. Nothing where that cannot be told.
struct Clients {
  std::size_t served = 0, waiting = 0;
};
std::optional<Clients> clients_of(const MonitorRoute &route) {
  // A relative path may be that of any other QEMU's socket as well.
  if (route.kind == MonitorRoute::Kind::virsh || route.transport == MonitorRoute::Transport::tcp ||
      !(route.bound.starts_with('/') || route.bound.starts_with('@')))
    return std::nullopt;
  const auto text = read_small_file(fmt::format("/proc/{}/net/unix", route.pid), 64 << 20);
  if (!text)
    return std::nullopt;
  Clients clients;
  for (const auto &socket : parse_unix_sockets(*text))
    if (socket.path == route.bound) {
      clients.served += socket.connected ? 1 : 0;
      clients.waiting += socket.waiting ? 1 : 0;
    }
  return clients;
}

// Nobody is served, or that cannot be told.
bool is_free(const MonitorRoute &route) {
  const auto clients = clients_of(route);
  return !clients || clients->served == 0;
}

Result<UniqueFd> connect_tcp(const MonitorRoute &route, Clock::time_point deadline) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(route.port);
  const std::string host = route.path.empty() || route.path == "localhost" || route.path == "0.0.0.0" ||
                                   route.path == "::" || route.path == "::1"
                               ? "127.0.0.1"
                               : route.path;
  if (::inet_pton(AF_INET, host.c_str(), &address.sin_addr) != 1 || !host.starts_with("127."))
    return fail(ErrorCode::unsupported,
                fmt::format("{}: only monitors on this host's loopback are used", route.describe()));
  UniqueFd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket)
    return fail_errno("cannot create a socket", errno);
  const int on = 1;
  ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr *>(&address), sizeof address) != 0) {
    if (errno != EINPROGRESS)
      return fail_errno(route.describe(), errno);
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd poll_on{socket.get(), POLLOUT, 0};
    int error = ETIMEDOUT;
    socklen_t length = sizeof error;
    if (::poll(&poll_on, 1, static_cast<int>(std::max<std::int64_t>(left, 0))) > 0)
      ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &length);
    if (error != 0)
      return fail_errno(route.describe(), error);
  }
  return socket;
}

Result<Connection> connect(const MonitorRoute &route, Clock::time_point deadline) {
  TRY_ASSIGN(UniqueFd socket, route.transport == MonitorRoute::Transport::tcp
                                  ? connect_tcp(route, deadline)
                                  : connect_unix(route.path, route.transport == MonitorRoute::Transport::unix_abstract,
                                                 route.describe()));
  return Connection(std::move(socket), route.transport == MonitorRoute::Transport::tcp, "the monitor");
}

// Receives the first bytes of a monitor's greeting. Nothing may be sent before it: what is sent to a monitor that
// another client holds is carried out when that client leaves, long after we gave up.
Result<std::string> receive_greeting(Connection &connection, const MonitorRoute &route, MonitorTimeouts timeouts) {
  const auto begin = Clock::now();
  auto bytes = connection.receive(begin + timeouts.greeting);
  if (!bytes && bytes.error().code == ErrorCode::timeout) {
    // Either another client holds the monitor, or QEMU is busy and late. QEMU accepts one client at a time: while we
    // wait in the queue, who is served is another. Where it cannot be told, silence is taken for it.
    const auto clients = clients_of(route);
    if (!clients || (clients->served != 0 && clients->waiting != 0))
      return fail(ErrorCode::timeout, fmt::format("{} is in use by another client", route.describe()));
    bytes = connection.receive(begin + timeouts.command);
  }
  if (!bytes)
    return wrap(std::move(bytes).error(), route.describe());
  return std::string(*bytes);
}

class QmpMonitor final : public Monitor {
public:
  static Result<std::unique_ptr<Monitor>> open(const MonitorRoute &route, MonitorTimeouts timeouts) {
    const auto deadline = Clock::now() + timeouts.command;
    TRY_ASSIGN(auto connection, connect(route, deadline));
    TRY_ASSIGN(const auto first, receive_greeting(connection, route, timeouts));
    std::unique_ptr<QmpMonitor> monitor(new QmpMonitor(std::move(connection), timeouts, route.describe()));
    if (!monitor->splitter_.add(first))
      return fail(ErrorCode::protocol, fmt::format("{} does not speak QMP", route.describe()));
    TRY_ASSIGN(const auto greeting, monitor->next_message(deadline));
    if (greeting.kind != QmpMessage::Kind::greeting)
      return fail(ErrorCode::protocol, fmt::format("{} does not speak QMP", route.describe()));
    monitor->version_ = greeting.version;
    TRY(monitor->qmp("qmp_capabilities"));
    return monitor;
  }

  Result<std::string> hmp(std::string_view command) override {
    const json arguments = {{"command-line", command}};
    TRY_ASSIGN(auto answer, execute("human-monitor-command", to_text(arguments)));
    std::erase(answer.plain, '\r');
    return std::move(answer.plain);
  }

  Result<std::string> qmp(std::string_view command, std::string_view arguments) override {
    TRY_ASSIGN(auto answer, execute(command, arguments));
    return std::move(answer.text);
  }
  using Monitor::qmp;

  bool speaks_qmp() const override { return true; }
  std::string version() const override { return version_; }
  std::vector<std::string> take_events() override {
    std::vector<std::string> events(std::make_move_iterator(events_.begin()), std::make_move_iterator(events_.end()));
    events_.clear();
    return events;
  }

  Result<bool> wait_for_events(std::chrono::milliseconds limit) override {
    if (broken_)
      return fail(ErrorCode::protocol, fmt::format("{} answered wrongly before", name_));
    received_ = 0;
    for (const auto deadline = Clock::now() + limit; events_.empty();) {
      // What is no event here answers nothing that was asked.
      const auto message = next_message(deadline, true);
      if (!message && message.error().code == ErrorCode::timeout)
        return false;
      if (!message) {
        broken_ = true;
        return wrap(Error(message.error()), name_);
      }
    }
    return true;
  }

private:
  QmpMonitor(Connection connection, MonitorTimeouts timeouts, std::string name)
      : connection_(std::move(connection)), timeouts_(timeouts), name_(std::move(name)) {}

  Result<QmpMessage> execute(std::string_view command, std::string_view arguments) {
    if (broken_)
      return fail(ErrorCode::protocol, fmt::format("{} answered wrongly before", name_));
    auto answer = exchange(command, arguments);
    if (!answer)
      return wrap(std::move(answer).error(), name_);
    if (answer->kind == QmpMessage::Kind::error)
      return fail(ErrorCode::protocol, fmt::format("QEMU refuses {}: {}", command, answer->text));
    return answer;
  }

  Result<QmpMessage> exchange(std::string_view command, std::string_view arguments) {
    const auto deadline = Clock::now() + timeouts_.command;
    const auto id = ++last_id_;
    broken_ = true; // until the answer has come
    received_ = 0;
    TRY(connection_.send(fmt::format("{{\"execute\":{},\"id\":{}{}{}}}\n", to_text(json(command)), id,
                                     arguments.empty() ? "" : ",\"arguments\":", arguments),
                         deadline));
    while (true) {
      TRY_ASSIGN(auto message, next_message(deadline));
      const bool answers = message.kind == QmpMessage::Kind::answer || message.kind == QmpMessage::Kind::error;
      // An error in what could not be parsed carries no id.
      if (answers && (message.id == id || (message.id == 0 && message.kind == QmpMessage::Kind::error))) {
        broken_ = false;
        return message;
      }
    }
  }

  // Events are kept; with `or_event` one ends the wait, too.
  Result<QmpMessage> next_message(Clock::time_point deadline, bool or_event = false) {
    while (true) {
      if (const auto line = splitter_.next()) {
        TRY_ASSIGN(auto message, parse_qmp_message(*line));
        if (message.kind != QmpMessage::Kind::event)
          return message;
        if (events_.size() == max_kept_events)
          events_.pop_front();
        events_.push_back(*line);
        if (or_event)
          return message;
        continue;
      }
      TRY_ASSIGN(const auto bytes, connection_.receive(deadline));
      received_ += bytes.size();
      if (received_ > max_bytes_per_command || !splitter_.add(bytes))
        return fail(ErrorCode::protocol, "the monitor's answer is too long");
      // The deadline also ends a stream that never pauses.
      if (Clock::now() > deadline)
        return fail(ErrorCode::timeout, "the monitor does not come to its answer");
    }
  }

  Connection connection_;
  MonitorTimeouts timeouts_;
  std::string name_;
  MessageSplitter splitter_;
  std::deque<std::string> events_;
  std::string version_;
  std::uint64_t last_id_ = 0;
  std::size_t received_ = 0;
  bool broken_ = false;
};

class HmpMonitor final : public Monitor {
public:
  static Result<std::unique_ptr<Monitor>> open(const MonitorRoute &route, MonitorTimeouts timeouts) {
    const auto deadline = Clock::now() + timeouts.command;
    TRY_ASSIGN(auto connection, connect(route, deadline));
    TRY_ASSIGN(const auto first, receive_greeting(connection, route, timeouts));
    std::unique_ptr<HmpMonitor> monitor(new HmpMonitor(std::move(connection), timeouts, route.describe()));
    TRY_ASSIGN(const auto banner, monitor->receive_answer(first, deadline));
    // "QEMU 7.2.22 monitor - type 'help' for more information", the first line; hmp_answer() took it for an echo.
    constexpr std::string_view name = "QEMU ";
    if (!first.starts_with(name))
      return fail(ErrorCode::protocol, fmt::format("{} is no human monitor", route.describe()));
    monitor->version_ = first.substr(name.size(), first.find(' ', name.size()) - name.size());
    return monitor;
  }

  Result<std::string> hmp(std::string_view command) override {
    if (command.find_first_of("\r\n") != std::string_view::npos)
      return fail(ErrorCode::usage, "a monitor command is one line");
    if (broken_)
      return fail(ErrorCode::protocol, fmt::format("{} answered wrongly before", name_));
    const auto deadline = Clock::now() + timeouts_.command;
    broken_ = true;
    TRY(connection_.send(fmt::format("{}\n", command), deadline));
    auto answer = receive_answer({}, deadline);
    if (!answer)
      return wrap(std::move(answer).error(), name_);
    broken_ = false;
    if (answer->starts_with("unknown command: "))
      return fail(ErrorCode::protocol, fmt::format("QEMU refuses {}: unknown command", command));
    return answer;
  }

  Result<std::string> qmp(std::string_view command, std::string_view) override {
    return fail(ErrorCode::unsupported, fmt::format("{} needs QMP; there is only a human monitor", command));
  }
  using Monitor::qmp;

  bool speaks_qmp() const override { return false; }
  std::string version() const override { return version_; }

private:
  HmpMonitor(Connection connection, MonitorTimeouts timeouts, std::string name)
      : connection_(std::move(connection)), timeouts_(timeouts), name_(std::move(name)) {}

  Result<std::string> receive_answer(std::string raw, Clock::time_point deadline) {
    while (true) {
      if (auto answer = hmp_answer(raw))
        return std::move(*answer);
      TRY_ASSIGN(const auto bytes, connection_.receive(deadline));
      raw += bytes;
      if (raw.size() > max_message)
        return fail(ErrorCode::protocol, "the monitor's answer is too long");
      if (Clock::now() > deadline)
        return fail(ErrorCode::timeout, "the monitor does not come to its answer");
    }
  }

  Connection connection_;
  MonitorTimeouts timeouts_;
  std::string name_;
  std::string version_;
  bool broken_ = false;
};

// libvirt holds its domains' monitors for good, but passes commands on.
class VirshMonitor final : public Monitor {
public:
  static Result<std::unique_ptr<Monitor>> open(const MonitorRoute &route, MonitorTimeouts timeouts) {
    std::unique_ptr<VirshMonitor> monitor(new VirshMonitor(route, timeouts));
    TRY_ASSIGN(const auto answer, monitor->qmp("query-version"));
    const auto version = json::parse(answer, nullptr, false);
    if (version.is_object() && version.contains("qemu") && version["qemu"].is_object()) {
      const auto part = [&](const char *key) { return version["qemu"].value(key, json()).dump(); };
      monitor->version_ = fmt::format("{}.{}.{}", part("major"), part("minor"), part("micro"));
    }
    return monitor;
  }

  Result<std::string> hmp(std::string_view command) override {
    const json arguments = {{"command-line", command}};
    TRY_ASSIGN(auto answer, execute("human-monitor-command", to_text(arguments)));
    std::erase(answer.plain, '\r');
    return std::move(answer.plain);
  }
  Result<std::string> qmp(std::string_view command, std::string_view arguments) override {
    TRY_ASSIGN(auto answer, execute(command, arguments));
    return std::move(answer.text);
  }
  using Monitor::qmp;
  bool speaks_qmp() const override { return true; }
  std::string version() const override { return version_; }

private:
  VirshMonitor(MonitorRoute route, MonitorTimeouts timeouts) : route_(std::move(route)), timeouts_(timeouts) {}

  Result<QmpMessage> execute(std::string_view command, std::string_view arguments) {
    const auto request = fmt::format("{{\"execute\":{}{}{}}}", to_text(json(command)),
                                     arguments.empty() ? "" : ",\"arguments\":", arguments);
    TRY_ASSIGN(const auto output, run_subprocess({"virsh", "-q", "-c", route_.connection, "qemu-monitor-command",
                                                  "--domain", route_.path, "--cmd", request},
                                                 {timeouts_.command, max_message}));
    if (output.status != 0)
      return fail(ErrorCode::protocol, fmt::format("virsh refuses {}: {}", command, output.errors.substr(0, 300)));
    TRY_ASSIGN(auto message, parse_qmp_message(output.text));
    if (message.kind == QmpMessage::Kind::error)
      return fail(ErrorCode::protocol, fmt::format("QEMU refuses {}: {}", command, message.text));
    if (message.kind != QmpMessage::Kind::answer)
      return fail(ErrorCode::protocol, "virsh answers something else than QMP");
    return message;
  }

  MonitorRoute route_;
  MonitorTimeouts timeouts_;
  std::string version_;
};

} // namespace

std::string MonitorRoute::describe() const {
  if (kind == Kind::virsh)
    return fmt::format("libvirt's monitor of {}", path);
  const std::string_view name = kind == Kind::qmp ? "QMP" : "human monitor";
  if (transport == Transport::tcp)
    return fmt::format("{} at {}:{}", name, path, port);
  return fmt::format("{} socket {}{}", name, transport == Transport::unix_abstract ? "@" : "",
                     bound.empty() ? path : bound);
}

namespace {

std::unexpected<Error> in_use(const MonitorRoute &route) {
  return fail(ErrorCode::timeout, fmt::format("{} is in use by another client", route.describe()));
}

Result<std::unique_ptr<Monitor>> open_free_monitor(const MonitorRoute &route, MonitorTimeouts timeouts) {
  switch (route.kind) {
  case MonitorRoute::Kind::qmp: return QmpMonitor::open(route, timeouts);
  case MonitorRoute::Kind::hmp: return HmpMonitor::open(route, timeouts);
  case MonitorRoute::Kind::virsh: return VirshMonitor::open(route, timeouts);
  }
  return fail(ErrorCode::usage, "an unknown kind of monitor");
}

} // namespace

Result<bool> Monitor::wait_for_events(std::chrono::milliseconds /*limit*/) {
  return fail(ErrorCode::unsupported, "a human monitor tells of no events");
}

Result<std::unique_ptr<Monitor>> open_monitor(const MonitorRoute &route, MonitorTimeouts timeouts) {
  return MonitorAccess({route}, timeouts).open();
}

Result<std::unique_ptr<Monitor>> MonitorAccess::open() const {
  if (routes_.empty())
    return fail(ErrorCode::unsupported, "the VM has no monitor that can be reached");
  // Who waits in a monitor's queue is in the way of others even after having left it, and there is place for one or
  // two: so nobody queues behind a client that stays. A client that just left (ourselves, a moment ago) is seen until
  // QEMU's main loop comes to it; the best way is given a little time for that before the next one is taken.
  constexpr std::chrono::milliseconds patience_with_the_best{10};
  const auto begin = Clock::now();
  std::vector<const MonitorRoute *> left;
  for (const auto &route : routes_)
    left.push_back(&route);
  // The first error of all is the one to tell: it is about the way that should have worked.
  std::optional<Error> first_error;
  while (!left.empty()) {
    const auto considered = Clock::now() - begin < patience_with_the_best ? left.begin() + 1 : left.end();
    const auto choice =
        std::find_if(left.begin(), considered, [](const MonitorRoute *route) { return is_free(*route); });
    if (choice != considered) {
      auto monitor = open_free_monitor(**choice, timeouts_);
      if (monitor)
        return monitor;
      if (!first_error)
        first_error = std::move(monitor).error();
      left.erase(choice);
    } else if (Clock::now() - begin >= timeouts_.greeting) {
      return first_error ? std::unexpected(std::move(*first_error)) : in_use(*left.front());
    } else {
      ::poll(nullptr, 0, 1);
    }
  }
  return std::unexpected(std::move(*first_error));
}

bool MessageSplitter::add(std::string_view bytes) {
  if (start_ > 0 && start_ == buffer_.size()) {
    buffer_.clear();
    start_ = scanned_ = 0;
  } else if (start_ > max_message) {
    buffer_.erase(0, start_);
    scanned_ -= start_;
    start_ = 0;
  }
  if (buffer_.size() - start_ + bytes.size() > max_message)
    return false;
  buffer_ += bytes;
  return true;
}

std::optional<std::string> MessageSplitter::next() {
  while (true) {
    const auto end = buffer_.find('\n', scanned_);
    if (end == std::string::npos) {
      scanned_ = buffer_.size();
      return std::nullopt;
    }
    auto line = std::string_view(buffer_).substr(start_, end - start_);
    start_ = scanned_ = end + 1;
    if (line.find_first_not_of(" \t\r") != std::string_view::npos)
      return std::string(line);
  }
}

Result<QmpMessage> parse_qmp_message(std::string_view text) {
  if (!within_bounds(text))
    return fail(ErrorCode::corrupt, "the monitor's message is nested too deep or too large");
  const auto message = json::parse(text, nullptr, false);
  if (!message.is_object())
    return fail(ErrorCode::corrupt, "the monitor's message is no JSON object");
  QmpMessage result;
  if (const auto id = message.find("id"); id != message.end() && id->is_number_unsigned())
    result.id = id->get<std::uint64_t>();
  if (const auto value = message.find("return"); value != message.end()) {
    result.kind = QmpMessage::Kind::answer;
    if (value->is_string())
      result.plain = value->get<std::string>();
    else
      result.text = to_text(*value);
  } else if (const auto error = message.find("error"); error != message.end()) {
    result.kind = QmpMessage::Kind::error;
    const auto sentence = error->is_object() ? error->find("desc") : error->end();
    result.text = error->is_object() && sentence != error->end() && sentence->is_string() ? sentence->get<std::string>()
                                                                                          : "no reason given";
  } else if (const auto event = message.find("event"); event != message.end() && event->is_string()) {
    result.kind = QmpMessage::Kind::event;
    result.text = event->get<std::string>();
  } else if (const auto greeting = message.find("QMP"); greeting != message.end()) {
    result.kind = QmpMessage::Kind::greeting;
    const auto number = [&](const char *path) -> std::uint64_t {
      const json::json_pointer pointer(path);
      if (!greeting->contains(pointer))
        return 0;
      const auto &part = (*greeting)[pointer];
      return part.is_number_unsigned() ? part.get<std::uint64_t>() : 0;
    };
    result.version = fmt::format("{}.{}.{}", number("/version/qemu/major"), number("/version/qemu/minor"),
                                 number("/version/qemu/micro"));
  }
  return result;
}

std::optional<std::string> hmp_answer(std::string_view raw) {
  if (!raw.ends_with(prompt))
    return std::nullopt;
  raw.remove_suffix(prompt.size());
  if (!raw.empty() && !raw.ends_with('\n'))
    return std::nullopt; // the prompt's text, but inside a line
  const auto echo = raw.find('\n');
  if (echo == std::string_view::npos)
    return std::nullopt; // the prompt itself, drawn again
  std::string answer(raw.substr(echo + 1));
  std::erase(answer, '\r');
  return answer;
}

} // namespace lararium::qemu
