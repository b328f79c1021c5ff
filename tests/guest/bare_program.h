// What the programs share that work on a bare-metal guest of the lab.
#pragma once

#include "lararium/base/result.h"

#include <atomic>
#include <charconv>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <fmt/format.h>
#include <string_view>
#include <vector>

namespace lararium {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;

inline std::atomic<bool> ended = false; // by SIGTERM

inline Result<std::uint64_t> number(std::string_view text) {
  const bool hex = text.starts_with("0x");
  std::uint64_t value = 0;
  const auto digits = text.substr(hex ? 2 : 0);
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, hex ? 16 : 10);
  if (error != std::errc() || end != digits.data() + digits.size())
    return fail(ErrorCode::usage, fmt::format("no number: {}", text));
  return value;
}

template <class Parse, class Run>
int run_until_ended(std::string_view name, const std::vector<std::string_view> &words, Parse &&parse, Run &&run) {
  struct sigaction action{};
  action.sa_handler = [](int) { ended = true; };
  ::sigaction(SIGTERM, &action, nullptr); // no SA_RESTART: reading ends, too
  const auto arguments = parse(words);
  const auto done = arguments ? run(*arguments) : Result<void>(std::unexpected(arguments.error()));
  if (!done) {
    fmt::print(stderr, "{}: {}\n", name, done.error().describe());
    return 1;
  }
  return 0;
}

} // namespace lararium
