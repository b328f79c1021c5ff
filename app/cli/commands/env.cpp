#include "../context.h"
#include "../text.h"

namespace lararium::cli {
namespace {

class Env final : public Command {
public:
  void describe(Syntax &syntax) override { syntax.argument("PID", "the process", pid_); }

  Result<void> run(Context &context) override {
    TRY_ASSIGN(OperatingSystem *const guest, context.guest());
    TRY_ASSIGN(const auto view, guest->environment(pid_));
    TRY(context.release_pause());
    if (context.options.json)
      return context.json_list("env", view.items, &view.status, [](JsonWriter &json, const std::string &variable) {
        const std::size_t equals = variable.find('=');
        json.begin_object().member("name", variable.substr(0, equals));
        json.key("value");
        equals == variable.npos ? json.null() : json.value(variable.substr(equals + 1));
        json.end_object();
      });
    for (const std::string &variable : view.items) {
      append_visible(context.out.buffer(), variable);
      context.out.buffer() += '\n';
    }
    context.notes_of(view.status);
    return {};
  }

private:
  std::int32_t pid_ = 0;
};

LARARIUM_COMMAND(Env, "env", processes, vm, "environment of a process")

} // namespace
} // namespace lararium::cli
