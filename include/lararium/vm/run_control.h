// Port: stopping and continuing a target.
#pragma once

#include "lararium/base/result.h"

#include <cstdint>
#include <memory>
#include <utility>

namespace lararium {

enum class RunState : std::uint8_t { running, paused, shut_down, migrating, crashed, unknown };

// Makes a paused guest go on if this process dies, however that happens, or ends without dismiss().
class PauseGuard {
public:
  virtual ~PauseGuard() = default;
  virtual void paused() = 0; // the guest is: a pause that was asked for is no longer to come
  virtual void dismiss() = 0;
};

class RunControl {
public:
  virtual ~RunControl() = default;
  [[nodiscard]] virtual Result<RunState> state() = 0;
  [[nodiscard]] virtual Result<void> pause() = 0;
  [[nodiscard]] virtual Result<void> resume() = 0;
  // Stands guard over a pause that is to begin; never null.
  [[nodiscard]] virtual Result<std::unique_ptr<PauseGuard>> guard_pause() = 0;
};

// Holds a guest paused. A guest that was not running when it was taken is left as it was found. If this process is
// killed inside, or cannot resume it, the guard does.
class ScopedPause {
public:
  [[nodiscard]] static Result<ScopedPause> take(RunControl &control) {
    TRY_ASSIGN(const RunState state, control.state());
    if (state != RunState::running)
      return ScopedPause(nullptr, nullptr);
    TRY_ASSIGN(auto guard, control.guard_pause());
    // Of a pause that fails it is not known whether it happened: the guard looks.
    TRY(control.pause());
    guard->paused();
    return ScopedPause(&control, std::move(guard));
  }
  ScopedPause(ScopedPause &&other) noexcept
      : control_(std::exchange(other.control_, nullptr)), guard_(std::move(other.guard_)) {}
  ScopedPause &operator=(ScopedPause &&) = delete;
  ScopedPause(const ScopedPause &) = delete;
  ScopedPause &operator=(const ScopedPause &) = delete;
  ~ScopedPause() { static_cast<void>(release()); }
  // Resumes now and tells whether it worked.
  [[nodiscard]] Result<void> release() {
    auto *control = std::exchange(control_, nullptr);
    if (control == nullptr)
      return {};
    TRY(control->resume());
    guard_->dismiss();
    return {};
  }

private:
  ScopedPause(RunControl *control, std::unique_ptr<PauseGuard> guard) : control_(control), guard_(std::move(guard)) {}
  RunControl *control_;
  std::unique_ptr<PauseGuard> guard_;
};

} // namespace lararium
