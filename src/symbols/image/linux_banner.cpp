#include "lararium/symbols/linux_banner.h"

#include <algorithm>
#include <cstring>
#include <string_view>

namespace lararium {
namespace {

constexpr std::string_view start = "Linux version ";
constexpr std::size_t max_length = 1024; // real ones have 150 to 300 characters

// "#1 SMP". Since 6.1 (2df8220cc511) the image holds a second banner besides the one that is used, of a weak symbol
// that was replaced, and compiled before the number was known: "# SMP".
bool has_build_number(std::string_view line) {
  const std::size_t at = line.find(" #");
  return at != std::string_view::npos && at + 2 < line.size() && line[at + 2] >= '0' && line[at + 2] <= '9';
}

} // namespace

std::optional<std::string> read_linux_banner(Bytes text) {
  const Bytes window = clamp_subspan(text, 0, max_length + 2);
  const std::string copy(reinterpret_cast<const char *>(window.data()), window.size()); // the image may be changing
  const std::size_t end = copy.find('\n');
  if (!copy.starts_with(start) || end == std::string::npos || end + 1 >= copy.size() || copy[end + 1] != '\0')
    return std::nullopt;
  const std::string_view line(copy.data(), end);
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  if (end == start.size() || !is_digit(line[start.size()]) ||
      !std::ranges::all_of(line, [](char c) { return c >= ' ' && c < 0x7f; }))
    return std::nullopt;
  return std::string(line);
}

std::optional<LinuxBanner> find_linux_banner(Bytes image) {
  std::optional<LinuxBanner> best;
  for (std::size_t at = 0; at < image.size();) {
    const void *found = ::memmem(image.data() + at, image.size() - at, start.data(), start.size());
    if (found == nullptr)
      break;
    const auto offset = static_cast<std::size_t>(static_cast<const std::byte *>(found) - image.data());
    if (auto text = read_linux_banner(image.subspan(offset))) {
      const bool numbered = has_build_number(*text);
      if (numbered || !best)
        best = LinuxBanner{std::move(*text), offset};
      if (numbered)
        break;
    }
    at = offset + start.size();
  }
  return best;
}

} // namespace lararium
