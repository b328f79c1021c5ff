#include "preload_places.h"

#include <algorithm>
#include <array>

namespace lararium::detect {
namespace {

constexpr std::size_t setting_limit = 16;
// The dynamic linker puts words for these in: $LIB, $PLATFORM.
constexpr std::array system_places = {"/lib/",      "/lib64/", "/lib32/", "/usr/lib",    "/usr/local/lib",
                                      "/usr/$LIB/", "/opt/",   "/snap/",  "/nix/store/", "/usr/libexec/"};
constexpr std::array open_places = {"/tmp/", "/var/tmp/", "/dev/shm/", "/run/user/", "/dev/", "/proc/"};

bool lies_in(std::string_view path, const auto &places) {
  return std::ranges::any_of(places, [&](const char *place) { return path.starts_with(place); });
}

Severity severity_of(std::string_view library) {
  // With no directory it is looked for where all libraries are.
  if (library.find('/') == library.npos)
    return Severity::low;
  // ".." leads out of any place, and a relative path to where the process happens to be.
  if (!library.starts_with('/') || library.find("/../") != library.npos || lies_in(library, open_places))
    return Severity::high;
  return lies_in(library, system_places) ? Severity::low : Severity::medium;
}

} // namespace

std::vector<PreloadSetting> preload_settings(std::string_view environment) {
  std::vector<PreloadSetting> result;
  while (!environment.empty() && result.size() < setting_limit) {
    const auto end = environment.find('\0');
    const std::string_view text = environment.substr(0, end);
    environment.remove_prefix(end == environment.npos ? environment.size() : end + 1);
    for (const std::string_view variable : {"LD_PRELOAD", "LD_AUDIT"})
      if (text.size() > variable.size() + 1 && text.starts_with(variable) && text[variable.size()] == '=')
        result.push_back({variable, text.substr(variable.size() + 1)});
  }
  return result;
}

Severity preload_severity(std::string_view libraries) {
  Severity worst = Severity::low;
  while (!libraries.empty()) {
    const auto end = libraries.find_first_of(": ");
    const std::string_view library = libraries.substr(0, end);
    libraries.remove_prefix(end == libraries.npos ? libraries.size() : end + 1);
    if (!library.empty())
      worst = std::max(worst, severity_of(library));
  }
  return worst;
}

} // namespace lararium::detect
