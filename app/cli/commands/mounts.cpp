#include "../context.h"
#include "../table.h"
#include "../text.h"

#include <algorithm>
#include <fmt/format.h>

namespace lararium::cli {
namespace {

void write_mount(JsonWriter &json, const Mount &mount) {
  json.begin_object()
      .member("id", mount.id)
      .member("parent_id", mount.parent_id)
      .member("mount_namespace", mount.mount_namespace)
      .member("device", fmt::format("{}:{}", mount.device_major, mount.device_minor))
      .member("root", mount.root)
      .member("mount_point", mount.mount_point)
      .member("filesystem", mount.filesystem)
      .text_or_null("source", mount.source)
      .text_or_null("options", mount.options)
      .text_or_null("super_options", mount.super_options)
      .text_or_null("propagation", mount.propagation)
      .end_object();
}

// The file system's own options, without those that the mount has too ("rw").
void append_new_options(std::string &out, const Mount &mount) {
  const std::string known = ',' + mount.options + ',';
  std::string_view rest = mount.super_options;
  bool first = mount.options.empty();
  while (!rest.empty()) {
    const std::string option(rest.substr(0, rest.find(',')));
    rest.remove_prefix(std::min(rest.size(), option.size() + 1));
    if (known.find(',' + option + ',') != known.npos)
      continue;
    out += first ? "" : ",";
    append_visible(out, option);
    first = false;
  }
}

class Mounts final : public Command {
public:
  void describe(Syntax &syntax) override {
    syntax.option("-p,--pid", "PID", "as this process sees them, instead of the first one", pid_);
    syntax.flag("-w,--wide", "do not cut lines to the terminal's width", wide_);
  }

  Result<void> run(Context &context) override {
    TRY_ASSIGN(OperatingSystem *const guest, context.guest());
    TRY_ASSIGN(const auto view, guest->mounts(pid_));
    TRY(context.release_pause());
    if (context.options.json)
      return context.json_list("mounts", view.items, &view.status, write_mount);
    Table table{{"MOUNT POINT"}, {"TYPE"}, {"SOURCE"}, {"ROOT", Align::left, true}, {"OPTIONS"}};
    for (const Mount &mount : view.items) {
      table.guest(mount.mount_point).guest(mount.filesystem).guest(mount.source);
      table.guest(mount.root == "/" ? "" : mount.root);
      std::string &cell = table.begin_cell();
      append_visible(cell, mount.options);
      append_new_options(cell, mount);
      table.end_cell();
    }
    TRY(table.print(context.out, !wide_));
    context.notes_of(view.status);
    return {};
  }

private:
  std::optional<std::int32_t> pid_;
  bool wide_ = false;
};

LARARIUM_COMMAND(Mounts, "mounts", kernel, vm, "mounted file systems")

} // namespace
} // namespace lararium::cli
