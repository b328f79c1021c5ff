// Runs a program of the host and gathers what it prints.
#pragma once

#include "lararium/base/result.h"

#include <chrono>
#include <string>
#include <vector>

namespace lararium::qemu {

struct ProgramOutput {
  int status = 0; // its exit code; -1 when a signal ended it
  std::string text;
  std::string errors;
};

// Runs a program found on PATH with these arguments, no shell, empty input. It is killed when `limit` is over or it
// prints more than `max_output` bytes.
[[nodiscard]] Result<ProgramOutput> run_program(const std::vector<std::string> &arguments,
                                                std::chrono::milliseconds limit, std::size_t max_output);

} // namespace lararium::qemu
