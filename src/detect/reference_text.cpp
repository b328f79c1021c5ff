#include "reference_text.h"

#include <Zydis/Zydis.h>
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <fmt/format.h>
#include <optional>

namespace lararium::detect {

using linux_guest::CodeSites;
using linux_guest::Kernel;
using linux_guest::LayoutResolver;

namespace {

constexpr std::size_t window_bytes = 64 << 10, slack = 256; // no place is longer than 255 bytes
constexpr std::size_t site_limit = 1 << 20;
constexpr std::size_t line_bytes = 64;
constexpr std::size_t part_limit = 64; // instructions in one place

std::uint64_t moved(std::uint64_t place, std::int32_t distance) {
  return place + static_cast<std::uint64_t>(std::int64_t{distance});
}

// Where two ranges of one size differ next, from `at` on; their size where they do not.
std::size_t next_difference(Bytes a, Bytes b, std::size_t at) {
  for (; at + 8 <= a.size(); at += 8) {
    std::uint64_t x = 0, y = 0;
    std::memcpy(&x, a.data() + at, sizeof x);
    std::memcpy(&y, b.data() + at, sizeof y);
    if (x != y)
      return at + static_cast<std::size_t>(std::countr_zero(x ^ y)) / 8;
  }
  while (at < a.size() && a[at] == b[at])
    ++at;
  return at;
}

unsigned byte_at(Bytes bytes, std::size_t i) { return i < bytes.size() ? std::to_integer<unsigned>(bytes[i]) : 0x100U; }

// One instruction, as far as it matters for being the same as another.
struct Part {
  Bytes bytes;
  ZydisMnemonic mnemonic{};
  bool is_branch = false;   // direct
  bool is_inside = false;   // it leads to another place of the same code; `place` is the distance from its begin
  std::optional<Gva> place; // that it leads to, or that it uses relative to itself
  std::size_t field = 0, width = 0; // where in its bytes that stands
};

std::optional<std::vector<Part>> parts_of(Bytes code, Gva address, std::optional<Gva> return_thunk = {}) {
  ZydisDecoder decoder;
  ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
  std::vector<Part> parts;
  for (std::size_t at = 0; at < code.size();) {
    ZydisDecodedInstruction raw;
    if (parts.size() >= part_limit ||
        !ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&decoder, nullptr, code.data() + at, code.size() - at, &raw)))
      return std::nullopt;
    const Bytes bytes = code.subspan(at, raw.length);
    const Gva next = address + (at + raw.length);
    at += raw.length;
    if (raw.mnemonic == ZYDIS_MNEMONIC_NOP || raw.mnemonic == ZYDIS_MNEMONIC_INT3 || linux_guest::is_long_nop(bytes))
      continue;
    Part part{bytes, raw.mnemonic, false, false, std::nullopt, 0, 0};
    if (raw.raw.imm[0].is_relative) {
      part.is_branch = true;
      part.place = next + static_cast<std::uint64_t>(raw.raw.imm[0].value.s);
      // Over a run of nops the kernel may write a jump to its end.
      if (raw.mnemonic == ZYDIS_MNEMONIC_JMP && *part.place >= next && *part.place - address <= code.size()) {
        at = *part.place - address;
        continue;
      }
      if (*part.place >= address && *part.place - address <= code.size()) {
        part.is_inside = true;
        part.place = Gva{*part.place - address};
      } else if (part.mnemonic == ZYDIS_MNEMONIC_JMP && part.place == return_thunk) {
        part = {bytes, ZYDIS_MNEMONIC_RET, false, false, std::nullopt, 0, 0}; // which it stands for
      }
    } else if (raw.raw.disp.size == 32 && (raw.attributes & ZYDIS_ATTRIB_HAS_MODRM) != 0 && raw.raw.modrm.mod == 0 &&
               raw.raw.modrm.rm == 5) {
      part.place = next + static_cast<std::uint64_t>(raw.raw.disp.value);
      part.field = raw.raw.disp.offset;
      part.width = 4;
    }
    parts.push_back(part);
  }
  return parts;
}

