// The program without its surroundings: words in, text and an exit code out. Tests run it with a host of their own.
#pragma once

#include "output.h"
#include "session.h"

#include <functional>
#include <memory>
#include <span>

namespace lararium::cli {

// The host is made only when a command needs one.
using HostFactory = std::function<std::unique_ptr<Host>()>;

[[nodiscard]] int run_program(std::span<const char *const> words, const HostFactory &make_host, Output &out,
                              Output &err);

} // namespace lararium::cli
