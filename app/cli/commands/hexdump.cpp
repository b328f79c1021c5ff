#include "../context.h"
#include "../place.h"
#include "../text.h"

#include <algorithm>
#include <fmt/format.h>

namespace lararium::cli {
namespace {

class Hexdump final : public Command {
public:
  void describe(Syntax &syntax) override {
    syntax.argument("ADDRESS", "0x..., phys:0x..., SYMBOL or SYMBOL+0x...", address_);
    syntax.argument("LENGTH", "bytes, 256 if left out; the VM must be named when it is given", length_);
    syntax.option("-p,--pid", "PID", "in this process' address space instead of the kernel's", pid_);
  }

  Result<void> run(Context &context) override {
    constexpr std::uint64_t most = 64 << 20;
    const auto length = parse_size(length_.value_or("256"));
    if (!length || *length > most)
      return fail(ErrorCode::usage, fmt::format("not a length up to 64M: {}", visible(*length_)));
    TRY_ASSIGN(const Place place, resolve_place(context, address_, pid_));
    TRY_ASSIGN(const PlaceReader reader, PlaceReader::open(context, place));
    // Page by page, so that what can be read behind a hole is shown too.
    std::vector<std::byte> buffer(*length);
    std::vector<bool> readable;
    std::uint64_t first_fault = *length;
    for (std::uint64_t done = 0; done < *length;) {
      const std::uint64_t to_page_end = page_size - ((place.address + done) & page_mask);
      const std::size_t wanted = std::min(*length - done, to_page_end);
      TRY_ASSIGN(const std::size_t got, reader.read(done, std::span(buffer).subspan(done, wanted)));
      readable.resize(done + got, true);
      readable.resize(done + wanted, false);
      if (got < wanted)
        first_fault = std::min(first_fault, done + got);
      done += wanted;
    }
    TRY(context.release_pause());
    if (first_fault == 0 && std::ranges::find(readable, true) == readable.end() && *length > 0)
      return std::unexpected(reader.fault_at(0));
    if (context.options.json)
      return print_json(context, place, buffer, readable);
    print(context, place, buffer, readable);
    return {};
  }

private:
  static constexpr std::size_t per_line = 16;

  static Result<void> print_json(Context &context, const Place &place, Bytes bytes, const std::vector<bool> &readable) {
    JsonWriter json = context.begin_document("hexdump", nullptr);
    json.key("items").begin_array(); // one for each line; unreadable bytes are "??"
    std::string hex;
    for (std::size_t line = 0; line < bytes.size(); line += per_line) {
      hex.clear();
      for (std::size_t i = line; i < std::min(line + per_line, bytes.size()); ++i)
        readable[i] ? void(fmt::format_to(std::back_inserter(hex), "{:02x}", std::to_integer<unsigned>(bytes[i])))
                    : void(hex += "??");
      json.begin_object().key("address").hex(place.address + line);
      json.member("data_hex", hex).end_object();
    }
    json.end_array();
    return context.end_document(json);
  }

  // The layout of `hexdump -C`, with a mark on lines that repeat.
  static void print(Context &context, const Place &place, Bytes bytes, const std::vector<bool> &readable) {
    Output &out = context.out;
    const int digits = place.kind == Place::Kind::physical ? 10 : 16;
    bool repeating = false;
    for (std::size_t line = 0; line < bytes.size(); line += per_line) {
      const std::size_t count = std::min(per_line, bytes.size() - line);
      const auto same_as_before = [&] {
        if (line < per_line || count < per_line)
          return false;
        for (std::size_t i = line; i < line + count; ++i)
          if (bytes[i] != bytes[i - per_line] || readable[i] != readable[i - per_line])
            return false;
        return true;
      };
      if (line + count < bytes.size() && same_as_before()) {
        if (!repeating)
          out.buffer() += "*\n";
        repeating = true;
        continue;
      }
      repeating = false;
      out.styled(Style::dim, fmt::format("{:0{}x}", place.address + line, digits));
      out.buffer() += ' ';
      for (std::size_t i = 0; i < per_line; ++i) {
        out.buffer() += i == 8 ? "  " : " ";
        if (i >= count)
          out.buffer() += "  ";
        else if (!readable[line + i])
          out.styled(Style::red, "??");
        else if (bytes[line + i] == std::byte{0})
          out.styled(Style::dim, "00");
        else
          fmt::format_to(std::back_inserter(out.buffer()), "{:02x}", std::to_integer<unsigned>(bytes[line + i]));
      }
      out.buffer() += "  |";
      for (std::size_t i = line; i < line + count; ++i) {
        const auto character = std::to_integer<char>(bytes[i]);
        out.buffer() += readable[i] && character >= 0x20 && character < 0x7f ? character : '.';
      }
      out.buffer() += "|\n";
    }
  }

  std::string address_;
  std::optional<std::string> length_;
  std::optional<std::int32_t> pid_;
};

LARARIUM_COMMAND(Hexdump, "hexdump", memory, vm, "guest memory in hexadecimal and ASCII")

} // namespace
} // namespace lararium::cli
