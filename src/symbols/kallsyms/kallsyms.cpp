#include "lararium/symbols/kallsyms.h"

#include "name_table.h"
#include "token_table.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace lararium {
namespace {

constexpr std::uint64_t work_limit = 1U << 26;     // names to look at: 16 times max_symbols
constexpr unsigned max_token_tables = 16;          // all but one are planted
constexpr std::uint64_t text_tolerance = 64 << 20; // between the image's base and `_text`
constexpr std::uint64_t max_kernel_size = 1 << 30; // KERNEL_IMAGE_SIZE with KASLR, the largest

// Where the addresses may lie, and how they may be meant.
struct AddressTable {
  bool last = false;
  KallsymsAddresses kind = KallsymsAddresses::absolute;
  std::size_t offset = 0;
  std::uint64_t relative_base = 0;
};

struct Value {
  std::uint64_t value = 0;
  bool absolute = false;
};

// The formulas are kallsyms_sym_address()'s in kernel/kallsyms.c.
Value value_at(Bytes table, const AddressTable &where, Gva base, std::size_t index) {
  if (where.kind == KallsymsAddresses::absolute) {
    const auto value = load<std::uint64_t>(table, index * 8).value_or(0);
    return {value, value >> 63 == 0};
  }
  const auto offset = load<std::int32_t>(table, index * 4).value_or(0);
  const auto extended = static_cast<std::uint64_t>(std::int64_t{offset});
  switch (where.kind) {
  case KallsymsAddresses::base_relative_percpu:
    return offset >= 0 ? Value{extended, true} : Value{where.relative_base - 1 - extended, false};
  case KallsymsAddresses::place_relative: return {base.value + where.offset + index * 4 + extended, false};
  default: return {where.relative_base + static_cast<std::uint32_t>(offset), false};
  }
}

std::size_t align_up(std::size_t value, std::size_t to) { return (value + to - 1) & ~(to - 1); }

} // namespace

std::string_view name_of(KallsymsAddresses addresses) {
  switch (addresses) {
  case KallsymsAddresses::absolute: return "absolute";
  case KallsymsAddresses::base_relative_percpu: return "base-relative, per-CPU absolute";
  case KallsymsAddresses::base_relative: return "base-relative";
  case KallsymsAddresses::place_relative: return "place-relative";
  }
  return "unknown";
}

class KallsymsCarver {
public:
  KallsymsCarver(Bytes image, Gva base) : image_(image), base_(base) {}

  Result<Kallsyms> run() {
    kallsyms::TokenTableSearch search(image_);
    auto error = fail(ErrorCode::not_found, "the kernel image has no kallsyms token table");
    for (unsigned tries = 0; tries < max_token_tables && work_ > 0; ++tries) {
      const auto tokens = search.next();
      if (!tokens)
        break;
      const auto names = kallsyms::find_name_table(image_, tokens->table_offset, work_);
      if (!names) {
        error = fail(ErrorCode::corrupt, "kallsyms has a token table, but no names that agree with their markers");
        continue;
      }
      if (!decode_names(*tokens, *names)) {
        error = fail(ErrorCode::corrupt, "the names of kallsyms exceed every limit");
        continue;
      }
      if (decode_addresses(*tokens, *names))
        return std::move(result_);
      error = fail(ErrorCode::corrupt, "the addresses of kallsyms fit this kernel under no known encoding");
    }
    return error;
  }

private:
  bool decode_names(const kallsyms::TokenTable &tokens, const kallsyms::NameTable &table) {
    auto &entries = result_.entries_;
    entries.assign(table.count, {});
    std::size_t total = 0;
    std::size_t at = 0;
    for (auto &entry : entries) {
      const auto name = kallsyms::codes_at(table.names, at, table.two_byte_lengths, Kallsyms::max_name);
      if (!name)
        return false;
      std::size_t length = 0;
      for (const auto code : name->codes)
        length += tokens.tokens[static_cast<std::uint8_t>(code)].length;
      if (length < 2 || length > Kallsyms::max_name || Kallsyms::max_name_bytes - total < length)
        return false;
      entry.name = static_cast<std::uint32_t>(total + 1); // behind the type, which is a name's first character
      entry.name_length = static_cast<std::uint16_t>(length - 1);
      total += length;
      at = name->next;
    }

    // Nearly every token is short: copying a fixed 16 bytes and advancing by the length is several times faster than
    // an exact copy, and overwritten by the next token.
    constexpr std::size_t step = kallsyms::TokenTable::slack;
    result_.names_ = std::make_unique_for_overwrite<char[]>(total + step);
    char *out = result_.names_.get();
    at = 0;
    std::size_t data_symbols = 0;
    for (auto &entry : entries) {
      const auto name = kallsyms::codes_at(table.names, at, table.two_byte_lengths, Kallsyms::max_name);
      for (const auto code : name->codes) {
        const auto token = tokens.tokens[static_cast<std::uint8_t>(code)];
        const char *text = tokens.text.data() + token.offset;
        if (token.length <= step) [[likely]]
          std::memcpy(out, text, step);
        else
          std::memcpy(out, text, token.length);
        out += token.length;
      }
      entry.type = result_.names_[entry.name - 1];
      data_symbols += std::string_view("bBdDrR").find(entry.type) != std::string_view::npos ? 1 : 0;
      at = name->next;
    }
    // A few data symbols lie in text sections; with CONFIG_KALLSYMS_ALL every third or so is one.
    result_.has_data_symbols_ = data_symbols > entries.size() / 32;
    return true;
  }

