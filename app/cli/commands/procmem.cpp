#include "../context.h"
#include "../progress.h"
#include "../text.h"

#include <fmt/format.h>

namespace lararium::cli {
namespace {

class Procmem final : public Command {
public:
  void describe(Syntax &syntax) override {
    syntax.argument("PID", "the process", pid_);
    syntax.option("-o,--output", "FILE", "the file to write; needed", file_);
    syntax.flag("-f,--force", "replace a file that exists", force_);
  }

  Result<void> run(Context &context) override {
    if (file_.empty())
      return fail(ErrorCode::usage, "say where to: -o FILE");
    TRY_ASSIGN(Target *const target, context.target());
    TRY_ASSIGN(OperatingSystem *const guest, context.guest());
    // A process may have a page in several places; page tables that point to themselves show 128 TiB.
    const std::uint64_t stored_limit = 2 * target->memory->total_size();
    const SignalGuard guard;
    Result<CoreSummary> summary;
    {
      ProgressBar bar(context, "core");
      summary = context.host.write_process_core(
          *guest, pid_, file_,
          {force_, [&](const CoreProgress &progress) { return bar.update(progress.done, progress.total); },
           stored_limit});
    }
    TRY(context.release_pause());
    if (!summary)
      return std::unexpected(summary.error());
    if (context.options.json) {
      JsonWriter json = context.begin_document("procmem", &summary->status);
      json.key("item")
          .begin_object()
          .member("pid", pid_)
          .member("file", file_)
          .member("stored_bytes", summary->stored_bytes)
          .member("unreadable_bytes", summary->unreadable_bytes)
          .end_object();
      return context.end_document(json);
    }
    context.notes_of(summary->status);
    context.note(fmt::format("{}: {} of memory; {} were not in the guest's memory", visible(file_),
                             long_bytes(summary->stored_bytes), long_bytes(summary->unreadable_bytes)));
    return {};
  }

private:
  std::int32_t pid_ = 0;
  std::string file_;
  bool force_ = false;
};

LARARIUM_COMMAND(Procmem, "procmem", memory, vm, "a process as an ELF core that gdb opens")

} // namespace
} // namespace lararium::cli
