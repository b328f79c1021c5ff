#include "gdb_stub.h"

#include "lararium/driver/qemu/monitor_text.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <fmt/format.h>
#include <numeric>
#include <poll.h>
#include <random>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

namespace lararium::qemu {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr auto answer_limit = 5s;
constexpr std::size_t bytes_per_write = 1024; // QEMU's buffer takes packets of 4096 characters
constexpr std::size_t most_vcpus = 1 << 13;
constexpr unsigned rax_number = 0, rsp_number = 7, rip_number = 16;

// The folder in which QEMU opens its end, as QEMU names it and as we do: it may see another root than we, and may run
// as a user who can write nowhere. Gone as soon as we are connected.
class MeetingPlace {
public:
  [[nodiscard]] static Result<MeetingPlace> make(const Process &process) {
    struct stat status{};
    if (::stat(process.path("").c_str(), &status) != 0)
      return process.explain(fail_errno("cannot look at the VM's process", errno).error());
    std::random_device random;
    MeetingPlace place;
    place.theirs_ = fmt::format("/run/lararium-{:08x}{:08x}", random(), random());
    place.ours_ = process.path("root") + place.theirs_;
    if (::mkdir(place.ours_.c_str(), 0700) != 0)
      return fail_errno(fmt::format("cannot make {} for QEMU's gdb stub", place.ours_), errno);
    if (::chown(place.ours_.c_str(), status.st_uid, status.st_gid) != 0)
      return fail_errno(fmt::format("cannot give {} to the VM's user", place.ours_), errno);
    return place;
  }
  MeetingPlace(MeetingPlace &&other) noexcept
      : theirs_(std::move(other.theirs_)), ours_(std::exchange(other.ours_, {})) {}
  MeetingPlace &operator=(MeetingPlace &&) = delete;
  MeetingPlace(const MeetingPlace &) = delete;
  MeetingPlace &operator=(const MeetingPlace &) = delete;
  ~MeetingPlace() { remove(ours_); }