bool is_same_part(const Part &expected, const Part &found, std::uint32_t slide) {
  if (expected.mnemonic != found.mnemonic || expected.is_branch != found.is_branch ||
      expected.is_inside != found.is_inside || expected.place.has_value() != found.place.has_value())
    return false;
  // What belongs to a CPU did not move, and its distance was corrected for that (until 6.15).
  if (expected.place && expected.place != found.place &&
      (expected.is_branch || static_cast<std::uint32_t>(expected.place->value - found.place->value) != slide))
    return false;
  if (expected.is_branch || expected.mnemonic == ZYDIS_MNEMONIC_RET)
    return true;
  if (expected.bytes.size() != found.bytes.size() || expected.field != found.field)
    return false;
  for (std::size_t at = 0; at < expected.bytes.size();) {
    if (expected.bytes[at] == found.bytes[at] || (at >= expected.field && at < expected.field + expected.width) ||
        (at == 0 && byte_at(expected.bytes, 0) == 0xf0 && byte_at(found.bytes, 0) == 0x3e)) { // lock, on one CPU
      ++at;
      continue;
    }
    std::size_t past = at;
    if (!is_moved_address(expected.bytes, found.bytes, at, slide, past, true))
      return false;
    at = past;
  }
  return true;
}

// Only what may fill the rest of a place.
bool is_filling(Bytes bytes) {
  const auto parts = parts_of(bytes, Gva{});
  return parts && parts->empty();
}

} // namespace

bool is_moved_address(Bytes expected, Bytes found, std::size_t at, std::uint32_t slide, std::size_t &past,
                      bool is_code) {
  // Kernels move by multiples of 2 MiB (CONFIG_PHYSICAL_ALIGN): the two low bytes stay.
  for (const std::size_t low : {std::size_t{2}, std::size_t{3}}) {
    if (at < low)
      continue;
    const auto was = load<std::uint32_t>(expected, at - low), is = load<std::uint32_t>(found, at - low);
    if (!was || !is)
      continue;
    // The lower half of an address in the image, which is linked within the first GiB from 0xffffffff80000000 on. Code
    // also has physical addresses, and distances to such.
    const bool is_address = (is_code || (*was >= 0x80000000 && *was < 0xc0000000)) && *is - *was == slide;
    // Where there are texts, letters that change are no distance.
    const bool is_text = !is_code && std::ranges::all_of(expected.subspan(at - low, 4), [](std::byte byte) {
      return byte >= std::byte{' '} && byte <= std::byte{'~'};
    });
    if (is_address || (!is_text && *was - *is == slide)) {
      past = at - low + 4;
      return true;
    }
  }
  return false;
}

bool is_same_code(Bytes expected, Gva expected_at, Bytes found, Gva found_at, std::uint32_t slide,
                  std::optional<Gva> return_thunk) {
  const auto wanted = parts_of(expected, expected_at, return_thunk), there = parts_of(found, found_at, return_thunk);
  if (!wanted || !there || wanted->size() != there->size())
    return false;
  return std::ranges::equal(*wanted, *there, [&](const Part &a, const Part &b) { return is_same_part(a, b, slide); });
}

Result<ReferenceText> ReferenceText::create(const KernelFile &file, const Kernel &kernel) {
  if (file.build_id().size == 0 || file.build_id() != kernel.profile().build_id())
    return fail(ErrorCode::usage, fmt::format("the reference is of the build {}, the guest runs the build {}",
                                              file.build_id().size == 0 ? "(none)" : file.build_id().hex(),
                                              kernel.profile().build_id().hex()));
  const auto *text = file.section(".text");
  const auto begin = kernel.symbol("_stext"), end = kernel.symbol("_etext");
  if (text == nullptr || !begin || !end || *end <= *begin || *end - *begin > text->content.size())
    return fail(ErrorCode::not_found, "the reference and the guest's symbols do not agree on where the text lies");
  ReferenceText reference(file, begin->value - text->address);
  reference.is_image_ = true;
  reference.kernel_text_ = {text->address, text->address + (*end - *begin)};
  reference.code_ = {reference.kernel_text_};

  const auto data = kernel.symbol("__start_rodata"), data_end = kernel.symbol("__end_rodata");
  const auto later = kernel.symbol("__start_ro_after_init"), later_end = kernel.symbol("__end_ro_after_init");
  if (data && data_end && *data < *data_end) {
    if (later && later_end && *data <= *later && *later <= *later_end && *later_end <= *data_end) {
      reference.data_.push_back({reference.linked(*data), reference.linked(*later)});
      reference.data_.push_back({reference.linked(*later_end), reference.linked(*data_end)});
    } else {
      reference.data_.push_back({reference.linked(*data), reference.linked(*data_end)});
    }
  }

  reference.add_sites_of_sections(kernel);
  reference.add_tables_of_image(kernel);
  reference.add_constants(kernel);
  reference.order_sites();
  return reference;
}

