#include "../context.h"
#include "../table.h"
#include "../text.h"

#include <fmt/format.h>

namespace lararium::cli {
namespace {

void write_module(JsonWriter &json, const KernelModule &module) {
  json.begin_object()
      .member("name", module.name)
      .member("base", module.base)
      .member("size", module.size)
      .member("references", module.references)
      .list("used_by", module.used_by)
      .text_or_null("state", module.state)
      .text_or_null("version", module.version)
      .text_or_null("source_version", module.source_version)
      .text_or_null("taint", module.taint)
      .text_or_null("arguments", module.arguments)
      .member("module", module.module)
      .member("init", module.init)
      .member("exit", module.exit)
      .end_object();
}

class Modules final : public Command {
public:
  Result<void> run(Context &context) override {
    TRY_ASSIGN(OperatingSystem *const guest, context.guest());
    TRY_ASSIGN(const auto view, guest->modules());
    TRY(context.release_pause());
    if (context.options.json)
      return context.json_list("modules", view.items, &view.status, write_module);
    Table table{{"MODULE"}, {"SIZE", Align::right},       {"REFS", Align::right},
                {"STATE"},  {"TAINT", Align::left, true}, {"BASE", Align::right},
                {"USED BY"}};
    for (const KernelModule &module : view.items) {
      table.guest(module.name).text(short_bytes(module.size)).number(module.references);
      table.guest(module.state, module.state == "live" ? Style::plain : Style::yellow);
      table.guest(module.taint, Style::yellow).text(fmt::format("{:#x}", module.base.value));
      std::string &cell = table.begin_cell();
      for (const std::string &user : module.used_by) {
        cell += &user == &module.used_by.front() ? "" : ", ";
        append_visible(cell, user);
      }
      table.end_cell();
    }
    TRY(table.print(context.out));
    context.notes_of(view.status);
    return {};
  }
};

LARARIUM_COMMAND(Modules, "modules", kernel, vm, "loaded kernel modules")

} // namespace
} // namespace lararium::cli
