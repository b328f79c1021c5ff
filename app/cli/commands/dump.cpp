#include "../context.h"
#include "../progress.h"
#include "../text.h"

#include <chrono>
#include <fmt/format.h>

namespace lararium::cli {
namespace {

class Dump final : public Command {
public:
  void describe(Syntax &syntax) override {
    syntax.argument("FILE", "the file to write", file_);
    syntax.option("--format", "FORMAT", "what to write: elf, an ELF core that drgn, crash and gdb open", format_,
                  {"elf"});
    syntax.flag("-f,--force", "replace a file that exists", force_);
  }

  Result<void> run(Context &context) override {
    const auto begin = std::chrono::steady_clock::now();
    TRY_ASSIGN(Target *const target, context.target());
    // The core is worth having without the operating system; other tools then miss VMCOREINFO.
    OperatingSystem *system = nullptr;
    if (auto guest = context.guest())
      system = *guest;
    else
      context.note(fmt::format("the guest's kernel is not understood, so the dump tells less of it: {}",
                               visible(guest.error().describe())));
    const SignalGuard guard;
    Result<CoreSummary> summary;
    {
      ProgressBar bar(context, "dump");
      summary = context.host.write_machine_core(
          *target, system, file_,
          {force_, [&](const CoreProgress &progress) { return bar.update(progress.done, progress.total); }});
    }
    const bool was_paused = context.paused();
    TRY(context.release_pause());
    if (!summary)
      return std::unexpected(summary.error());
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    if (context.options.json) {
      JsonWriter json = context.begin_document("dump", nullptr);
      json.key("item")
          .begin_object()
          .member("file", file_)
          .member("format", format_)
          .member("memory_bytes", summary->source_bytes)
          .member("stored_bytes", summary->stored_bytes)
          .member("paused", was_paused)
          .member("seconds", seconds)
          .end_object();
      return context.end_document(json);
    }
    context.note(fmt::format("{}: {} of memory, {} stored, {:.1f} s, {}", visible(file_),
                             long_bytes(summary->source_bytes), long_bytes(summary->stored_bytes), seconds,
                             target->identity.kind == TargetKind::dump ? "converted"
                             : was_paused                              ? "the guest stood still"
                                                                       : "the guest ran on; --pause gives one moment"));
    return {};
  }

private:
  std::string file_, format_ = "elf";
  bool force_ = false;
};

LARARIUM_COMMAND(Dump, "dump", memory, vm, "all guest memory as an ELF core for drgn, crash and gdb")

} // namespace
} // namespace lararium::cli