Result<ReferenceText> ReferenceText::of_module(const RelocatedModule &module, std::vector<Range> code,
                                               std::vector<Range> data, const Kernel &kernel) {
  const auto begin = kernel.symbol("_stext"), end = kernel.symbol("_etext");
  if (!begin || !end || *end <= *begin)
    return fail(ErrorCode::not_found, "the kernel's symbols do not say where its text lies");
  ReferenceText reference(module, 0);
  reference.kernel_text_ = {begin->value, end->value};
  reference.code_ = std::move(code);
  reference.data_ = std::move(data);
  reference.add_sites_of_sections(kernel);
  const auto table = [&](std::string_view name) -> Table {
    const auto *section = module.section(name);
    return section == nullptr ? Table() : Table{section->address, section->content};
  };
  reference.add_tracers(table("__mcount_loc"));
  reference.add_static_calls(table(".static_call_sites"));
  reference.add_jump_labels(table("__jump_table"), kernel);
  for (const std::uint64_t place : module.trampolines())
    if (reference.sites_.size() < site_limit)
      reference.sites_.push_back({place, 8, Kind::trampoline, 0, 0});
  for (const RelocatedModule::Place &place : module.unknown())
    reference.sites_.push_back({place.at, place.length, Kind::unknown, 0, 0});
  reference.order_sites();
  return reference;
}

void ReferenceText::add_sites_of_sections(const Kernel &kernel) {
  return_thunk_ = kernel.symbol("__x86_return_thunk");
  constexpr std::uint8_t branch = 5;
  add_relative(".retpoline_sites", 6, Kind::retpoline); // 6: conditional ones
  add_relative(".return_sites", branch, Kind::ret);
  add_relative(".call_sites", branch, Kind::call);
  add_relative(".ibt_endbr_seal", 4, Kind::endbr);
  add_relative(".smp_locks", 1, Kind::lock);
  add_alternatives(kernel);
  add_paravirt();
}

// Those outside of what is compared are away: tables also name initialisation code.
void ReferenceText::order_sites() {
  std::erase_if(sites_, [&](const Site &site) {
    const auto holds = [&](const Range &range) { return site.at >= range.begin && site.at < range.end; };
    const bool is_in_data = site.kind == Kind::unknown && std::ranges::any_of(data_, holds);
    return site.length == 0 || (!is_in_data && std::ranges::none_of(code_, holds));
  });
  std::ranges::sort(sites_, {}, &Site::at);
}

// Distances of 4 bytes, each from its own place.
void ReferenceText::add_relative(std::string_view section, std::uint8_t length, Kind kind) {
  const auto *table = file_->section(section);
  if (table == nullptr)
    return;
  for (std::size_t at = 0; at + 4 <= table->content.size() && sites_.size() < site_limit; at += 4) {
    const auto distance = *load<std::int32_t>(table->content, at);
    sites_.push_back({table->address + at + static_cast<std::uint64_t>(std::int64_t{distance}), length, kind, 0, 0});
  }
}

void ReferenceText::add_alternatives(const Kernel &kernel) {
  const auto *table = file_->section(".altinstructions");
  const LayoutResolver layout(kernel.types());
  const auto site = layout.optional("alt_instr", "instr_offset"),
             replacement = layout.optional("alt_instr", "repl_offset"),
             length = layout.optional("alt_instr", "instrlen"),
             replacement_length = layout.optional("alt_instr", "replacementlen");
  const auto size = kernel.types().size_of("alt_instr");
  if (table == nullptr || !site || !replacement || !length || !replacement_length || !size || *size < 10 || *size > 64)
    return;
  for (std::size_t at = 0; at + *size <= table->content.size() && sites_.size() < site_limit; at += *size) {
    const auto target = [&](std::uint64_t field) {
      const auto distance = load<std::int32_t>(table->content, at + field);
      return table->address + at + field + static_cast<std::uint64_t>(std::int64_t{distance.value_or(0)});
    };
    const auto small = [&](std::uint64_t field) { return load<std::uint8_t>(table->content, at + field).value_or(0); };
    sites_.push_back({target(site->offset), small(length->offset), Kind::alternative, target(replacement->offset),
                      small(replacement_length->offset)});
  }
}

