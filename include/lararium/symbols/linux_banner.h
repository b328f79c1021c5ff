// linux_banner, the line that /proc/version shows: "Linux version 6.1.0 (builder@host) (gcc ...) #1 SMP ...\n".
#pragma once

#include "lararium/base/bytes.h"

#include <cstddef>
#include <optional>
#include <string>

namespace lararium {

struct LinuxBanner {
  std::string text;       // without the newline
  std::size_t offset = 0; // in the image
};

// The first banner in the image: printable text from "Linux version " and a digit up to "\n" and NUL. That excludes
// linux_proc_banner, a format, and the copy in the kernel's log, which has no newline. One with the number of its build
// goes before one without.
[[nodiscard]] std::optional<LinuxBanner> find_linux_banner(Bytes image);
// The same of the text that starts at `text`, for who knows where it is.
[[nodiscard]] std::optional<std::string> read_linux_banner(Bytes text);

} // namespace lararium
