#include "../context.h"
#include "../file_output.h"
#include "../text.h"

#include <fmt/format.h>

namespace lararium::cli {
namespace {

// Zeros for the holes of a file that goes to a pipe, which cannot be sparse.
constexpr std::uint64_t most_zeros = 256 << 20;

class Recover final : public Command {
public:
  void describe(Syntax &syntax) override {
    syntax.argument("PATH", "the file as the first process sees it, or fd:PID:NUMBER, or inode:[MAJOR:MINOR:]NUMBER",
                    path_);
    syntax.option("-o,--output", "FILE", "write there instead of to standard output", file_);
  }

  Result<void> run(Context &context) override {
    const bool to_stdout = file_.empty();
    if (to_stdout && context.options.json)
      return fail(ErrorCode::usage, "with --json say where the content goes: -o FILE");
    if (to_stdout && context.out.device().terminal)
      return fail(ErrorCode::usage, "a guest's file is not written to a terminal: use -o FILE or a pipe");
    TRY_ASSIGN(OperatingSystem *const guest, context.guest());
    std::optional<FileOutput> file;
    std::uint64_t position = 0;
    const auto pad_to = [&](std::uint64_t offset) -> Result<void> {
      if (offset < position)
        return fail(ErrorCode::corrupt, "the file's pages are not in order");
      if (offset - position > most_zeros)
        return fail(ErrorCode::unsupported, "the file has holes too big for a pipe: use -o FILE");
      while (position < offset) {
        const std::size_t length = std::min<std::uint64_t>(offset - position, 1 << 16);
        context.out.buffer().append(length, '\0');
        position += length;
        TRY(context.out.flush_if_large());
      }
      return {};
    };
    const auto sink = [&](std::uint64_t offset, Bytes bytes) -> Result<void> {
      if (!to_stdout) {
        if (!file) { // made with the first bytes, so that a file which is not found leaves none behind
          TRY_ASSIGN(file, FileOutput::create(file_));
        }
        return file->write_at(offset, bytes);
      }
      TRY(pad_to(offset));
      context.out.buffer().append(reinterpret_cast<const char *>(bytes.data()), bytes.size());
      position += bytes.size();
      return context.out.flush_if_large();
    };
    TRY_ASSIGN(const CachedFile found, guest->recover_file(path_, sink));
    TRY(context.release_pause());
    if (found.cached_bytes == 0 && found.size > 0)
      return fail(ErrorCode::not_found, fmt::format("{} is known, and nothing of it is in the page cache", path_));
    if (!to_stdout && !file) {
      TRY_ASSIGN(file, FileOutput::create(file_));
    }
    TRY(to_stdout ? pad_to(std::max(position, found.size)) : file->finish(found.size));
    if (context.options.json)
      return print_json(context, found);
    const std::string holes =
        found.holes.empty()
            ? std::string("whole")
            : fmt::format("{} in {}{} {} missing, zeros there",
                          long_bytes(found.size - std::min(found.size, found.cached_bytes)), found.holes.size(),
                          found.holes_truncated ? " or more" : "", found.holes.size() == 1 ? "piece" : "pieces");
    context.note(fmt::format("{}: {} of {} from the page cache, {}", visible(found.path),
                             long_bytes(found.cached_bytes), long_bytes(found.size), holes));
    return {};
  }

private:
  Result<void> print_json(Context &context, const CachedFile &found) const {
    JsonWriter json = context.begin_document("recover", nullptr);
    json.key("item").begin_object();
    json.member("path", found.path)
        .member("inode", found.inode)
        .member("size", found.size)
        .member("cached_bytes", found.cached_bytes)
        .member("file", file_);
    json.key("holes").begin_array();
    for (const CachedFile::Hole &hole : found.holes)
      json.begin_object().member("begin", hole.begin).member("end", hole.end).end_object();
    json.end_array().member("holes_truncated", found.holes_truncated).end_object();
    return context.end_document(json);
  }

  std::string path_, file_;
};

LARARIUM_COMMAND(Recover, "recover", memory, vm, "a file's content from the guest's page cache")

} // namespace
} // namespace lararium::cli