// struct paravirt_patch_site, until 6.7: the place's address, a type, the length.
void ReferenceText::add_paravirt() {
  const auto *table = file_->section(".parainstructions");
  if (table == nullptr)
    return;
  constexpr std::size_t size = 16, length_at = 9; // the last one has no padding behind it
  for (std::size_t at = 0; at + length_at < table->content.size() && sites_.size() < site_limit; at += size)
    sites_.push_back({*load<std::uint64_t>(table->content, at), *load<std::uint8_t>(table->content, at + length_at),
                      Kind::paravirt, 0, 0});
}

// Constants that the kernel puts into its code at boot (86e6b1547b3d, 6.11), a section for each: distances of the
// places. They must hold what the variable holds; where no symbol tells of the variable, what the first of them holds.
void ReferenceText::add_constants(const Kernel &kernel) {
  constexpr std::string_view pointer = "runtime_ptr_", shift = "runtime_shift_";
  for (const LinkedSection &section : file_->sections()) {
    const bool is_pointer = section.name.starts_with(pointer);
    if (!is_pointer && !section.name.starts_with(shift))
      continue;
    const auto variable = kernel.symbol(section.name.substr(is_pointer ? pointer.size() : shift.size()));
    const std::size_t first = sites_.size();
    add_relative(section.name, is_pointer ? 8 : 1, Kind::constant);
    if (sites_.size() == first)
      continue;
    const auto value = kernel.read<std::uint64_t>(variable ? *variable : here(sites_[first].at));
    if (!value)
      continue;
    for (std::size_t i = first; i < sites_.size(); ++i)
      sites_[i].other = *value;
  }
}

// Tables with no section of their own: the guest's symbols say where they lie, the file what they hold.
void ReferenceText::add_tables_of_image(const Kernel &kernel) {
  const auto table = [&](const char *first, const char *last) -> Table {
    const auto begin = kernel.symbol(first), end = kernel.symbol(last);
    return begin && end && *end > *begin ? Table{linked(*begin), file_->at(linked(*begin), *end - *begin)} : Table();
  };
  add_tracers(table("__start_mcount_loc", "__stop_mcount_loc"));
  add_static_calls(table("__start_static_call_sites", "__stop_static_call_sites"));
  add_jump_labels(table("__start___jump_table", "__stop___jump_table"), kernel);
  for (const Gva place : CodeSites::patchable_symbols(kernel))
    if (sites_.size() < site_limit)
      sites_.push_back({linked(place), 8, Kind::trampoline, 0, 0});
}

void ReferenceText::add_tracers(const Table &table) {
  for (std::size_t at = 0; at + 8 <= table.content.size() && sites_.size() < site_limit; at += 8)
    sites_.push_back({*load<std::uint64_t>(table.content, at), 5, Kind::tracer, 0, 0});
}

void ReferenceText::add_static_calls(const Table &table) {
  for (std::size_t at = 0; at + 8 <= table.content.size() && sites_.size() < site_limit; at += 8)
    sites_.push_back({moved(table.address + at, *load<std::int32_t>(table.content, at)), 6, Kind::static_call, 0, 0});
}

void ReferenceText::add_jump_labels(const Table &table, const Kernel &kernel) {
  if (kernel.types().size_of("jump_entry") != 16)
    return;
  for (std::size_t at = 0; at + 16 <= table.content.size() && sites_.size() < site_limit; at += 16) {
    const std::uint64_t place = table.address + at;
    sites_.push_back({moved(place, *load<std::int32_t>(table.content, at)), 5, Kind::jump_label,
                      moved(place + 4, *load<std::int32_t>(table.content, at + 4)), 0});
  }
}

