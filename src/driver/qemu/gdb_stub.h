// QEMU's gdb stub: all vCPUs stand still while it is connected, and memory is written through it in a way that QEMU's
// translator of code (TCG) notices. It is there in every running QEMU and is opened and closed through its monitor.
//
// The protocol: "GDB Remote Serial Protocol" of gdb's manual, as gdbstub.c of QEMU speaks it. Packets are acknowledged.
#pragma once

#include "guardian.h"
#include "lararium/base/bytes.h"
#include "lararium/vm/breakpoints.h"
#include "lararium/vm/code_writer.h"
#include "ports.h"

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace lararium::qemu {

// "$" + text + "#" + checksum; `text` has no byte that needs to be escaped.
[[nodiscard]] std::string gdb_packet(std::string_view text);

// Cuts what the stub sends into packets. Pure, for tests and fuzzers.
class GdbPackets {
public:
  static constexpr std::size_t longest = 64 << 10;
  // False: no packet of QEMU's is like that, and nothing more is taken.
  [[nodiscard]] bool add(std::string_view bytes);
  [[nodiscard]] std::optional<std::string> next();
  // How many of our packets came over.
  [[nodiscard]] std::uint64_t acknowledged() const { return acknowledged_; }

private:
  enum class State : std::uint8_t { between, packet, first_digit, second_digit };
  State state_ = State::between;
  std::string packet_;
  std::uint8_t sum_ = 0, sent_sum_ = 0;
  std::deque<std::string> packets_;
  std::uint64_t acknowledged_ = 0;
};

// A connection. The guest stands still from open() on until resume() or the end, and goes on if this process is killed.
// A guest that was paused before stays so.
class GdbStub {
public:
  // `breakpoints` are those that may be set, and that go if this process is killed.
  [[nodiscard]] static Result<std::unique_ptr<GdbStub>> open(const std::shared_ptr<Session> &session,
                                                             std::span<const Gva> breakpoints = {});
  GdbStub(const GdbStub &) = delete;
  GdbStub &operator=(const GdbStub &) = delete;
  ~GdbStub() { static_cast<void>(end()); }

  // Sends a command and gives its answer. An answer "E.." is `protocol`.
  [[nodiscard]] Result<std::string> ask(std::string_view command);
  // Lets the guest go on ("c"); what stops it later is taken by wait().
  [[nodiscard]] Result<void> resume();
  // The next packet that was not asked for; nothing when the time is over.
  [[nodiscard]] Result<std::optional<std::string>> wait(std::chrono::microseconds timeout);
  // For those who wait for several things.
  [[nodiscard]] int descriptor() const { return socket_.get(); }
  // Stops a guest that goes on.
  [[nodiscard]] Result<void> interrupt();

  [[nodiscard]] Result<void> write_physical(Gpa address, Bytes bytes);
  // Of each vCPU, by number.
  [[nodiscard]] Result<std::vector<std::string>> threads();
  // The general registers in gdb's order (rax rbx rcx rdx rsi rdi rbp rsp r8 to r15) and rip.
  static constexpr std::size_t register_count = 17;
  [[nodiscard]] Result<std::array<std::uint64_t, register_count>> read_registers(std::string_view thread);
  // Of the thread whose registers were read last. describe_registers() first, once.
  [[nodiscard]] Result<void> write_register(unsigned number, std::uint64_t value);
  // QEMU takes single registers only from those who have read what it has.
  [[nodiscard]] Result<void> describe_registers();
  [[nodiscard]] Result<void> end();

private:
  explicit GdbStub(std::shared_ptr<Session> session) : session_(std::move(session)) {}
  [[nodiscard]] Result<void> send(std::string_view command);
  [[nodiscard]] Result<void> receive(std::chrono::steady_clock::time_point deadline);

  std::shared_ptr<Session> session_;
  UniqueFd socket_;
  std::optional<Guardian> guardian_;
  GdbPackets packets_;
  bool was_running_ = true;
};

// A stop of the guest's as the stub tells of it: "T05thread:02;...". The vCPU's number; nothing: it is none.
[[nodiscard]] std::optional<std::uint32_t> parse_stop(std::string_view packet);

[[nodiscard]] std::unique_ptr<Debugger> make_debugger(std::shared_ptr<Session> session);
[[nodiscard]] std::unique_ptr<CodeWriter> make_code_writer(std::shared_ptr<Session> session);

} // namespace lararium::qemu
