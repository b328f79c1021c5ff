// Port: stopping and continuing a target.
#pragma once

#include "lararium/base/result.h"

#include <utility>

namespace lararium {

enum class RunState : std::uint8_t { running, paused, shut_down, migrating, crashed, unknown };

class RunControl {
public:
  virtual ~RunControl() = default;
  [[nodiscard]] virtual Result<RunState> state() = 0;
  [[nodiscard]] virtual Result<void> pause() = 0;
  [[nodiscard]] virtual Result<void> resume() = 0;
};

// Holds a guest paused. A guest that was not running when it was taken is left as it was found. If this process is
// killed inside, the guest stays paused: the holder keeps it short, and the driver makes QEMU resume where it can.
class ScopedPause {
public:
  [[nodiscard]] static Result<ScopedPause> take(RunControl &control) {
    TRY_ASSIGN(const RunState state, control.state());
    if (state != RunState::running)
      return ScopedPause(nullptr);
    TRY(control.pause());
    return ScopedPause(&control);
  }
  ScopedPause(ScopedPause &&other) noexcept : control_(std::exchange(other.control_, nullptr)) {}
  ScopedPause &operator=(ScopedPause &&) = delete;
  ScopedPause(const ScopedPause &) = delete;
  ScopedPause &operator=(const ScopedPause &) = delete;
  ~ScopedPause() {
    if (control_ != nullptr)
      static_cast<void>(control_->resume());
  }
  // Resumes now and tells whether it worked.
  [[nodiscard]] Result<void> release() {
    auto *control = std::exchange(control_, nullptr);
    return control == nullptr ? Result<void>() : control->resume();
  }

private:
  explicit ScopedPause(RunControl *control) : control_(control) {}
  RunControl *control_;
};

} // namespace lararium