void ReferenceText::look(const Kernel &kernel, const CodeSites &now, const Give &give) const {
  std::vector<std::byte> buffer;
  const auto look_at = [&](std::uint64_t begin, std::uint64_t end, bool is_code) {
    for (const LinkedSection &section : file_->sections()) {
      const std::uint64_t first = std::max(begin, section.address),
                          last = std::min(end, section.address + section.content.size());
      for (std::uint64_t at = first; at < last; at += window_bytes) {
        // A place may begin before the window, and end behind it.
        const std::uint64_t from = std::max(first, at - std::min<std::uint64_t>(slack, at)),
                            to = std::min(last, at + window_bytes + slack);
        buffer.assign(to - from, std::byte{});
        if (kernel.space().read_prefix(here(from), buffer) != buffer.size())
          continue; // a page that is not there: look_at_mapping() and the step through the code tell of it
        const Bytes expected = section.content.subspan(from - section.address, to - from);
        const std::uint64_t end_of_window = std::min(last, at + window_bytes);
        if (std::memcmp(expected.data(), buffer.data(), buffer.size()) == 0)
          continue;
        compare(from, expected, buffer, is_code, section.name == ".rodata", now, [&](const Difference &difference) {
          const std::uint64_t place = linked(difference.at);
          if (place >= at && place < end_of_window)
            give(difference);
        });
      }
    }
  };
  for (const Range &range : code_)
    look_at(range.begin, range.end, true);
  for (const Range &range : data_)
    look_at(range.begin, range.end, false);
}

void ReferenceText::compare(std::uint64_t begin, Bytes expected, Bytes found, bool is_code, bool has_texts,
                            const CodeSites &now, const Give &give) const {
  for (std::size_t at = next_difference(expected, found, 0); at < expected.size();
       at = next_difference(expected, found, at)) {
    // On some processors the kernel takes a list of options apart that is a constant of its own, before its data are
    // sealed (__check_quirks_intel()).
    const bool is_separator = is_image_ && !is_code && expected[at] == std::byte{','} && found[at] == std::byte{};
    if (is_separator) {
      ++at;
      continue;
    }
    std::size_t past = at;
    if (is_code || !is_image_)
      past = std::min<std::size_t>(past_site(begin + at, begin, found, now) - begin, expected.size());
    if (past != at || is_moved_address(expected, found, at, static_cast<std::uint32_t>(slide_), past, !has_texts)) {
      at = past;
      continue;
    }
    // To the end of the line, less what is the same there again.
    std::size_t end = std::min(expected.size(), at + line_bytes - (begin + at) % line_bytes);
    while (end > at + 1 && expected[end - 1] == found[end - 1])
      --end;
    give({here(begin + at), expected.subspan(at, end - at), found.subspan(at, end - at), is_code});
    at += line_bytes - (begin + at) % line_bytes;
  }
}

std::uint64_t ReferenceText::past_site(std::uint64_t at, std::uint64_t begin, Bytes found, const CodeSites &now) const {
  // What is being changed now, and probes: an int3, or a jump of five bytes.
  for (const Gva place : now.patching)
    if (at >= linked(place) && at < linked(place) + 6)
      return linked(place) + 6;
  for (const linux_guest::Probe &probe : now.kprobes) {
    const std::uint64_t length = probe.is_optimised ? 5 : 1;
    if (at >= linked(probe.address) && at < linked(probe.address) + length)
      return linked(probe.address) + length;
  }
  const auto first = std::ranges::lower_bound(sites_, at - std::min<std::uint64_t>(at, slack), {}, &Site::at);
  std::uint64_t past = at;
  for (auto site = first; site != sites_.end() && site->at <= at; ++site) {
    if (at >= site->at + site->length || site->at < begin || site->at - begin >= found.size())
      continue;
    const Bytes there = clamp_subspan(found, site->at - begin, site->length);
    if (is_lawful(*site, there))
      past = std::max(past, site->at + site->length);
  }
  return past;
}

bool ReferenceText::is_lawful_branch(Bytes found, std::uint64_t low, std::uint64_t high, std::uint64_t site) const {
  const auto target = linux_guest::branch_target(here(site), found);
  return target && linked(*target) >= low && linked(*target) <= high;
}

