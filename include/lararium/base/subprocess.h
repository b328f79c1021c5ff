// Runs a program of the host and gathers what it prints. What it prints is foreign, bounded in length and in time.
#pragma once

#include "lararium/base/result.h"

#include <chrono>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace lararium {

struct SubprocessLimits {
  std::chrono::milliseconds time;
  std::size_t bytes; // of its output, and as many of its errors
};

struct SubprocessOptions {
  std::string_view input{};  // its standard input
  bool gather_errors = true; // false: they go where ours go
  std::string_view title{};  // what errors call it; empty: its name
};

struct SubprocessResult {
  int status = 0; // its exit code; -1 when a signal ended it
  std::string text;
  std::string errors;
};

// Runs a program found on PATH with these arguments, of which the first is its name; no shell. It is killed when a
// limit is passed: `timeout`, `protocol`.
[[nodiscard]] Result<SubprocessResult> run_subprocess(const std::vector<std::string> &arguments,
                                                      const SubprocessLimits &limits,
                                                      const SubprocessOptions &options = {});

} // namespace lararium
