#include "parse.h"

#include "text.h"

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <charconv>
#include <fmt/format.h>
#include <numeric>

namespace lararium::cli {
namespace {

template <class... Visitors> struct Overloaded : Visitors... {
  using Visitors::operator()...;
};

template <class T> bool parse_into(const std::string &text, T &value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return !text.empty() && error == std::errc() && end == text.data() + text.size();
}

void add_options(CLI::App &app, const Syntax &syntax) {
  for (const OptionSpec &spec : syntax.options) {
    CLI::Option *option = std::visit(
        Overloaded{
            [&](bool *target) -> CLI::Option * {
              return app.add_flag_callback(spec.names, [target] { *target = true; });
            },
            [&](std::string *target) -> CLI::Option * {
              return app.add_option_function<std::string>(spec.names,
                                                          [target](const std::string &text) { *target = text; });
            },
            [&](std::optional<std::string> *target) -> CLI::Option * {
              return app.add_option_function<std::string>(spec.names,
                                                          [target](const std::string &text) { *target = text; });
            },
            [&](std::optional<std::int32_t> *target) -> CLI::Option * {
              return app.add_option_function<std::string>(
                  spec.names, [target, names = spec.names](const std::string &text) {
                    if (!parse_into(text, target->emplace()))
                      throw CLI::ValidationError(fmt::format("{}: not a whole number: {}", names, visible(text)));
                  });
            },
            [&](std::vector<std::string> *target) -> CLI::Option * {
              return app
                  .add_option_function<std::vector<std::string>>(
                      spec.names, [target](const std::vector<std::string> &texts) { *target = texts; })
                  ->expected(1)
                  ->take_all()
                  ->allow_extra_args(false);
            },
            [&](double *target) -> CLI::Option * {
              return app.add_option_function<std::string>(
                  spec.names, [target, names = spec.names](const std::string &text) {
                    if (!parse_into(text, *target))
                      throw CLI::ValidationError(fmt::format("{}: not a number: {}", names, visible(text)));
                  });
            },
        },
        spec.target);
    if (!spec.value.empty() && !std::holds_alternative<std::vector<std::string> *>(spec.target))
      option->take_last();
    if (!spec.choices.empty())
      option->check([choices = spec.choices](const std::string &text) {
        if (std::ranges::find(choices, text) != choices.end())
          return std::string();
        return fmt::format("{} is none of {}", visible(text), fmt::join(choices, ", "));
      });
  }
}

// Hands the words behind the command to the VM and to the command's arguments. The VM may be left out when there are
// just as many words as the command cannot do without.
Result<void> assign_arguments(const CommandEntry &entry, const Syntax &syntax, std::vector<std::string> words,
                              std::string &vm) {
  using Count = ArgumentSpec::Count;
  const auto required =
      static_cast<std::size_t>(std::ranges::count(syntax.arguments, Count::required, &ArgumentSpec::count));
  std::size_t next = 0;
  if (entry.subject == Subject::vm && words.size() > required) {
    vm = words[next++];
    if (vm.empty())
      return fail(ErrorCode::usage, "the name of the VM is empty");
  }
  for (const ArgumentSpec &spec : syntax.arguments) {
    if (next >= words.size()) {
      if (spec.count == Count::required)
        return fail(ErrorCode::usage, fmt::format("{} is missing: {}", spec.name, usage_line(entry, syntax)));
      continue;
    }
    const auto number = [&](std::int32_t &target) -> Result<void> {
      if (!parse_into(words[next], target))
        return fail(ErrorCode::usage, fmt::format("{} is not a number: {}", spec.name, visible(words[next])));
      ++next;
      return {};
    };
    TRY(std::visit(Overloaded{
                       [&](std::string *target) -> Result<void> {
                         *target = words[next++];
                         return {};
                       },
                       [&](std::optional<std::string> *target) -> Result<void> {
                         *target = words[next++];
                         return {};
                       },
                       [&](std::int32_t *target) { return number(*target); },
                       [&](std::optional<std::int32_t> *target) { return number(target->emplace()); },
                       [&](std::vector<std::string> *target) -> Result<void> {
                         target->assign(words.begin() + static_cast<std::ptrdiff_t>(next), words.end());
                         next = words.size();
                         return {};
                       },
                   },
                   spec.target));
  }
  if (next < words.size())
    return fail(ErrorCode::usage, fmt::format("what is {}? {}", visible(words[next]), usage_line(entry, syntax)));
  return {};
}

std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0U);
  for (const char c : a) {
    std::size_t diagonal = row[0]++;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t change = diagonal + (c == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({change, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

std::unexpected<Error> unknown_command(std::string_view word) {
  std::string message = fmt::format("no command is called {}", visible(word));
  const auto commands = all_commands();
  if (word.size() <= 32 && !commands.empty()) {
    const auto *nearest = *std::ranges::min_element(
        commands, {}, [&](const CommandEntry *entry) { return edit_distance(word, entry->name); });
    if (edit_distance(word, nearest->name) <= 2)
      message += fmt::format(", do you mean {}?", nearest->name);
  }
  return fail(ErrorCode::usage, message + " (lararium --help lists them)");
}

// Two columns: what is typed, and what it does; wrapped to the width.
void append_entry(std::string &out, std::string_view left, std::string_view right, std::size_t indent,
                  std::size_t columns) {
  constexpr std::size_t margin = 2;
  out.append(margin, ' ');
  out += left;
  std::size_t column = margin + display_width(left);
  if (column + 2 > indent) {
    out += '\n';
    column = 0;
  }
  out.append(indent - column, ' ');
  column = indent;
  bool first = true;
  while (!right.empty()) {
    const std::string_view word = right.substr(0, right.find(' '));
    right.remove_prefix(std::min(right.size(), word.size() + 1));
    if (!first && column + 1 + word.size() > columns) {
      out += '\n';
      out.append(indent, ' ');
      column = indent;
    } else if (!first) {
      out += ' ';
      ++column;
    }
    out += word;
    column += word.size();
    first = false;
  }
  out += '\n';
}

std::string left_of(const OptionSpec &spec) {
  std::string names;
  const bool has_short = spec.names.size() > 1 && spec.names[1] != '-';
  for (const char c : spec.names) {
    names += c;
    if (c == ',')
      names += ' ';
  }
  if (!has_short)
    names.insert(0, "    ");
  if (!spec.choices.empty())
    return fmt::format("{} {}", names, fmt::join(spec.choices, "|"));
  return spec.value.empty() ? names : fmt::format("{} {}", names, spec.value);
}

void append_options(std::string &out, const Syntax &syntax, std::size_t columns) {
  for (const OptionSpec &spec : syntax.options)
    append_entry(out, left_of(spec), spec.help, 30, columns);
}

std::size_t help_columns(const Device &device) {
  return device.terminal ? std::clamp<std::size_t>(device.columns, 60, 100) : 100;
}

void append_heading(std::string &out, std::string_view heading, const Device &device) {
  out += '\n';
  out += device.colour ? fmt::format("{}{}{}", escape_of(Style::bold), heading, style_end) : std::string(heading);
  out += '\n';
}

} // namespace

Syntax global_syntax(GlobalOptions &options, bool &help, bool &version) {
  Syntax syntax;
  syntax.flag("-j,--json", "print one JSON document instead of text", options.json);
  syntax.flag("--pause", "pause the VM while it is read, for a view of one moment", options.pause);
  syntax.option("--profile", "FILE", "Volatility ISF file with the kernel's types, for kernels without BTF",
                options.guest.profile_file);
  syntax.option("--cache", "DIR", "keep profiles of kernels there", options.guest.cache_directory);
  syntax.flag("--no-cache", "neither read nor keep profiles of kernels", options.no_cache);
  syntax.option("--color", "WHEN", "colours; auto: on a terminal, unless NO_COLOR is set", options.colour,
                {"auto", "always", "never"});
  syntax.flag("-v,--verbose", "say on standard error how the VM is read, and how long it takes", options.verbose);
  syntax.flag("-h,--help", "print help, also for one command", help);
  syntax.flag("--version", "print the version", version);
  return syntax;
}

Result<Invocation> parse(std::span<const char *const> words, GlobalOptions &options) {
  Invocation invocation;
  const Syntax global = global_syntax(options, invocation.help, invocation.version);
  Syntax own;
  std::vector<std::string> arguments;

  CLI::App app;
  app.set_help_flag();
  app.allow_extras();
  app.require_subcommand(0, 1);
  add_options(app, global);
  for (const CommandEntry *entry : all_commands()) {
    CLI::App *command = app.add_subcommand(entry->name);
    command->fallthrough();
    command->preparse_callback([&, entry, command](std::size_t) {
      invocation.entry = entry;
      invocation.command = entry->make();
      invocation.command->describe(own);
      add_options(*command, own);
      command->add_option("arguments", arguments);
    });
  }
  std::vector<std::string> reversed(words.rbegin(), words.rend()); // CLI11 takes them last first
  try {
    app.parse(reversed);
  } catch (const CLI::ParseError &error) {
    return fail(ErrorCode::usage, error.what());
  }
  for (const std::string &word : app.remaining()) {
    if (word.size() > 1 && word.starts_with('-') && word != "--")
      return fail(
          ErrorCode::usage,
          fmt::format("no option is called {} ({} --help lists them)", visible(word),
                      invocation.entry == nullptr ? "lararium" : fmt::format("lararium {}", invocation.entry->name)));
    if (invocation.entry == nullptr)
      return unknown_command(word);
  }
  if (invocation.entry != nullptr && !invocation.help)
    TRY(assign_arguments(*invocation.entry, own, std::move(arguments), invocation.vm));
  options.guest.use_cache = !options.no_cache;
  invocation.options = options;
  return invocation;
}

std::string usage_line(const CommandEntry &entry, const Syntax &syntax) {
  std::string line = fmt::format("lararium {}", entry.name);
  if (entry.subject == Subject::vm)
    line += " [VM]";
  for (const ArgumentSpec &spec : syntax.arguments)
    switch (spec.count) {
    case ArgumentSpec::Count::required: line += fmt::format(" {}", spec.name); break;
    case ArgumentSpec::Count::optional: line += fmt::format(" [{}]", spec.name); break;
    case ArgumentSpec::Count::any: line += fmt::format(" [{}...]", spec.name); break;
    }
  return line + " [OPTION...]";
}

std::string general_help(const Device &device) {
  constexpr std::string_view headings[] = {"The machine", "Security", "Processes",  "Kernel",
                                           "Network",     "Memory",   "The program"};
  const std::size_t columns = help_columns(device);
  std::string out = "Looks into running QEMU/KVM virtual machines, and dumps of them, from outside.\n\n"
                    "lararium COMMAND [VM] [ARGUMENT...] [OPTION...]\n\n"
                    "VM is a name, pid, uuid or QMP socket, or the path of a dump; it may be left out when one VM "
                    "runs.\n";
  const auto commands = all_commands();
  for (std::size_t group = 0; group < std::size(headings); ++group) {
    append_heading(out, headings[group], device);
    for (const CommandEntry *entry : commands)
      if (static_cast<std::size_t>(entry->group) == group)
        append_entry(out, entry->name, entry->summary, 16, columns);
  }
  append_heading(out, "Options of every command", device);
  GlobalOptions options;
  bool flag = false;
  append_options(out, global_syntax(options, flag, flag), columns);
  out += "\nlararium COMMAND --help tells of one command; lararium(1) of all.\n";
  return out;
}

std::string command_help(const CommandEntry &entry, const Device &device) {
  const std::size_t columns = help_columns(device);
  Syntax syntax;
  const auto command = entry.make();
  command->describe(syntax);
  std::string out = fmt::format("{}: {}\n\n{}\n", entry.name, entry.summary, usage_line(entry, syntax));
  if (entry.subject == Subject::vm || !syntax.arguments.empty()) {
    out += '\n';
    if (entry.subject == Subject::vm)
      append_entry(out, "VM", "name, pid, uuid or QMP socket of a VM, or the path of a dump", 30, columns);
    for (const ArgumentSpec &spec : syntax.arguments)
      append_entry(out, spec.name, spec.help, 30, columns);
  }
  if (!syntax.options.empty()) {
    append_heading(out, "Options", device);
    append_options(out, syntax, columns);
  }
  append_heading(out, "Options of every command", device);
  GlobalOptions options;
  bool flag = false;
  append_options(out, global_syntax(options, flag, flag), columns);
  return out;
}

} // namespace lararium::cli
