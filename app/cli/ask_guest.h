// Ways by which a guest's own answer comes to us. What comes is foreign, bounded in length and in time.
#pragma once

#include "lararium/base/result.h"

#include <chrono>
#include <string>
#include <string_view>

namespace lararium::cli {

struct AskLimits {
  std::chrono::seconds time{120};
  std::size_t bytes = 32 << 20;
};

// Runs a shell command of the user's with this input, such as "ssh guest sh -s", and gives what it prints. Its errors
// go where ours go.
[[nodiscard]] Result<std::string> ask_by_command(const std::string &command, std::string_view input,
                                                 const AskLimits &limits);

// Whether a file of that name holds what `is_whole` accepts now.
using WholePredicate = bool (*)(std::string_view);
[[nodiscard]] bool has_whole_answer(const std::string &path, WholePredicate is_whole, const AskLimits &limits);

// What the file holds once that is whole, or as it is when it does not become so in time. "-": standard input, to its
// end.
[[nodiscard]] Result<std::string> read_answer(const std::string &path, WholePredicate is_whole,
                                              const AskLimits &limits);

} // namespace lararium::cli
