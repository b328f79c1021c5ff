// A child process that puts something right when this process dies before it could do so itself, however that happens.
#pragma once

#include "lararium/base/result.h"
#include "lararium/base/unique_fd.h"

#include <functional>
#include <initializer_list>
#include <sys/types.h>
#include <utility>

namespace lararium::qemu {

// The child waits on a socket, in a session of its own (what is sent to our terminal or process group does not reach
// it), with all signals blocked, and with no descriptor of ours but `keep`. What ends it together with us is SIGKILL to
// both, such as the end of a whole control group.
class Guardian {
public:
  // `put_right` runs in the child, a copy of this process with one thread, when we died or ended without dismiss(). It
  // is told whether mark() was called.
  [[nodiscard]] static Result<Guardian> start(std::initializer_list<int> keep,
                                              const std::function<void(bool marked)> &put_right);
  Guardian(Guardian &&other) noexcept : line_(std::move(other.line_)), child_(std::exchange(other.child_, -1)) {}
  Guardian &operator=(Guardian &&) = delete;
  Guardian(const Guardian &) = delete;
  Guardian &operator=(const Guardian &) = delete;
  ~Guardian() = default; // without one of these before, the child puts it right, and nobody waits for that

  void mark();
  // All is right: the child ends and does nothing.
  void dismiss();
  // Has the child put it right, and waits until it did.
  void put_right();

private:
  Guardian(UniqueFd line, pid_t child) : line_(std::move(line)), child_(child) {}
  void send(char word);
  void hang_up();
  UniqueFd line_;
  pid_t child_ = -1;
};

} // namespace lararium::qemu
