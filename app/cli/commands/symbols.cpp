#include "../context.h"
#include "../text.h"

#include <fmt/format.h>

namespace lararium::cli {
namespace {

void write_symbol(JsonWriter &json, const KernelSymbol &symbol, std::optional<std::uint64_t> distance) {
  json.begin_object().member("address", symbol.address).member("name", symbol.name);
  json.key("type").value(std::string_view(&symbol.type, 1));
  json.text_or_null("module", symbol.module);
  if (distance)
    json.key("offset").value(*distance);
  json.end_object();
}

class Symbols final : public Command {
public:
  void describe(Syntax &syntax) override {
    syntax.argument("NAME", "symbols to look up, or addresses (0x...) to name; all symbols if left out", wanted_);
    syntax.option("-f,--filter", "PATTERN", "only names that match, with * and ?", filter_);
  }

  Result<void> run(Context &context) override {
    TRY_ASSIGN(OperatingSystem *const guest, context.guest());
    JsonWriter json(context.out.buffer());
    if (context.options.json)
      json = context.begin_document("symbols", nullptr).key("items").begin_array();
    Result<void> written;
    ViewStatus status;
    const auto show = [&](const KernelSymbol &symbol, std::optional<std::uint64_t> distance) {
      if (context.options.json)
        write_symbol(json, symbol, distance);
      else
        print(context.out.buffer(), symbol, distance);
      written = context.out.flush_if_large();
      return written.has_value();
    };
    if (wanted_.empty()) {
      status = guest->for_each_symbol([&](const KernelSymbol &symbol) {
        return (filter_ && !matches_glob(*filter_, symbol.name)) || show(symbol, std::nullopt);
      });
      TRY(written);
    }
    for (const std::string &wanted : wanted_) {
      if (const auto address = parse_number(wanted)) {
        const auto found = guest->symbolize(Gva{*address});
        if (!found)
          return fail(ErrorCode::not_found, fmt::format("no symbol holds the address {}", visible(wanted)));
        show(found->first, found->second);
      } else {
        const auto found = guest->find_symbol(wanted);
        if (!found)
          return fail(ErrorCode::not_found, fmt::format("the guest's kernel has no symbol {}", visible(wanted)));
        show(*found, std::nullopt);
      }
      TRY(written);
    }
    if (context.options.json) {
      json.end_array();
      json.key("status"); // behind the items: it is known only after them, and they are many
      write_status(json, status, context.paused());
      return context.end_document(json);
    }
    context.notes_of(status);
    return {};
  }

private:
  // The format of /proc/kallsyms; an address inside a symbol gets its distance.
  static void print(std::string &out, const KernelSymbol &symbol, std::optional<std::uint64_t> distance) {
    fmt::format_to(std::back_inserter(out), "{:016x} ", symbol.address.value + distance.value_or(0));
    append_visible(out, {&symbol.type, 1});
    out += ' ';
    append_visible(out, symbol.name);
    if (distance)
      fmt::format_to(std::back_inserter(out), "+{:#x}", *distance);
    if (!symbol.module.empty()) {
      out += "\t[";
      append_visible(out, symbol.module);
      out += ']';
    }
    out += '\n';
  }

  std::vector<std::string> wanted_;
  std::optional<std::string> filter_;
};

LARARIUM_COMMAND(Symbols, "symbols", kernel, vm, "kernel symbols: all, by name, or by address")

} // namespace
} // namespace lararium::cli