bool ReferenceText::is_lawful(const Site &site, Bytes found) const {
  const Bytes expected = file_->at(site.at, found.size());
  if (expected.empty())
    return false;
  const auto slide = static_cast<std::uint32_t>(slide_);
  const unsigned first = byte_at(found, 0);
  switch (site.kind) {
  case Kind::constant: return found.size() == site.length && std::memcmp(found.data(), &site.other, site.length) == 0;
  case Kind::unknown: return true;
  case Kind::lock: return byte_at(expected, 0) == 0xf0 && first == 0x3e;
  case Kind::endbr: // a nop, or ud1 in its place
    return is_filling(found) || (first == 0x0f && byte_at(found, 1) == 0xb9);
  case Kind::tracer: // where a call leads is judged with all others
    return linux_guest::is_long_nop(found) || first == 0xe8 || first == 0xe9;
  case Kind::jump_label:
    return linux_guest::is_lawful_jump_label(found, {here(site.at), here(site.other)}) ||
           (found.size() >= 2 && is_filling(found.first(2)));
  case Kind::static_call:
  case Kind::trampoline: {
    if (first == 0xe8 || first == 0xe9 || (first == 0x0f && (byte_at(found, 1) & 0xf0) == 0x80))
      return true; // judged with all others
    constexpr std::array<std::uint8_t, 5> zero{0x2e, 0x2e, 0x2e, 0x31, 0xc0}, zero_before{0x66, 0x66, 0x48, 0x31, 0xc0};
    const auto is = [&](const auto &code) {
      return found.size() >= code.size() && std::memcmp(found.data(), code.data(), code.size()) == 0;
    };
    constexpr std::array<std::uint8_t, 5> warning{0x67, 0x48, 0x0f, 0xb9, 0x3a}; // ud1, which says where to look
    return linux_guest::is_long_nop(found) || is(zero) || is(zero_before) || is(warning) || first == 0xc3;
  }
  case Kind::ret:
    return first == 0xc3 || (first == 0xe9 && is_lawful_branch(found, kernel_text_.begin, kernel_text_.end, site.at));
  case Kind::call: { // with call depth tracking it leads to the padding before the function
    const auto target = linux_guest::branch_target(Gva{site.at}, expected);
    constexpr std::uint64_t padding = 64;
    return target && first == 0xe8 && is_lawful_branch(found, target->value - padding, target->value, site.at);
  }
  case Kind::retpoline: {
    // An indirect branch, with or without lfence, or a direct one to another thunk; a conditional one becomes one over
    // it (6 bytes). The next instruction's bytes may belong to what was read.
    const auto parts = parts_of(found.first(std::min<std::size_t>(found.size(), 5)), here(site.at));
    const auto longer = parts_of(found, here(site.at));
    for (const auto *each : {&parts, &longer})
      if (*each && std::ranges::all_of(**each, [&](const Part &part) {
            return part.mnemonic == ZYDIS_MNEMONIC_LFENCE ||
                   (part.is_branch ? part.is_inside || is_text(*part.place)
                                   : part.mnemonic == ZYDIS_MNEMONIC_CALL || part.mnemonic == ZYDIS_MNEMONIC_JMP);
          }))
        return true;
    return false;
  }
  case Kind::paravirt: { // a direct call, or an instruction or two in its place, none of which leads elsewhere
    const auto parts = parts_of(found, here(site.at));
    return parts && parts->size() <= 3 && std::ranges::all_of(*parts, [&](const Part &part) {
             return part.is_branch ? part.is_inside || is_text(*part.place)
                                   : part.mnemonic != ZYDIS_MNEMONIC_JMP && part.mnemonic != ZYDIS_MNEMONIC_RET;
           });
  }
  case Kind::alternative: {
    if (is_same_code(expected, here(site.at), found, here(site.at), slide, return_thunk_))
      return true;
    const Bytes replacement = site.other_length == 0 ? Bytes() : file_->at(site.other, site.other_length);
    if (is_same_code(replacement, here(site.other), found, here(site.at), slide, return_thunk_))
      return true;
    // A call through a pointer of paravirt that became a direct one, or nothing (ALT_FLAG_DIRECT_CALL, 6.8).
    if (byte_at(expected, 0) != 0xff)
      return false;
    return is_filling(found) ||
           (first == 0xe8 && is_lawful_branch(found, kernel_text_.begin, kernel_text_.end, site.at) &&
            is_filling(found.subspan(std::min<std::size_t>(5, found.size()))));
  }
  }
  return false;
}

} // namespace lararium::detect
