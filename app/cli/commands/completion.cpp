#include "../context.h"
#include "../parse.h"

#include <fmt/format.h>

namespace lararium::cli {
namespace {

// Names of VMs that are nothing but letters: shells expand what they complete with, and a VM's name is whatever the
// user who started it likes.
constexpr std::string_view list_vms =
    R"(lararium vms --no-guest 2>/dev/null | awk 'NR > 1 && $2 ~ /^[A-Za-z0-9._-]+$/ { print $2 }')";

struct Described {
  const CommandEntry *entry;
  std::unique_ptr<Command> command; // the syntax points into it
  Syntax syntax;
};

std::vector<Described> describe_commands() {
  std::vector<Described> described;
  for (const CommandEntry *entry : all_commands()) {
    described.push_back({entry, entry->make(), {}});
    described.back().command->describe(described.back().syntax);
  }
  return described;
}

std::string option_words(const Syntax &syntax) {
  std::string words;
  for (const OptionSpec &option : syntax.options) {
    words += words.empty() ? "" : " ";
    for (const char character : option.names)
      words += character == ',' ? ' ' : character;
  }
  return words;
}

std::string bash_script(const Syntax &global) {
  std::string commands;
  std::string cases;
  for (const Described &one : describe_commands()) {
    commands += fmt::format("{} ", one.entry->name);
    if (!one.syntax.options.empty())
      cases += fmt::format("  {}) options+=' {}' ;;\n", one.entry->name, option_words(one.syntax));
  }
  std::string out = "# bash completion for lararium\n"
                    "_lararium() {\n"
                    "  local current=${COMP_WORDS[COMP_CWORD]} command= word\n"
                    "  for word in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do\n"
                    "    case $word in -*) ;; *) command=$word && break ;; esac\n"
                    "  done\n";
  out += fmt::format("  local options='{}'\n", option_words(global));
  out += "  case $command in\n";
  out += fmt::format("  '') COMPREPLY=($(compgen -W \"{}$options\" -- \"$current\")) && return ;;\n", commands);
  out += cases;
  out += "  esac\n"
         "  case $current in\n"
         "  -*) COMPREPLY=($(compgen -W \"$options\" -- \"$current\")) ;;\n";
  out += fmt::format("  *) COMPREPLY=($(compgen -W \"$({})\" -- \"$current\") $(compgen -f -- \"$current\")) ;;\n",
                     list_vms);
  out += "  esac\n"
         "}\n"
         "complete -o filenames -F _lararium lararium\n";
  return out;
}

// For single quotes in zsh and fish.
std::string shell_quoted(std::string_view text) {
  std::string out;
  for (const char character : text)
    if (character == '\'')
      out += "'\\''";
    else
      out += character;
  return out;
}

std::string zsh_options(const Syntax &syntax) {
  std::string lines;
  for (const OptionSpec &option : syntax.options) {
    std::string help = shell_quoted(option.help);
    for (std::size_t at = 0; (at = help.find_first_of("[]:", at)) != help.npos; at += 2)
      help.insert(at, "\\");
    const std::string value = option.value.empty() ? ""
                              : !option.choices.empty()
                                  ? fmt::format(":{}:({})", option.value, fmt::join(option.choices, " "))
                                  : fmt::format(":{}:_files", option.value);
    const std::size_t comma = option.names.find(',');
    if (comma == option.names.npos)
      lines += fmt::format(" '{}[{}]{}'", option.names, help, value);
    else
      lines += fmt::format(" {{{}}}'[{}]{}'", option.names, help, value);
  }
  return lines;
}

std::string zsh_script(const Syntax &global) {
  std::string commands;
  std::string cases;
  for (const Described &one : describe_commands()) {
    commands += fmt::format("    '{}:{}'\n", one.entry->name, shell_quoted(one.entry->summary));
    cases += fmt::format("  {}) options+=({}) ;;\n", one.entry->name, zsh_options(one.syntax));
  }
  std::string out = "#compdef lararium\n"
                    "_lararium_vms() {\n"
                    "  local -a vms\n";
  out += fmt::format("  vms=(${{(f)\"$({})\"}})\n", list_vms);
  out += "  _describe -t vms VM vms\n"
         "  _files\n"
         "}\n"
         "_lararium() {\n"
         "  local -a commands options\n"
         "  commands=(\n";
  out += commands;
  out += fmt::format("  )\n  options=({})\n", zsh_options(global));
  out += "  local command=${${words[2,CURRENT-1]:#-*}[1]}\n"
         "  if [[ -z $command ]]; then\n"
         "    _describe -t commands command commands\n"
         "    _arguments $options\n"
         "    return\n"
         "  fi\n"
         "  case $command in\n";
  out += cases;
  out += "  esac\n"
         "  _arguments $options '*:VM:_lararium_vms'\n"
         "}\n"
         "_lararium \"$@\"\n";
  return out;
}

void append_fish_options(std::string &out, const Syntax &syntax, std::string_view condition) {
  for (const OptionSpec &option : syntax.options) {
    out += fmt::format("complete -c lararium{}", condition);
    if (option.names.size() > 1 && option.names[1] != '-')
      out += fmt::format(" -s {}", option.names[1]);
    out += fmt::format(" -l {} -d '{}'", option.names.substr(option.names.find("--") + 2), shell_quoted(option.help));
    if (!option.choices.empty())
      out += fmt::format(" -x -a '{}'", fmt::join(option.choices, " "));
    else if (!option.value.empty())
      out += " -r";
    out += '\n';
  }
}

std::string fish_script(const Syntax &global) {
  std::string out = "# fish completion for lararium\n";
  append_fish_options(out, global, "");
  for (const Described &one : describe_commands()) {
    out += fmt::format("complete -c lararium -n __fish_use_subcommand -f -a {} -d '{}'\n", one.entry->name,
                       shell_quoted(one.entry->summary));
    const std::string condition = fmt::format(" -n '__fish_seen_subcommand_from {}'", one.entry->name);
    append_fish_options(out, one.syntax, condition);
    if (one.entry->subject == Subject::vm)
      out += fmt::format("complete -c lararium{} -a \"({})\"\n", condition,
                         R"(lararium vms --no-guest 2>/dev/null | string match -r '^ *\d+ +[A-Za-z0-9._-]+' )"
                         R"(| string replace -r '^ *\d+ +' '')");
  }
  return out;
}

class Completion final : public Command {
public:
  void describe(Syntax &syntax) override { syntax.argument("SHELL", "bash, zsh or fish", shell_); }

  Result<void> run(Context &context) override {
    GlobalOptions options;
    bool flag = false;
    const Syntax global = global_syntax(options, flag, flag);
    std::string script;
    if (shell_ == "bash")
      script = bash_script(global);
    else if (shell_ == "zsh")
      script = zsh_script(global);
    else if (shell_ == "fish")
      script = fish_script(global);
    else
      return fail(ErrorCode::usage, "SHELL is bash, zsh or fish");
    if (context.options.json) {
      JsonWriter json = context.begin_document("completion", nullptr);
      json.key("item").begin_object().member("shell", shell_).member("script", script).end_object();
      return context.end_document(json);
    }
    context.out.buffer() += script;
    return {};
  }

private:
  std::string shell_;
};

LARARIUM_COMMAND(Completion, "completion", program, none, "a script that completes command lines in bash, zsh or fish")

} // namespace
} // namespace lararium::cli