  [[nodiscard]] std::string their_socket() const { return theirs_ + "/gdb"; }
  [[nodiscard]] std::string our_socket() const { return ours_ + "/gdb"; }
  [[nodiscard]] const std::string &our_folder() const { return ours_; }
  static void remove(const std::string &folder) {
    if (folder.empty())
      return;
    ::unlink((folder + "/gdb").c_str());
    ::rmdir(folder.c_str());
  }

private:
  MeetingPlace() = default;
  std::string theirs_, ours_;
};

void write_all(int socket, std::string_view text) {
  while (!text.empty()) {
    const auto count = ::send(socket, text.data(), text.size(), MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR)
      continue;
    if (count <= 0)
      return;
    text.remove_prefix(static_cast<std::size_t>(count));
  }
}

// Whatever the conversation stopped at: a guest that runs is stopped by the first byte, a packet that was cut ends at
// '#', an answer that waits for its acknowledgement gets it. Then the guest goes on. Not by "D", which ends a QEMU that
// was sent one already (7.2 and 10.0: gdb_get_cpu_pid() of no CPU).
void let_go(int socket, bool was_running, const std::vector<Gva> &breakpoints) {
  write_all(socket, "\x03");
  ::usleep(20'000);
  write_all(socket, "+#00");
  for (const Gva address : breakpoints)
    write_all(socket, gdb_packet(fmt::format("z1,{:x},1", address.value)));
  if (was_running)
    write_all(socket, gdb_packet("c"));
  ::usleep(20'000);
}

void close_stub(Session &session) {
  constexpr int tries = 20; // somebody may talk to that monitor
  for (int i = 0; i < tries; ++i) {
    if (const auto monitor = session.open_monitor(); monitor && (*monitor)->hmp("gdbserver none"))
      return;
    ::usleep(50'000);
  }
}

std::string hex(Bytes bytes) {
  std::string text;
  text.reserve(bytes.size() * 2);
  for (const std::byte byte : bytes)
    fmt::format_to(std::back_inserter(text), "{:02x}", std::to_integer<unsigned>(byte));
  return text;
}

class QemuCodeSession final : public CodeSession {
public:
  explicit QemuCodeSession(std::unique_ptr<GdbStub> stub) : stub_(std::move(stub)) {}
  Result<void> write(Gpa address, Bytes bytes) override { return stub_->write_physical(address, bytes); }
  Result<std::vector<Gva>> instruction_pointers() override {
    TRY_ASSIGN(const auto threads, stub_->threads());
    std::vector<Gva> pointers;
    for (const std::string &thread : threads) {
      TRY_ASSIGN(const auto registers, stub_->read_registers(thread));
      pointers.push_back(Gva{registers[rip_number]});
    }
    return pointers;
  }
  Result<void> end() override { return stub_->end(); }

private:
  std::unique_ptr<GdbStub> stub_;
};

class QemuCodeWriter final : public CodeWriter {
public:
  explicit QemuCodeWriter(std::shared_ptr<Session> session) : session_(std::move(session)) {}
  Result<std::unique_ptr<CodeSession>> begin() override {
    TRY_ASSIGN(auto stub, GdbStub::open(session_));
    return std::make_unique<QemuCodeSession>(std::move(stub));
  }

private:
  std::shared_ptr<Session> session_;
};

class QemuBreakpoints final : public Breakpoints {
public:
  QemuBreakpoints(std::unique_ptr<GdbStub> stub, std::span<const Gva> addresses)
      : stub_(std::move(stub)), addresses_(addresses.begin(), addresses.end()) {}
  ~QemuBreakpoints() override { static_cast<void>(end()); }

  // A hardware breakpoint is a matter of QEMU's own under TCG, and one of the CPU's four under KVM. A software one
  // would be written into the guest's memory.
  Result<void> set() {
    TRY(stub_->describe_registers());
    for (const Gva address : addresses_) {
      auto answer = stub_->ask(fmt::format("Z1,{:x},1", address.value));
      if (!answer || *answer != "OK")
        return fail(ErrorCode::unsupported,
                    fmt::format("the VM takes no more than {} of {} breakpoints: under KVM a CPU has four", set_,
                                addresses_.size()));
      ++set_;
    }
    return stub_->resume();
  }

  Result<std::optional<BreakpointHit>> wait(std::chrono::microseconds timeout) override {
    TRY_ASSIGN(const auto packet, stub_->wait(timeout));
    if (!packet)
      return std::nullopt;
    const auto vcpu = parse_stop(*packet);
    if (!vcpu)
      return std::nullopt;
    TRY_ASSIGN(const auto registers, stub_->read_registers(fmt::format("{:x}", *vcpu + 1)));
    BreakpointHit hit{.vcpu = *vcpu, .address = Gva{registers[rip_number]}, .stack = Gva{registers[rsp_number]}};
    constexpr std::array<std::size_t, 6> argument_numbers{5, 4, 3, 2, 8, 9};
    for (std::size_t i = 0; i < hit.arguments.size(); ++i)
      hit.arguments[i] = registers[argument_numbers[i]];
    if (std::ranges::find(addresses_, hit.address) != addresses_.end())
      return hit;
    // Whoever else stopped it, by its monitor, lets it go on, too.
    if (packet->starts_with("T05"))
      TRY(stub_->resume());
    return std::nullopt;
  }

  Result<void> go_on(const BreakpointHit &hit, const BreakpointStep &step) override {
    TRY(stub_->write_register(rip_number, step.instruction.value));
    if (step.stack != hit.stack)
      TRY(stub_->write_register(rsp_number, step.stack.value));
    if (step.result)
      TRY(stub_->write_register(rax_number, *step.result));
    return stub_->resume();
  }

  Result<void> write(const BreakpointHit & /*hit*/, Gva address, std::span<const std::byte> bytes) override {
    TRY(stub_->ask("Qqemu.PhyMemMode:0"));
    auto written = stub_->ask(fmt::format("M{:x},{:x}:{}", address.value, bytes.size(), hex(bytes)));
    TRY(stub_->ask("Qqemu.PhyMemMode:1"));
    if (!written || *written != "OK")
      return fail(ErrorCode::protocol, "QEMU's gdb stub does not write memory");
    return {};
  }

  Result<void> end() override {
    if (!stub_)
      return {};
    const auto stub = std::move(stub_);
    TRY(stub->interrupt());
    // QEMU takes a breakpoint from one CPU after the other, and refuses ("E22") at the first that has none: one that
    // was plugged in later, behind all that have it. Whatever it says, the others must go, too: a guest that meets one
    // with nobody there stands still for good. When the connection is lost, end() says so.
    for (std::size_t i = 0; i < set_; ++i)
      static_cast<void>(stub->ask(fmt::format("z1,{:x},1", addresses_[i].value)));
    return stub->end();
  }

private:
  std::unique_ptr<GdbStub> stub_;
  std::vector<Gva> addresses_;
  std::size_t set_ = 0;
};

class QemuDebugger final : public Debugger {
public:
  explicit QemuDebugger(std::shared_ptr<Session> session) : session_(std::move(session)) {}
  Result<std::unique_ptr<Breakpoints>> begin(std::span<const Gva> addresses) override {
    TRY_ASSIGN(auto stub, GdbStub::open(session_, addresses));
    auto breakpoints = std::make_unique<QemuBreakpoints>(std::move(stub), addresses);
    TRY(breakpoints->set());
    return breakpoints;
  }

private:
  std::shared_ptr<Session> session_;
};

} // namespace

std::optional<std::uint32_t> parse_stop(std::string_view packet) {
  constexpr std::string_view key = "thread:";
  if (packet.size() < 3 || packet[0] != 'T')
    return std::nullopt;
  const auto at = packet.find(key);
  if (at == packet.npos)
    return std::nullopt;
  const std::string_view text = packet.substr(at + key.size());
  std::uint32_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, 16);
  return error == std::errc() && number != 0 ? std::optional(number - 1) : std::nullopt;
}

std::string gdb_packet(std::string_view text) {
  const auto sum = std::accumulate(text.begin(), text.end(), 0U, [](unsigned so_far, char c) {
    return (so_far + static_cast<unsigned char>(c)) & 0xff;
  });
  return fmt::format("${}#{:02x}", text, sum);
}

bool GdbPackets::add(std::string_view bytes) {
  const auto digit = [](char c) -> std::optional<std::uint8_t> {
    std::uint8_t value = 0;
    const auto [end, error] = std::from_chars(&c, &c + 1, value, 16);
    return error == std::errc() ? std::optional(value) : std::nullopt;
  };
  for (const char c : bytes)
    switch (state_) {
    case State::between: // acknowledgements
      if (c == '$') {
        state_ = State::packet;
        packet_.clear();
        sum_ = 0;
      } else if (c == '+') {
        ++acknowledged_;
      } else if (c == '-') {
        return false; // a packet of ours came over damaged: no socket does that
      }
      break;
    case State::packet:
      if (c == '#') {
        state_ = State::first_digit;
      } else if (packet_.size() == longest) {
        return false;
      } else {
        packet_ += c;
        sum_ = static_cast<std::uint8_t>(sum_ + static_cast<unsigned char>(c));
      }
      break;
    case State::first_digit:
    case State::second_digit: {
      const auto value = digit(c);
      if (!value)
        return false;
      if (state_ == State::first_digit) {
        sent_sum_ = static_cast<std::uint8_t>(*value << 4);
        state_ = State::second_digit;
        break;
      }
      if ((sent_sum_ | *value) != sum_ || packets_.size() == most_vcpus)
        return false;
      packets_.push_back(std::move(packet_));
      packet_ = {};
      state_ = State::between;
      break;
    }
    }
  return true;
}

std::optional<std::string> GdbPackets::next() {
  if (packets_.empty())
    return std::nullopt;
  std::string packet = std::move(packets_.front());
  packets_.pop_front();
  return packet;
}

Result<std::unique_ptr<GdbStub>> GdbStub::open(const std::shared_ptr<Session> &session,
                                               std::span<const Gva> breakpoints) {
  if (session->monitors.empty())
    return fail(ErrorCode::unsupported, "the VM has no monitor that can be reached: its code cannot be changed");
  std::unique_ptr<GdbStub> stub(new GdbStub(session));
  stub->socket_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!stub->socket_)
    return fail_errno("cannot make a socket", errno);
  TRY_ASSIGN(const auto place, MeetingPlace::make(session->process));
  sockaddr_un address{.sun_family = AF_UNIX, .sun_path = {}};
  const std::string path = place.our_socket();
  if (path.size() >= sizeof address.sun_path)
    return fail(ErrorCode::unsupported, fmt::format("{} is too long for a socket", path));
  std::ranges::copy(path, address.sun_path);
  {
    TRY_ASSIGN(const auto monitor, session->open_monitor());
    TRY_ASSIGN(const auto state, ask_state(*monitor));
    if (state != RunState::running && state != RunState::paused)
      return fail(ErrorCode::unsupported, "the VM neither runs nor is paused: its code cannot be changed");
    stub->was_running_ = state == RunState::running;
    TRY_ASSIGN(auto guardian, Guardian::start({stub->socket_.get(), session->process.pidfd()},
                                              [session, socket = stub->socket_.get(), was = stub->was_running_,
                                               folder = place.our_folder(),
                                               marks = std::vector(breakpoints.begin(), breakpoints.end())](bool) {
                                                let_go(socket, was, marks);
                                                close_stub(*session);
                                                MeetingPlace::remove(folder);
                                              }));
    stub->guardian_.emplace(std::move(guardian));
    TRY_ASSIGN(const auto said,
               monitor->hmp(fmt::format("gdbserver unix:{},server=on,wait=off", place.their_socket())));
    if (::connect(stub->socket_.get(), reinterpret_cast<const sockaddr *>(&address), sizeof address) != 0) {
      const int error = errno;
      static_cast<void>(monitor->hmp("gdbserver none"));
      stub->socket_.reset();
      stub->guardian_->dismiss();
      return wrap(fail_errno("cannot connect to QEMU's gdb stub", error).error(), said);
    }
  }
  // The guest is stopped when the stub answers. Of that it may tell by itself, before or between.
  TRY(stub->send("qAttached"));
  for (int i = 0;; ++i) {
    constexpr int most_stops = 8;
    TRY_ASSIGN(const auto packet, stub->wait(answer_limit));
    if (!packet || i == most_stops)
      return fail(ErrorCode::timeout, "QEMU's gdb stub does not answer");
    if (*packet == "1")
      break;
  }
  TRY(stub->ask("Qqemu.PhyMemMode:1"));
  return stub;
}

Result<void> GdbStub::receive(Clock::time_point deadline) {
  std::array<char, 4096> buffer;
  while (true) {
    const auto count = ::recv(socket_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (count > 0)
      return packets_.add({buffer.data(), static_cast<std::size_t>(count)})
                 ? Result<void>()
                 : fail(ErrorCode::protocol, "QEMU's gdb stub answers what is not understood");
    if (count == 0)
      return session_->process.explain(
          Error{.code = ErrorCode::protocol, .message = "QEMU's gdb stub closed the connection"});
    if (errno != EAGAIN && errno != EINTR)
      return fail_errno("cannot read from QEMU's gdb stub", errno);
    const auto left = deadline - Clock::now();
    if (left <= Clock::duration::zero())
      return fail(ErrorCode::timeout, "QEMU's gdb stub does not answer");
    const auto nanoseconds = std::chrono::duration_cast<std::chrono::nanoseconds>(left).count();
    const timespec limit{nanoseconds / 1'000'000'000, nanoseconds % 1'000'000'000};
    pollfd source{socket_.get(), POLLIN, 0};
    ::ppoll(&source, 1, &limit, nullptr);
  }
}

Result<void> GdbStub::send(std::string_view command) {
  const std::string packet = gdb_packet(command);
  for (std::string_view rest = packet; !rest.empty();) {
    const auto count = ::send(socket_.get(), rest.data(), rest.size(), MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR)
      continue;
    if (count < 0)
      return fail_errno("cannot write to QEMU's gdb stub", errno);
    rest.remove_prefix(static_cast<std::size_t>(count));
  }
  return {};
}

// A packet that came over is carried out before anything else happens, the end of the connection too.
Result<void> GdbStub::resume() {
  const std::uint64_t before = packets_.acknowledged();
  TRY(send("c"));
  const auto deadline = Clock::now() + answer_limit;
  while (packets_.acknowledged() == before)
    TRY(receive(deadline));
  return {};
}

Result<std::string> GdbStub::ask(std::string_view command) {
  TRY(send(command));
  const auto deadline = Clock::now() + answer_limit;
  std::optional<std::string> answer;
  while (!(answer = packets_.next()))
    TRY(receive(deadline));
  write_all(socket_.get(), "+");
  if (answer->size() == 3 && answer->starts_with('E'))
    return fail(ErrorCode::protocol, fmt::format("QEMU's gdb stub refuses {}: {}", command.substr(0, 40), *answer));
  return *answer;
}

Result<std::optional<std::string>> GdbStub::wait(std::chrono::microseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  std::optional<std::string> packet;
  while (!(packet = packets_.next()))
    if (auto received = receive(deadline); !received) {
      if (received.error().code == ErrorCode::timeout)
        return std::nullopt;
      return std::unexpected(std::move(received).error());
    }
  write_all(socket_.get(), "+");
  return packet;
}

Result<void> GdbStub::interrupt() {
  write_all(socket_.get(), "\x03");
  TRY_ASSIGN(const auto stopped, wait(answer_limit));
  if (!stopped)
    return fail(ErrorCode::timeout, "the VM does not stop");
  return {};
}

Result<void> GdbStub::write_physical(Gpa address, Bytes bytes) {
  for (std::size_t at = 0; at < bytes.size(); at += bytes_per_write) {
    const Bytes part = clamp_subspan(bytes, at, bytes_per_write);
    TRY_ASSIGN(const auto answer, ask(fmt::format("M{:x},{:x}:{}", address.value + at, part.size(), hex(part))));
    if (answer != "OK")
      return fail(ErrorCode::protocol, fmt::format("QEMU's gdb stub does not write memory: {}", answer));
  }
  return {};
}

Result<std::vector<std::string>> GdbStub::threads() {
  std::vector<std::string> result;
  TRY_ASSIGN(auto answer, ask("qfThreadInfo"));
  while (answer.starts_with('m') && result.size() < most_vcpus) {
    std::string_view rest = std::string_view(answer).substr(1);
    while (!rest.empty()) {
      const auto comma = std::min(rest.find(','), rest.size());
      result.emplace_back(rest.substr(0, comma));
      rest.remove_prefix(std::min(comma + 1, rest.size()));
    }
    TRY_ASSIGN(answer, ask("qsThreadInfo"));
  }
  if (result.empty())
    return fail(ErrorCode::protocol, "QEMU's gdb stub lists no vCPU");
  return result;
}

Result<std::array<std::uint64_t, GdbStub::register_count>> GdbStub::read_registers(std::string_view thread) {
  TRY(ask(fmt::format("Hg{}", thread)));
  TRY_ASSIGN(const auto answer, ask("g"));
  constexpr std::size_t digits = 16;
  std::array<std::uint64_t, register_count> registers{};
  for (std::size_t i = 0; i < registers.size(); ++i) {
    const std::string_view text =
        answer.size() >= (i + 1) * digits ? std::string_view(answer).substr(i * digits, digits) : std::string_view();
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
    if (text.empty() || error != std::errc() || end != text.data() + text.size())
      return fail(ErrorCode::protocol, "QEMU's gdb stub does not tell the registers");
    registers[i] = __builtin_bswap64(value);
  }
  return registers;
}

Result<void> GdbStub::describe_registers() {
  TRY_ASSIGN(const auto answer, ask("qXfer:features:read:target.xml:0,ffb"));
  if (answer.empty())
    return fail(ErrorCode::unsupported, "QEMU's gdb stub does not describe its registers");
  return {};
}

Result<void> GdbStub::write_register(unsigned number, std::uint64_t value) {
  TRY_ASSIGN(const auto answer, ask(fmt::format("P{:x}={:016x}", number, __builtin_bswap64(value))));
  if (answer != "OK")
    return fail(ErrorCode::protocol, "QEMU's gdb stub does not set registers");
  return {};
}

Result<void> GdbStub::end() {
  if (!socket_)
    return {};
  // The guest first; the stub can be closed when it runs.
  Result<void> done;
  if (was_running_)
    done = resume();
  if (!done) { // as if we had died
    socket_.reset();
    guardian_->put_right();
    return done;
  }
  socket_.reset();
  close_stub(*session_);
  guardian_->dismiss();
  return {};
}

std::unique_ptr<Debugger> make_debugger(std::shared_ptr<Session> session) {
  return std::make_unique<QemuDebugger>(std::move(session));
}

std::unique_ptr<CodeWriter> make_code_writer(std::shared_ptr<Session> session) {
  return std::make_unique<QemuCodeWriter>(std::move(session));
}

} // namespace lararium::qemu
