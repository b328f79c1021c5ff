// Runs one check on a VM again and again, with what it remembers: a look for each line of standard input, for each a
// line of JSON with the findings' subjects and sentences, or an error.
//
//   look_again VM CHECK
#include "session.h"

#include "lararium/detect/runner.h"

#include <fmt/format.h>
#include <iostream>
#include <string>

namespace lararium::cli {
namespace {

std::string quoted(const std::string &text) {
  std::string result = "\"";
  for (const char c : text)
    if (c == '"' || c == '\\' || static_cast<unsigned char>(c) < 0x20)
      result += fmt::format("\\u{:04x}", static_cast<unsigned>(static_cast<unsigned char>(c)));
    else
      result += c;
  return result + '"';
}

Result<void> look_again(const std::string &vm, const std::string &check) {
  const auto host = make_host();
  TRY_ASSIGN(Target target, host->open(vm));
  TRY_ASSIGN(const Guest guest, host->attach(target, {}));
  TRY_ASSIGN(auto runner, detect::Runner::create(target, *guest.system, {{check}, {}}));
  for (std::string line; std::getline(std::cin, line);) {
    TRY_ASSIGN(const auto outcomes, runner.run());
    std::string findings;
    for (const auto &outcome : outcomes) {
      if (outcome.error)
        return std::unexpected(*outcome.error);
      for (const Finding &finding : outcome.findings)
        findings += fmt::format("{}{{\"subject\": {}, \"sentence\": {}}}", findings.empty() ? "" : ", ",
                                quoted(finding.subject), quoted(finding.sentence));
    }
    std::cout << fmt::format("{{\"findings\": [{}], \"milliseconds\": {:.1f}}}", findings,
                             static_cast<double>(outcomes.front().took.count()) / 1e6)
              << std::endl;
  }
  return {};
}

} // namespace
} // namespace lararium::cli

int main(int argc, char **argv) {
  if (argc != 3) {
    fmt::print(stderr, "usage: look_again VM CHECK\n");
    return 2;
  }
  if (const auto done = lararium::cli::look_again(argv[1], argv[2]); !done) {
    fmt::print(stderr, "look_again: {}\n", done.error().describe());
    return 1;
  }
  return 0;
}
