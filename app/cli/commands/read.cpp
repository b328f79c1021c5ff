#include "../context.h"
#include "../file_output.h"
#include "../place.h"
#include "../text.h"

#include <algorithm>
#include <fmt/format.h>

namespace lararium::cli {
namespace {

constexpr std::size_t chunk = 1 << 20;

class Read final : public Command {
public:
  void describe(Syntax &syntax) override {
    syntax.argument("ADDRESS", "0x..., phys:0x..., SYMBOL or SYMBOL+0x...", address_);
    syntax.argument("LENGTH", "bytes; K, M and G may follow the number", length_);
    syntax.option("-o,--output", "FILE", "write there instead of to standard output", file_);
    syntax.option("-p,--pid", "PID", "in this process' address space instead of the kernel's", pid_);
  }

  Result<void> run(Context &context) override {
    const auto length = parse_size(length_);
    if (!length)
      return fail(ErrorCode::usage, fmt::format("not a length: {}", visible(length_)));
    if (file_.empty() && !context.options.json && context.out.device().terminal)
      return fail(ErrorCode::usage, "a guest's bytes are not written to a terminal: use -o FILE, a pipe, or hexdump");
    constexpr std::uint64_t most_json = 64 << 20;
    if (file_.empty() && context.options.json && *length > most_json)
      return fail(ErrorCode::usage, "as JSON at most 64M are read at once: use -o FILE");
    TRY_ASSIGN(const Place place, resolve_place(context, address_, pid_));
    TRY_ASSIGN(const PlaceReader reader, PlaceReader::open(context, place));
    std::optional<FileOutput> file;
    if (!file_.empty()) {
      TRY_ASSIGN(file, FileOutput::create(file_));
    }
    std::vector<std::byte> buffer(std::min<std::uint64_t>(*length, chunk));
    std::string hex;
    std::uint64_t done = 0;
    while (done < *length) {
      const std::size_t wanted = std::min<std::uint64_t>(*length - done, chunk);
      TRY_ASSIGN(const std::size_t got, reader.read(done, std::span(buffer).first(wanted)));
      const Bytes bytes = Bytes(buffer).first(got);
      if (file) {
        TRY(file->write_at(done, bytes));
      } else if (context.options.json) {
        append_hex(hex, bytes);
      } else {
        context.out.buffer().append(reinterpret_cast<const char *>(bytes.data()), bytes.size());
        TRY(context.out.flush());
      }
      done += got;
      if (got < wanted) {
        Error error = reader.fault_at(done);
        error.message = fmt::format("only {} of {} bytes can be read; what follows is not mapped", done, *length);
        return std::unexpected(std::move(error));
      }
    }
    if (file)
      TRY(file->finish(done));
    TRY(context.release_pause());
    if (context.options.json) {
      JsonWriter json = context.begin_document("read", nullptr);
      json.key("item").begin_object();
      json.key("address").hex(place.address);
      constexpr std::string_view spaces[] = {"kernel", "process", "physical"};
      json.member("space", spaces[static_cast<std::size_t>(place.kind)]).member("length", done);
      json.text_or_null("file", file_);
      json.key("data_hex");
      file ? json.null() : json.value(hex);
      json.end_object();
      return context.end_document(json);
    }
    return {};
  }

private:
  static void append_hex(std::string &out, Bytes bytes) {
    constexpr char digits[] = "0123456789abcdef";
    for (const std::byte byte : bytes) {
      out += digits[std::to_integer<unsigned>(byte) >> 4];
      out += digits[std::to_integer<unsigned>(byte) & 15];
    }
  }

  std::string address_, length_, file_;
  std::optional<std::int32_t> pid_;
};

LARARIUM_COMMAND(Read, "read", memory, vm, "raw bytes of guest memory")

} // namespace
} // namespace lararium::cli
