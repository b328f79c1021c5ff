// What is to be done when this process dies, whatever kills it: by a child process that waits for that.
#pragma once

#include "lararium/base/result.h"
#include "lararium/base/unique_fd.h"

#include <functional>
#include <span>
#include <sys/types.h>
#include <utility>

namespace lararium {

class LastWill {
public:
  // From here on `act` is done once when this process ends without having revoked it. It runs in a child of its own
  // session, in which signals are blocked, standard streams are /dev/null, and of the other descriptors only `kept` are
  // open. The child is forked from a process that may have threads: `act` may allocate, as the C library allows that,
  // and must not touch what other threads may hold locked.
  [[nodiscard]] static Result<LastWill> make(std::span<const int> kept, std::function<void()> act);

  LastWill(LastWill &&other) noexcept : pipe_(std::move(other.pipe_)), child_(std::exchange(other.child_, -1)) {}
  LastWill &operator=(LastWill &&) = delete;
  LastWill(const LastWill &) = delete;
  LastWill &operator=(const LastWill &) = delete;
  ~LastWill() { revoke(); }

  // There is nothing left to be done.
  void revoke();
  // It is done now, and waited for.
  void execute();

private:
  LastWill(UniqueFd pipe, pid_t child) : pipe_(std::move(pipe)), child_(child) {}
  void end();
  UniqueFd pipe_; // closed with nothing written: do it
  pid_t child_ = -1;
};

} // namespace lararium