  bool decode_addresses(const kallsyms::TokenTable &tokens, const kallsyms::NameTable &names) {
    for (const auto &where : address_tables(tokens, names)) {
      const std::size_t size = names.count * (where.kind == KallsymsAddresses::absolute ? 8 : 4);
      const Bytes live = clamp_subspan(image_, where.offset, size);
      if (live.size() != size)
        continue;
      const std::vector<std::byte> table(live.begin(), live.end());
      for (std::size_t i = 0; i < names.count; ++i) {
        const auto value = value_at(table, where, base_, i);
        result_.entries_[i].value = value.value;
        result_.entries_[i].absolute = value.absolute;
      }
      if (!plausible())
        continue;
      result_.layout_ = {where.last,          where.kind,         names.marker_size,    names.two_byte_lengths,
                         names.count_offset,  names.names_offset, names.markers_offset, tokens.table_offset,
                         tokens.index_offset, where.offset,       where.relative_base};
      return true;
    }
    return false;
  }

  // Every place at which a layout could have its addresses: right before the count, or right behind the token index.
  std::vector<AddressTable> address_tables(const kallsyms::TokenTable &tokens, const kallsyms::NameTable &names) const {
    using enum KallsymsAddresses;
    std::vector<AddressTable> result;
    const auto add_relative = [&](bool last, std::size_t offset, std::size_t base_offset) {
      if (const auto relative_base = load<std::uint64_t>(image_, base_offset)) {
        result.push_back({last, base_relative_percpu, offset, *relative_base});
        result.push_back({last, base_relative, offset, *relative_base});
      }
    };
    const std::size_t offsets = names.count * std::size_t{4}, padded = align_up(offsets, 8);
    add_relative(true, tokens.end, align_up(tokens.end + offsets, 8));
    result.push_back({true, place_relative, tokens.end, 0});
    result.push_back({true, absolute, tokens.end, 0});
    if (names.count_offset >= padded + 8)
      add_relative(false, names.count_offset - 8 - padded, names.count_offset - 8);
    if (names.count_offset >= 2 * offsets)
      result.push_back({false, absolute, names.count_offset - 2 * offsets, 0});
    return result;
  }

  // A wrong encoding turns the order around, or puts the kernel's symbols outside the kernel. A few wrong entries are
  // no reason to refuse all: the table may have been tampered with, or torn.
  bool plausible() const {
    const auto &entries = result_.entries_;
    const std::size_t tolerated = entries.size() / 256;
    std::size_t inversions = 0, outside = 0, relative = 0;
    std::uint64_t previous = 0;
    for (const auto &entry : entries) {
      inversions += entry.value < previous ? 1 : 0;
      previous = entry.value;
      relative += entry.absolute ? 0 : 1;
      outside += !entry.absolute && !in_kernel(entry.value) ? 1 : 0;
    }
    if (inversions > tolerated || outside > tolerated || relative < entries.size() / 2)
      return false;

    // `_text` starts a page. (Offsets to a base, taken as relative to their own places, keep their order, too.)
    const auto text = result_.find("_text"), stext = result_.find("_stext");
    if (const auto start = text ? text : stext;
        start && (start->absolute || start->value - (base_.value - text_tolerance) > 2 * text_tolerance ||
                  (start->value & page_mask) != 0))
      return false;
    constexpr std::string_view banner_start = "Linux version ";
    if (const auto banner = result_.find("linux_banner"); banner && !banner->absolute) {
      const Bytes bytes = clamp_subspan(image_, banner->value - base_.value, banner_start.size());
      if (bytes.size() == banner_start.size() && std::memcmp(bytes.data(), banner_start.data(), bytes.size()) != 0)
        return false;
    }
    return true;
  }

  bool in_kernel(std::uint64_t address) const {
    return address - (base_.value - text_tolerance) < text_tolerance + max_kernel_size;
  }

  Bytes image_;
  Gva base_;
  std::uint64_t work_ = work_limit;
  Kallsyms result_;
};

Result<Kallsyms> Kallsyms::carve(Bytes image, Gva base) {
  if (base.page_offset() != 0)
    return fail(ErrorCode::usage, "the base of a kernel image must be a page boundary");
  return KallsymsCarver(image, base).run();
}

std::optional<KallsymsSymbol> Kallsyms::find(std::string_view name) const {
  for (std::size_t i = 0; i < entries_.size(); ++i)
    if (entries_[i].name_length == name.size() &&
        std::memcmp(names_.get() + entries_[i].name, name.data(), name.size()) == 0)
      return (*this)[i];
  return std::nullopt;
}

} // namespace lararium
