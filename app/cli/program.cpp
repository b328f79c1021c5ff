#include "program.h"

#include "context.h"
#include "exit_codes.h"
#include "parse.h"
#include "text.h"

#include <fmt/format.h>

namespace lararium::cli {
namespace {

// What the user can do about it, for errors whose message cannot know that it is a command line that speaks.
std::string_view advice_for(const Error &error) {
  switch (error.code) {
  case ErrorCode::permission_denied: return "run lararium as root, or as the user who runs the VM";
  case ErrorCode::no_types: return "give a Volatility ISF file of this kernel with --profile";
  case ErrorCode::unknown_os: return "dump, and read and hexdump at phys: addresses, still work";
  default: return "";
  }
}

void report(const Error &error, const std::string &vm_name, bool json, Output &out, Output &err) {
  std::string sentence = error.describe();
  if (!vm_name.empty() && sentence.find(vm_name) == sentence.npos)
    sentence = fmt::format("{}: {}", vm_name, sentence);
  if (const std::string_view advice = advice_for(error); !advice.empty())
    sentence += fmt::format("; {}", advice);
  const int exit_code = exit_code_of(error.code);
  if (json) {
    // What of the view was already in the buffer is no document any more.
    out.buffer().clear();
    JsonWriter(out.buffer())
        .begin_object()
        .key("error")
        .begin_object()
        .member("code", lararium::name_of(error.code))
        .member("message", sentence)
        .member("exit_code", exit_code)
        .end_object()
        .end_object();
    out.buffer() += '\n';
  }
  err.styled(Style::red, "lararium:");
  err.buffer() += ' ';
  append_visible(err.buffer(), sentence);
  err.buffer() += '\n';
}

int finish(Result<void> result, const std::string &vm_name, bool json, Output &out, Output &err) {
  // What a command had to say before it failed is still worth reading; with JSON, it is one document or an error.
  if (result)
    result = out.flush();
  else if (!is_reader_went_away(result.error()) && !json)
    static_cast<void>(out.flush());
  int code = exit_success;
  if (!result && is_reader_went_away(result.error())) {
    code = exit_reader_went_away;
  } else if (!result) {
    report(result.error(), vm_name, json, out, err);
    static_cast<void>(out.flush());
    code = exit_code_of(result.error().code);
  }
  static_cast<void>(err.flush()); // there is nowhere to say that this failed
  return code;
}

} // namespace

int run_program(std::span<const char *const> words, const HostFactory &make_host, Output &out, Output &err) {
  GlobalOptions options;
  auto invocation = parse(words, options);
  if (options.colour != "auto") {
    out.set_colour(options.colour == "always");
    err.set_colour(options.colour == "always");
  }
  if (!invocation)
    return finish(std::unexpected(invocation.error()), "", options.json, out, err);
  if (invocation->version) {
    invocation->entry = find_command("version");
    invocation->command = invocation->entry->make();
    invocation->help = false;
  }
  if (invocation->help) {
    out.buffer() +=
        invocation->entry == nullptr ? general_help(out.device()) : command_help(*invocation->entry, out.device());
    return finish({}, "", options.json, out, err);
  }
  if (invocation->entry == nullptr) {
    err.buffer() += general_help(err.device());
    return finish(fail(ErrorCode::usage, "which command?"), "", options.json, out, err);
  }
  const std::unique_ptr<Host> host = make_host();
  Context context(*host, out, err, options, invocation->vm);
  auto result = invocation->command->run(context);
  // What could not be read, because there was nothing left to read, is no fault of an address.
  if (!result && context.target_is_gone() && !is_reader_went_away(result.error()))
    result = fail(ErrorCode::gone, "the VM ended while it was read");
  if (auto released = context.release_pause(); result && !released)
    result = std::unexpected(released.error());
  const int code = finish(std::move(result), context.vm_name(), options.json, out, err);
  return code == exit_success ? context.exit_code : code;
}

} // namespace lararium::cli
