// Lists a VM's processes again and again, by one attached Lararium that remembers where it found what: a list for each
// line of standard input, on a line of JSON: {"PID": ["ARGUMENT", ...], ...}.
//
//   list_again VM
#include "json.h"
#include "session.h"

#include <fmt/format.h>
#include <iostream>
#include <string>

namespace lararium::cli {
namespace {

Result<void> list_again(const std::string &vm) {
  const auto host = make_host();
  TRY_ASSIGN(Target target, host->open(vm));
  TRY_ASSIGN(const Guest guest, host->attach(target, {}));
  for (std::string line; std::getline(std::cin, line);) {
    guest.system->refresh();
    TRY_ASSIGN(const auto processes, guest.system->processes({}));
    std::string text;
    JsonWriter json(text);
    json.begin_object();
    for (const Process &process : processes.items)
      json.list(std::to_string(process.pid), process.arguments);
    json.end_object();
    std::cout << text << std::endl;
  }
  return {};
}

} // namespace
} // namespace lararium::cli

int main(int argc, char **argv) {
  if (argc != 2) {
    fmt::print(stderr, "usage: list_again VM\n");
    return 2;
  }
  if (const auto done = lararium::cli::list_again(argv[1]); !done) {
    fmt::print(stderr, "list_again: {}\n", done.error().describe());
    return 1;
  }
  return 0;
}
