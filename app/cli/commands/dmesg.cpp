#include "../context.h"
#include "../text.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>

namespace lararium::cli {
namespace {

constexpr std::array<std::string_view, 8> level_names = {"emerg", "alert",  "crit", "err",
                                                         "warn",  "notice", "info", "debug"};

void write_record(JsonWriter &json, const LogRecord &record) {
  json.begin_object()
      .member("sequence", record.sequence)
      .member("time_ns", record.time_ns)
      .member("level", record.level)
      .member("facility", record.facility)
      .member("text", record.text);
  json.key("caller");
  if (!record.caller)
    json.null();
  else if ((*record.caller >> 31) != 0) // as the kernel prints it with CONFIG_PRINTK_CALLER
    json.value(fmt::format("C{}", *record.caller & 0x7fffffff));
  else
    json.value(fmt::format("T{}", *record.caller));
  json.end_object();
}

class Dmesg final : public Command {
public:
  void describe(Syntax &syntax) override {
    syntax.option("-l,--level", "LEVEL", "only this level and worse", level_, {level_names.begin(), level_names.end()});
    syntax.option("-n,--lines", "N", "only the last N messages", lines_);
  }

  Result<void> run(Context &context) override {
    TRY_ASSIGN(OperatingSystem *const guest, context.guest());
    TRY_ASSIGN(auto view, guest->kernel_log());
    TRY(context.release_pause());
    if (!level_.empty()) {
      const auto most = std::ranges::find(level_names, level_) - level_names.begin();
      std::erase_if(view.items, [&](const LogRecord &record) { return record.level > most; });
    }
    if (lines_ && *lines_ >= 0 && view.items.size() > static_cast<std::size_t>(*lines_))
      view.items.erase(view.items.begin(), view.items.end() - *lines_);
    if (context.options.json)
      return context.json_list("dmesg", view.items, &view.status, write_record);
    for (const LogRecord &record : view.items) {
      std::string &out = context.out.buffer();
      const std::uint64_t microseconds = record.time_ns / 1000;
      context.out.styled(Style::green,
                         fmt::format("[{:5}.{:06}] ", microseconds / 1'000'000, microseconds % 1'000'000));
      const Style style = record.level <= 3 ? Style::red : record.level == 4 ? Style::yellow : Style::plain;
      context.out.begin(style);
      append_visible(out, record.text);
      context.out.end(style);
      out += '\n';
      TRY(context.out.flush_if_large());
    }
    context.notes_of(view.status);
    return {};
  }

private:
  std::string level_;
  std::optional<std::int32_t> lines_;
};

LARARIUM_COMMAND(Dmesg, "dmesg", kernel, vm, "the kernel's log")

} // namespace
} // namespace lararium::cli
