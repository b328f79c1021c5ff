// Port: execution breakpoints in a running target. Nothing is written into its memory; all of it stands still at each.
#pragma once

#include "lararium/base/result.h"

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

namespace lararium {

// A vCPU that met a breakpoint. The instruction there was not carried out yet.
struct BreakpointHit {
  std::uint32_t vcpu = 0;
  Gva address, stack;
  std::array<std::uint64_t, 6> arguments{}; // of a function that begins there: rdi, rsi, rdx, rcx, r8, r9
};

// How it goes on.
struct BreakpointStep {
  Gva instruction, stack;
  std::optional<std::uint64_t> result; // rax
};

// All breakpoints are there as long as it lives. If this process is killed, they go, and the guest goes on.
class Breakpoints {
public:
  Breakpoints() = default;
  Breakpoints(const Breakpoints &) = delete;
  Breakpoints &operator=(const Breakpoints &) = delete;
  virtual ~Breakpoints() = default;

  // The guest runs while this waits, and stands still from a hit on. `gone`: the VM ended.
  [[nodiscard]] virtual Result<std::optional<BreakpointHit>> wait(std::chrono::microseconds timeout) = 0;
  [[nodiscard]] virtual Result<void> go_on(const BreakpointHit &hit, const BreakpointStep &step) = 0;
  // Writes into the guest's memory at a virtual address of the vCPU that stands there.
  [[nodiscard]] virtual Result<void> write(const BreakpointHit &hit, Gva address, std::span<const std::byte> bytes) = 0;
  [[nodiscard]] virtual Result<void> end() = 0;
};

class Debugger {
public:
  virtual ~Debugger() = default;
  // `unsupported`: so many cannot be had at once.
  [[nodiscard]] virtual Result<std::unique_ptr<Breakpoints>> begin(std::span<const Gva> addresses) = 0;
};

} // namespace lararium
