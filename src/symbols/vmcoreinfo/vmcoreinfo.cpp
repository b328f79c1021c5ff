#include "lararium/symbols/vmcoreinfo.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cstring>
#include <elf.h>

namespace lararium {
namespace {

using namespace std::string_view_literals;

constexpr std::string_view first_key = "OSRELEASE=";
constexpr std::string_view note_owner = "VMCOREINFO\0"sv;  // VMCOREINFO_NOTE_NAME with its NUL: n_namesz 11
constexpr std::size_t note_text = sizeof(Elf64_Nhdr) + 12; // the owner is padded to 12 bytes

template <class T> std::optional<T> parse_number(std::string_view text, int base) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc{} || end != text.data() + text.size())
    return std::nullopt;
  return value;
}

bool is_release_char(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || ".-_+~:"sv.contains(c);
}

// "6.1.0-50-amd64": a number, a dot, a number, then anything that a release may hold (__NEW_UTS_LEN is 64).
bool is_release(std::string_view text) {
  const auto digits = [&](std::size_t from) {
    while (from < text.size() && text[from] >= '0' && text[from] <= '9')
      ++from;
    return from;
  };
  const std::size_t dot = digits(0);
  return text.size() <= 64 && dot > 0 && dot < text.size() && text[dot] == '.' && digits(dot + 1) > dot + 1 &&
         std::ranges::all_of(text, is_release_char);
}

bool is_printable(char c) { return c >= ' ' && c < 0x7f; }

// Takes the next line off `text`; false at its end.
bool next_line(std::string_view &text, std::string_view &line) {
  if (text.empty())
    return false;
  const std::size_t end = std::min(text.find('\n'), text.size());
  line = text.substr(0, end);
  text.remove_prefix(std::min(end + 1, text.size()));
  return true;
}

} // namespace

Result<Vmcoreinfo> Vmcoreinfo::parse(std::string_view text) {
  text = text.substr(0, text.find('\0'));
  if (text.size() > max_text)
    return fail(ErrorCode::corrupt, "VMCOREINFO is longer than 64 KiB");
  if (!text.starts_with(first_key))
    return fail(ErrorCode::corrupt, "VMCOREINFO does not start with OSRELEASE");
  const Vmcoreinfo info{std::string(text)};

  std::string_view rest = info.text_, line;
  std::size_t lines = 0, symbols = 0;
  while (next_line(rest, line)) {
    const std::size_t equals = line.find('=');
    if (++lines > max_lines || (!line.empty() && (equals == 0 || equals == std::string_view::npos)) ||
        !std::ranges::all_of(line, is_printable))
      return fail(ErrorCode::corrupt, "VMCOREINFO has a line that is not key=value");
    if (line.starts_with("SYMBOL(") && parse_number<std::uint64_t>(line.substr(equals + 1), 16))
      ++symbols;
  }
  if (!is_release(info.release()))
    return fail(ErrorCode::corrupt, "VMCOREINFO names no kernel release");
  if (const auto page = info.guest_page_size(); !std::has_single_bit(page) || page < 4096 || page > (1U << 20))
    return fail(ErrorCode::corrupt, "VMCOREINFO has no plausible page size");
  if (symbols < 3)
    return fail(ErrorCode::corrupt, "VMCOREINFO names hardly a symbol");
  return info;
}

std::optional<std::size_t> vmcoreinfo_text_offset(Bytes head) {
  const auto starts_with = [&](std::size_t at, std::string_view text) {
    return head.size() >= at + text.size() && std::memcmp(head.data() + at, text.data(), text.size()) == 0;
  };
  if (starts_with(0, first_key))
    return 0;
  const auto header = load<Elf64_Nhdr>(head, 0);
  if (header && header->n_namesz == note_owner.size() && header->n_descsz >= first_key.size() &&
      header->n_descsz <= Vmcoreinfo::max_text && starts_with(sizeof(Elf64_Nhdr), note_owner) &&
      starts_with(note_text, first_key))
    return note_text;
  return std::nullopt;
}

