#include "../context.h"
#include "../table.h"
#include "../text.h"

#include <fmt/format.h>

namespace lararium::cli {
namespace {

void write_file(JsonWriter &json, const OpenFile &file) {
  json.begin_object().member("pid", file.pid).member("comm", file.comm).member("fd", file.fd);
  json.text_or_null("path", file.path);
  json.text_or_null("type", file.type);
  json.text_or_null("access", file.access);
  const bool is_device = file.type == "character" || file.type == "block";
  json.text_or_null("special_device", is_device ? fmt::format("{}:{}", file.special_major, file.special_minor) : "");
  json.member("flags", file.flags)
      .member("close_on_exec", file.close_on_exec)
      .member("position", file.position)
      .member("size", file.size)
      .member("inode", file.inode)
      .member("device", fmt::format("{}:{}", file.device_major, file.device_minor))
      .member("deleted", file.deleted)
      .member("file", file.file)
      .end_object();
}

class Files final : public Command {
public:
  void describe(Syntax &syntax) override {
    syntax.argument("PID", "only this process' files; the VM must then be named too", pid_);
    syntax.flag("-d,--deleted", "only files whose name is gone", deleted_);
    syntax.flag("-w,--wide", "do not cut lines to the terminal's width", wide_);
  }

  Result<void> run(Context &context) override {
    TRY_ASSIGN(OperatingSystem *const guest, context.guest());
    TRY_ASSIGN(auto view, guest->open_files(pid_));
    TRY(context.release_pause());
    if (deleted_)
      std::erase_if(view.items, [](const OpenFile &file) { return !file.deleted; });
    if (context.options.json)
      return context.json_list("files", view.items, &view.status, write_file);
    Table table{{"PID", Align::right},
                {"COMM"},
                {"FD", Align::right},
                {"TYPE"},
                {"MODE"},
                {"SIZE", Align::right},
                {"POS", Align::right},
                {"INODE", Align::right},
                {"PATH"}};
    for (const OpenFile &file : view.items) {
      const bool has_size = file.type == "file";
      table.number(std::int64_t{file.pid}).guest(file.comm).number(std::int64_t{file.fd}).guest(file.type);
      table.guest(file.access);
      has_size ? table.text(short_bytes(file.size)).number(file.position) : table.text("").text("");
      table.number(file.inode);
      std::string &cell = table.begin_cell();
      append_visible(cell, file.path);
      if (file.deleted)
        cell += " (deleted)";
      table.end_cell(file.deleted ? Style::red : Style::plain);
    }
    TRY(table.print(context.out, !wide_));
    context.notes_of(view.status);
    return {};
  }

private:
  std::optional<std::int32_t> pid_;
  bool deleted_ = false, wide_ = false;
};

LARARIUM_COMMAND(Files, "files", processes, vm, "open files, of all processes or of one")

} // namespace
} // namespace lararium::cli
