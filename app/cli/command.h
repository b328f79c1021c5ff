// What a command of the program is, and how it makes itself known. A command is one file in commands/: it defines a
// class and registers it with LARARIUM_COMMAND; nothing else lists it.
#pragma once

#include "lararium/base/result.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace lararium::cli {

class Context;

struct OptionSpec {
  std::string names; // "-t,--tree"
  std::string value; // what the help calls its value; empty: a flag
  std::string help;
  std::variant<bool *, std::string *, std::optional<std::string> *, std::optional<std::int32_t> *, double *,
               std::vector<std::string> *> // may be given several times
      target;
  std::vector<std::string> choices; // empty: anything
};

struct ArgumentSpec {
  enum class Count : std::uint8_t { required, optional, any };
  std::string name;
  std::string help;
  Count count = Count::required;
  std::variant<std::string *, std::int32_t *, std::optional<std::string> *, std::optional<std::int32_t> *,
               std::vector<std::string> *>
      target;
};

// What a command accepts beside the global options and the VM: recorded once, for the parser, the help and the shells'
// completions alike. Targets must outlive the parsing.
class Syntax {
public:
  void flag(std::string names, std::string help, bool &target) {
    options.push_back({std::move(names), {}, std::move(help), &target, {}});
  }
  template <class T>
  void option(std::string names, std::string value, std::string help, T &target,
              std::vector<std::string> choices = {}) {
    options.push_back({std::move(names), std::move(value), std::move(help), &target, std::move(choices)});
  }
  template <class T> void argument(std::string name, std::string help, T &target) {
    using Count = ArgumentSpec::Count;
    constexpr Count count = std::is_same_v<T, std::vector<std::string>>                         ? Count::any
                            : std::is_same_v<T, std::string> || std::is_same_v<T, std::int32_t> ? Count::required
                                                                                                : Count::optional;
    arguments.push_back({std::move(name), std::move(help), count, &target});
  }

  std::vector<OptionSpec> options;
  std::vector<ArgumentSpec> arguments; // required ones first
};

class Command {
public:
  Command() = default;
  Command(const Command &) = delete;
  Command &operator=(const Command &) = delete;
  virtual ~Command() = default;
  virtual void describe(Syntax & /*syntax*/) {}
  [[nodiscard]] virtual Result<void> run(Context &context) = 0;
};

enum class Group : std::uint8_t {
  machine,
  security,
  processes,
  kernel,
  network,
  memory,
  program
}; // in the order of the help
enum class Subject : std::uint8_t { none, vm }; // VM: the first argument names one

struct CommandEntry {
  const char *name;
  Group group;
  Subject subject;
  const char *summary; // "processes, as a table or a tree"
  std::unique_ptr<Command> (*make)();
};

// All registered commands, by name.
[[nodiscard]] std::vector<const CommandEntry *> all_commands();
[[nodiscard]] const CommandEntry *find_command(std::string_view name);

} // namespace lararium::cli

// The linker gathers the entries in a section of their own: no list to edit, and no code that runs before main().
#define LARARIUM_COMMAND(class_name, name, group, subject, summary)                                                    \
  namespace {                                                                                                          \
  constexpr ::lararium::cli::CommandEntry class_name##_entry = {                                                       \
      name, ::lararium::cli::Group::group, ::lararium::cli::Subject::subject, summary,                                 \
      []() -> std::unique_ptr<::lararium::cli::Command> { return std::make_unique<class_name>(); }};                   \
  [[gnu::section("lararium_commands"),                                                                                 \
    gnu::used]] constexpr const ::lararium::cli::CommandEntry *const class_name##_registration = &class_name##_entry;  \
  }