Result<Vmcoreinfo> Vmcoreinfo::read(Bytes memory) {
  const Bytes window = clamp_subspan(memory, 0, note_text + max_text + 1);
  const std::string copy(reinterpret_cast<const char *>(window.data()), window.size());
  const auto start = vmcoreinfo_text_offset(bytes_of(copy));
  if (!start)
    return fail(ErrorCode::not_found, "there is no VMCOREINFO here");
  auto text = std::string_view(copy).substr(*start);
  if (*start != 0)
    text = text.substr(0, load<Elf64_Nhdr>(bytes_of(copy), 0)->n_descsz);
  return parse(text);
}

std::optional<std::string_view> Vmcoreinfo::value(std::string_view key) const {
  std::string_view rest = text_, line;
  while (next_line(rest, line))
    if (line.size() > key.size() && line[key.size()] == '=' && line.starts_with(key))
      return line.substr(key.size() + 1);
  return std::nullopt;
}

// The value of "kind(name)".
std::optional<std::string_view> Vmcoreinfo::value(std::string_view kind, std::string_view name) const {
  std::string key(kind);
  key += '(';
  key += name;
  key += ')';
  return value(key);
}

std::string_view Vmcoreinfo::release() const { return value("OSRELEASE").value_or(""); }

std::uint64_t Vmcoreinfo::guest_page_size() const {
  return parse_number<std::uint64_t>(value("PAGESIZE").value_or(""), 10).value_or(0);
}

std::optional<BuildId> Vmcoreinfo::build_id() const {
  const auto text = value("BUILD-ID").value_or("");
  BuildId id;
  if (text.empty() || text.size() % 2 != 0 || text.size() / 2 > id.bytes.size())
    return std::nullopt;
  for (std::size_t i = 0; i < text.size() / 2; ++i) {
    const auto byte = parse_number<std::uint8_t>(text.substr(2 * i, 2), 16);
    if (!byte)
      return std::nullopt;
    id.bytes[i] = *byte;
  }
  id.size = static_cast<std::uint8_t>(text.size() / 2);
  return id;
}

std::optional<std::uint64_t> Vmcoreinfo::kernel_offset() const {
  return parse_number<std::uint64_t>(value("KERNELOFFSET").value_or(""), 16);
}

std::optional<std::int64_t> Vmcoreinfo::crash_time() const {
  return parse_number<std::int64_t>(value("CRASHTIME").value_or(""), 10);
}

std::optional<Gva> Vmcoreinfo::symbol(std::string_view name) const {
  const auto address = parse_number<std::uint64_t>(value("SYMBOL", name).value_or(""), 16);
  return address ? std::optional(Gva{*address}) : std::nullopt;
}

std::optional<std::uint64_t> Vmcoreinfo::size(std::string_view type) const {
  return parse_number<std::uint64_t>(value("SIZE", type).value_or(""), 10);
}

std::optional<std::uint64_t> Vmcoreinfo::offset(std::string_view member) const {
  return parse_number<std::uint64_t>(value("OFFSET", member).value_or(""), 10);
}

std::optional<std::uint64_t> Vmcoreinfo::length(std::string_view name) const {
  return parse_number<std::uint64_t>(value("LENGTH", name).value_or(""), 10);
}

std::optional<std::uint64_t> Vmcoreinfo::number(std::string_view name) const {
  auto text = value("NUMBER", name).value_or("");
  if (text.starts_with("0x"))
    return parse_number<std::uint64_t>(text.substr(2), 16);
  if (text.starts_with("-")) {
    const auto number = parse_number<std::int64_t>(text, 10);
    return number ? std::optional(static_cast<std::uint64_t>(*number)) : std::nullopt;
  }
  return parse_number<std::uint64_t>(text, 10);
}

} // namespace lararium
