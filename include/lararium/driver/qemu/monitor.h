// Talking to a QEMU: QMP, the human monitor's socket, and libvirt's way to the monitor that it holds.
//
// A monitor's socket serves one client at a time; the next one waits in the queue and hears nothing. A connection is
// therefore kept no longer than one operation, so that the operator's own tools get their turn, and a monitor that
// another client holds is recognised and left alone.
#pragma once

#include "lararium/base/result.h"
#include "lararium/driver/qemu/command_line.h"

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <sys/types.h>
#include <utility>
#include <vector>

namespace lararium::qemu {

inline constexpr std::size_t max_message = 16 << 20; // bytes of one answer
inline constexpr std::size_t max_kept_events = 256;

struct MonitorTimeouts {
  // How long another client may keep the monitor before it counts as in use. A monitor that is free greets at once.
  std::chrono::milliseconds greeting{300};
  std::chrono::milliseconds command{5000};
};

// A way to a monitor, as it can be used from here.
struct MonitorRoute {
  enum class Kind : std::uint8_t { qmp, hmp, virsh };
  enum class Transport : std::uint8_t { unix_path, unix_abstract, tcp };
  Kind kind = Kind::qmp;
  Transport transport = Transport::unix_path;
  std::string path;  // as seen from here (/proc/PID/root/...); for tcp the address; for virsh the domain
  std::string bound; // the path as the kernel lists it in /proc/PID/net/unix
  std::uint16_t port = 0;
  pid_t pid = 0;          // of the QEMU
  std::string connection; // virsh: libvirt's URI

  [[nodiscard]] std::string describe() const; // "QMP socket /run/vm.qmp"
};

// One conversation with a QEMU. Commands are answered in order; each has its own limit of time. After a timeout or a
// protocol error a monitor answers nothing more.
class Monitor {
public:
  virtual ~Monitor() = default;
  // A command of the human monitor and what it prints, with LF line ends.
  [[nodiscard]] virtual Result<std::string> hmp(std::string_view command) = 0;
  // A command of QMP, its arguments as a JSON object or empty; what it returns as JSON text. `unsupported` where there
  // is only a human monitor. An error of QEMU's is `protocol` with QEMU's own sentence.
  [[nodiscard]] virtual Result<std::string> qmp(std::string_view command, std::string_view arguments) = 0;
  [[nodiscard]] Result<std::string> qmp(std::string_view command) { return qmp(command, {}); }
  [[nodiscard]] virtual bool speaks_qmp() const = 0;
  // "7.2.22"; empty where it is not told.
  [[nodiscard]] virtual std::string version() const = 0;
  // Events that came between answers, as JSON text, oldest first; at most max_kept_events are kept.
  [[nodiscard]] virtual std::vector<std::string> take_events() { return {}; }
  // Waits until there are events, or the time is over; whether there are. `unsupported`: a human monitor has none.
  [[nodiscard]] virtual Result<bool> wait_for_events(std::chrono::milliseconds limit);
};

// Connects and shakes hands. `timeout` when the monitor is held by another client: the message then says so.
[[nodiscard]] Result<std::unique_ptr<Monitor>> open_monitor(const MonitorRoute &route, MonitorTimeouts timeouts = {});

// The ways to one VM's monitors, best first. open() takes the first that is free and answers.
class MonitorAccess {
public:
  explicit MonitorAccess(std::vector<MonitorRoute> routes, MonitorTimeouts timeouts = {})
      : routes_(std::move(routes)), timeouts_(timeouts) {}
  [[nodiscard]] Result<std::unique_ptr<Monitor>> open() const;
  [[nodiscard]] bool empty() const { return routes_.empty(); }
  [[nodiscard]] const std::vector<MonitorRoute> &routes() const { return routes_; }

private:
  std::vector<MonitorRoute> routes_;
  MonitorTimeouts timeouts_;
};

// Pure parts, open for tests and fuzzers.

// Cuts a stream of QMP into messages: JSON objects, each on a line.
class MessageSplitter {
public:
  // Takes bytes; false when a message is longer than max_message, after which nothing more is taken.
  [[nodiscard]] bool add(std::string_view bytes);
  // The next whole line that is not blank; nothing until it has arrived.
  [[nodiscard]] std::optional<std::string> next();

private:
  std::string buffer_;
  std::size_t start_ = 0;   // of the first message not yet handed out
  std::size_t scanned_ = 0; // up to here there is no line end
};

// What a message of QMP is.
struct QmpMessage {
  enum class Kind : std::uint8_t { greeting, answer, error, event, other };
  Kind kind = Kind::other;
  std::uint64_t id = 0; // of an answer or error; 0 where it has none
  std::string text;     // what was returned as JSON text; the sentence of an error; the name of an event
  std::string plain;    // what was returned, when it is a string
  std::string version;  // of a greeting
};
// `corrupt` when it is no JSON object, or nested deeper or made of more parts than any answer of QEMU's.
[[nodiscard]] Result<QmpMessage> parse_qmp_message(std::string_view text);

// What the human monitor's socket printed, freed of the echo of the command (all up to the first line end, which
// readline draws with escape sequences), of carriage returns and of the prompt at the end. Nothing while the prompt has
// not come.
[[nodiscard]] std::optional<std::string> hmp_answer(std::string_view raw);

} // namespace lararium::qemu
