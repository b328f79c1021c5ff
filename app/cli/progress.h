// A progress bar on standard error, where that is a terminal.
#pragma once

#include "context.h"

#include <chrono>
#include <cstdint>
#include <string>

namespace lararium::cli {

class ProgressBar {
public:
  ProgressBar(Context &context, std::string what) : context_(context), what_(std::move(what)) {}
  ProgressBar(const ProgressBar &) = delete;
  ProgressBar &operator=(const ProgressBar &) = delete;
  ~ProgressBar();
  // False: the user wants to stop.
  [[nodiscard]] bool update(std::uint64_t done, std::uint64_t total);

private:
  using Clock = std::chrono::steady_clock;
  Context &context_;
  std::string what_;
  Clock::time_point begin_ = Clock::now();
  Clock::time_point last_drawn_;
  bool drawn_ = false;
};

} // namespace lararium::cli
