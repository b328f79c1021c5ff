#include "miner_signs.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace lararium::detect {
namespace {

constexpr std::array programs = {
    "xmrig",    "xmr-stak",     "minerd",       "cpuminer", "ccminer",     "ethminer",   "nbminer",     "t-rex",
    "lolminer", "phoenixminer", "teamredminer", "srbminer", "nanominer",   "cgminer",    "bfgminer",    "claymore",
    "gminer",   "wildrig",      "kdevtmpfsi",   "kinsing",  "xmrigdaemon", "xmrigminer", "cryptonight", "moneroocean"};
constexpr std::array searchers = {"grep", "egrep", "fgrep", "rg", "ag", "awk", "sed", "less", "vim", "vi", "nano"};
constexpr std::array protocols = {"stratum+tcp://",  "stratum+ssl://", "stratum+tls://", "stratum2+tcp://",
                                  "stratum1+tcp://", "daemon+http://", "stratum://"};
constexpr std::array options = {"--donate-level",         "--randomx-mode", "--randomx-no-numa",
                                "--cpu-max-threads-hint", "--nicehash",     "--rig-id",
                                "--coin=monero",          "--algo=rx/0",    "--algo=cryptonight"};
constexpr std::size_t argument_limit = 256, shown_limit = 80;

std::string lower(std::string_view text) {
  std::string result(text.substr(0, 4096));
  std::ranges::transform(result, result.begin(), [](char c) { return c >= 'A' && c <= 'Z' ? char(c - 'A' + 'a') : c; });
  return result;
}

std::string_view file_name(std::string_view path) { return path.substr(path.rfind('/') + 1); }

// The name of a program, maybe with what follows a dash or a dot: "xmrig-6.21", not "xmrigger".
bool is_miner(std::string_view name) {
  return std::ranges::any_of(programs, [&](const std::string_view each) {
    return name.starts_with(each) && (name.size() == each.size() || name[each.size()] == '-' ||
                                      name[each.size()] == '.' || name[each.size()] == '_');
  });
}

} // namespace

std::optional<std::string> miner_sign(std::string_view exe, std::span<const std::string> arguments) {
  const std::string program = lower(file_name(exe));
  const std::string called = arguments.empty() ? std::string() : lower(file_name(arguments.front()));
  if (std::ranges::any_of(searchers, [&](const char *each) { return called == each; }))
    return std::nullopt;
  for (const std::string &name : {program, called})
    if (is_miner(name))
      return fmt::format("the program {}", std::string_view(name).substr(0, shown_limit));
  const auto rest = arguments.subspan(std::min<std::size_t>(arguments.size(), 1));
  for (const std::string &argument : rest.first(std::min(rest.size(), argument_limit))) {
    const std::string text = lower(argument);
    // "-o stratum+tcp://pool", "--url=stratum+tcp://pool"; a text that merely holds the word is something else.
    const auto value = text.starts_with("-") && text.find('=') != text.npos
                           ? std::string_view(text).substr(text.find('=') + 1)
                           : std::string_view(text);
    const bool pool = std::ranges::any_of(protocols, [&](const char *each) { return value.starts_with(each); });
    const bool option = std::ranges::any_of(options, [&](const std::string_view each) {
      return text.starts_with(each) && (text.size() == each.size() || text[each.size()] == '=');
    });
    if (pool || option)
      return fmt::format("the argument {}", std::string_view(argument).substr(0, shown_limit));
  }
  return std::nullopt;
}

bool is_randomx_dataset(std::uint64_t bytes) {
  constexpr std::uint64_t mebibyte = 1 << 20, dataset = 2080 * mebibyte, cache = 256 * mebibyte;
  return bytes == dataset || bytes == dataset + cache;
}

} // namespace lararium::detect
