// From the words of a command line to the command they name, with its options set.
#pragma once

#include "command.h"
#include "context.h"

#include <memory>
#include <span>
#include <string>

namespace lararium::cli {

struct Invocation {
  const CommandEntry *entry = nullptr; // null: no command was named
  std::unique_ptr<Command> command;
  std::string vm; // empty: not given
  GlobalOptions options;
  bool help = false;
  bool version = false;
};

// Fails with ErrorCode::usage. `options` are set as far as they were understood also then, so that the error can be
// reported as was asked.
[[nodiscard]] Result<Invocation> parse(std::span<const char *const> words, GlobalOptions &options);

// The options that every command takes.
[[nodiscard]] Syntax global_syntax(GlobalOptions &options, bool &help, bool &version);

[[nodiscard]] std::string general_help(const Device &device);
[[nodiscard]] std::string command_help(const CommandEntry &entry, const Device &device);
// "lararium maps [OPTIONS] [VM] PID"
[[nodiscard]] std::string usage_line(const CommandEntry &entry, const Syntax &syntax);

} // namespace lararium::cli
