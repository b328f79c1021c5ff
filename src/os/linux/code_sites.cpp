#include "lararium/os/linux/code_sites.h"

#include "lararium/os/linux/list.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace lararium::linux_guest {
namespace {

constexpr std::size_t ftrace_limit = 1 << 20, ftrace_page_limit = 1 << 16;
constexpr std::size_t static_call_limit = 1 << 18, jump_label_limit = 1 << 18;
constexpr std::size_t probe_buckets = 64, probe_limit = 1 << 16; // KPROBE_TABLE_SIZE
constexpr std::size_t patch_limit = 1 << 10;

// struct ftrace_page: arrays of struct dyn_ftrace, in a chain.
void read_ftrace(const Kernel &kernel, CodeSites &sites) {
  const LayoutResolver layout(kernel.types());
  const auto first = kernel.symbol("ftrace_pages_start");
  const auto next = layout.optional("ftrace_page", "next"), records = layout.optional("ftrace_page", "records"),
             count = layout.optional("ftrace_page", "index"), address = layout.optional("dyn_ftrace", "ip");
  const auto size = kernel.types().size_of("dyn_ftrace");
  if (!first || !next || !records || !count || !address || !size || *size < address->offset + 8 || *size > 64)
    return;
  const auto head = kernel.read_pointer(*first);
  if (!head)
    return;
  std::vector<std::byte> buffer;
  walk_chain(kernel, *head, next->offset, ftrace_page_limit, [&](Gva page) {
    const auto array = kernel.read_pointer(page, *records);
    const std::uint64_t claimed = kernel.read_field(page, *count).value_or(0);
    const std::uint64_t taken = std::min<std::uint64_t>(claimed, ftrace_limit - sites.ftrace.size());
    if (!array || taken == 0)
      return sites.ftrace.size() < ftrace_limit;
    buffer.resize(taken * *size);
    const std::size_t whole = kernel.space().read_prefix(*array, buffer) / *size;
    for (std::size_t i = 0; i < whole; ++i) {
      std::uint64_t value = 0;
      std::memcpy(&value, buffer.data() + i * *size + address->offset, sizeof value);
      if (value >> 63 != 0)
        sites.ftrace.push_back(Gva{value});
    }
    return true;
  });
}

// struct static_call_site: distances of the site and of its key, each from its own place.
std::vector<Gva> read_static_calls(const Kernel &kernel, Gva begin, std::uint64_t count) {
  struct Entry {
    std::int32_t site, key;
  };
  std::vector<Entry> entries(std::min<std::uint64_t>(count, static_call_limit));
  entries.resize(kernel.space().read_prefix(begin, std::as_writable_bytes(std::span(entries))) / sizeof(Entry));
  std::vector<Gva> sites;
  for (std::size_t i = 0; i < entries.size(); ++i)
    sites.push_back(begin + i * sizeof(Entry) + static_cast<std::uint64_t>(std::int64_t{entries[i].site}));
  std::ranges::sort(sites);
  return sites;
}

// struct jump_entry: distances of the site and of where the label leads, each from its own place (50ff18ab497a, 4.20).
std::vector<JumpLabel> read_jump_labels(const Kernel &kernel, Gva begin, std::uint64_t count) {
  struct Entry {
    std::int32_t site, target;
    std::int64_t key;
  };
  std::vector<JumpLabel> labels;
  if (kernel.types().size_of("jump_entry") != sizeof(Entry))
    return labels;
  std::vector<Entry> entries(std::min<std::uint64_t>(count, jump_label_limit));
  entries.resize(kernel.space().read_prefix(begin, std::as_writable_bytes(std::span(entries))) / sizeof(Entry));
  const auto from = [](Gva place, std::int32_t distance) {
    return place + static_cast<std::uint64_t>(std::int64_t{distance});
  };
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const Gva place = begin + i * sizeof(Entry);
    labels.push_back({from(place, entries[i].site), from(place + 4, entries[i].target)});
  }
  std::ranges::sort(labels, {}, &JumpLabel::site);
  return labels;
}

void read_kprobes(const Kernel &kernel, CodeSites &sites) {
  const LayoutResolver layout(kernel.types());
  const auto table = kernel.symbol("kprobe_table");
  const auto node = layout.optional("kprobe", "hlist"), address = layout.optional("kprobe", "addr"),
             opcode = layout.optional("kprobe", "opcode"), optimised = layout.optional("optimized_kprobe", "kp"),
             copied = layout.optional("optimized_kprobe", "optinsn.copied_insn");
  if (!table || !node || !address || !opcode)
    return;
  std::array<std::uint64_t, probe_buckets> heads{};
  if (!kernel.space().read(*table, std::as_writable_bytes(std::span(heads))))
    return;
  for (const std::uint64_t head : heads)
    walk_chain(kernel, Gva{head}, 0, probe_limit, [&](Gva link) {
      const Gva probe = link - node->offset;
      const auto at = kernel.read_pointer(probe, *address);
      const auto first = kernel.read_field(probe, *opcode);
      std::byte now{};
      if (!at || !first || !kernel.space().read(*at, writable_bytes_of(now)))
        return true;
      Probe result{*at, {static_cast<std::byte>(*first)}, now == std::byte{0xe9} && *first != 0xe9};
      // An optimised one displaced four bytes more, and keeps them.
      if (result.is_optimised && (!copied || !kernel.space().read(probe - optimised->offset + copied->offset,
                                                                  std::span(result.original).subspan(1))))
        return true;
      sites.kprobes.push_back(result);
      return sites.kprobes.size() < probe_limit;
    });
}

// What text_poke_bp() works on; smp_text_poke_batch() since 6.16.
void read_patching(const Kernel &kernel, CodeSites &sites) {
  const LayoutResolver layout(kernel.types());
  const auto begin = kernel.symbol("_stext");
  if (!begin)
    return;
  std::optional<Gva> vector;
  std::uint64_t count = 0;
  const char *type = "text_poke_loc";
  if (const auto batch = kernel.symbol("text_poke_array")) {
    const auto entries = layout.optional("smp_text_poke_array", "vec"),
               used = layout.optional("smp_text_poke_array", "nr_entries");
    if (!entries || !used)
      return;
    type = "smp_text_poke_loc";
    vector = *batch + entries->offset;
    count = kernel.read_field(*batch, *used).value_or(0);
  } else if (const auto description = kernel.symbol("bp_desc")) {
    const auto entries = layout.optional("bp_patching_desc", "vec"),
               used = layout.optional("bp_patching_desc", "nr_entries");
    if (!entries || !used)
      return;
    vector = kernel.read_pointer(*description, *entries);
    count = kernel.read_field(*description, *used).value_or(0);
    // What was patched last stays there; who patches holds a reference from before the first int3 to after the last.
    if (const auto references = layout.optional("bp_patching_desc", "refs.counter");
        references && kernel.read_field(*description, *references) == 0)
      count = 0;
  }
  const auto distance = layout.optional(type, "rel_addr");
  const auto size = kernel.types().size_of(type);
  if (!vector || !distance || !size)
    return;
  for (std::uint64_t i = 0; i < std::min<std::uint64_t>(count, patch_limit); ++i)
    if (const auto relative = kernel.read_field(*vector + i * *size, *distance))
      sites.patching.push_back(*begin + static_cast<std::uint64_t>(std::int64_t{static_cast<std::int32_t>(*relative)}));
}

} // namespace

CodeSites CodeSites::read(const Kernel &kernel) {
  CodeSites sites;
  sites.read_moments(kernel);
  read_ftrace(kernel, sites);
  if (const auto begin = kernel.symbol("__start_static_call_sites"), end = kernel.symbol("__stop_static_call_sites");
      begin && end && *end > *begin)
    sites.static_calls = read_static_calls(kernel, *begin, (*end - *begin) / 8);
  if (const auto begin = kernel.symbol("__start___jump_table"), end = kernel.symbol("__stop___jump_table");
      begin && end && *end > *begin)
    sites.jump_labels = read_jump_labels(kernel, *begin, (*end - *begin) / 16);
  std::ranges::sort(sites.ftrace);
  return sites;
}

void CodeSites::read_moments(const Kernel &kernel) {
  kprobes.clear();
  patching.clear();
  read_kprobes(kernel, *this);
  read_patching(kernel, *this);
  std::ranges::sort(patching);
  std::ranges::sort(kprobes, {}, &Probe::address);
}

std::vector<Gva> CodeSites::patchable_symbols(const Kernel &kernel) {
  std::vector<Gva> places;
  const Gva base = kernel.location().base;
  const Profile &profile = kernel.profile();
  for (std::size_t i = 0; i < profile.symbol_count(); ++i) {
    const ProfileSymbol symbol = profile.symbol_at(i);
    if (symbol.base != SymbolBase::image)
      break;
    const Gva address = base + symbol.value;
    const bool dispatches = symbol.name.starts_with("bpf_dispatcher_") && symbol.name.ends_with("_func");
    if (symbol.name.starts_with("__SCT__") || symbol.name == "ftrace_call" || symbol.name == "ftrace_regs_call" ||
        symbol.name == "ftrace_graph_call" || dispatches)
      places.push_back(address);
    if (dispatches)
      places.push_back(address + 4); // behind endbr64
  }
  return places;
}

std::vector<Gva> CodeSites::static_calls_of(const Kernel &kernel, Gva module) {
  const LayoutResolver layout(kernel.types());
  const auto sites = layout.optional("module", "static_call_sites"),
             count = layout.optional("module", "num_static_call_sites");
  const auto array = sites ? kernel.read_pointer(module, *sites) : std::nullopt;
  return array && count ? read_static_calls(kernel, *array, kernel.read_field(module, *count).value_or(0))
                        : std::vector<Gva>();
}

std::vector<JumpLabel> CodeSites::jump_labels_of(const Kernel &kernel, Gva module) {
  const LayoutResolver layout(kernel.types());
  const auto entries = layout.optional("module", "jump_entries"), count = layout.optional("module", "num_jump_entries");
  const auto array = entries ? kernel.read_pointer(module, *entries) : std::nullopt;
  return array && count ? read_jump_labels(kernel, *array, kernel.read_field(module, *count).value_or(0))
                        : std::vector<JumpLabel>();
}

bool CodeSites::has_probe(Gva address) const {
  return std::ranges::binary_search(kprobes, address, {}, &Probe::address);
}

std::uint8_t length_of_jump_label(Bytes code) {
  const auto at = [&](std::size_t i) { return i < code.size() ? std::to_integer<unsigned>(code[i]) : 0U; };
  if (at(0) == 0xcc)
    return 0;
  return at(0) == 0xeb || (at(0) == 0x66 && at(1) == 0x90) ? 2 : 5;
}

std::optional<Gva> branch_target(Gva site, Bytes code) {
  if (code.size() >= 2 && code[0] == std::byte{0xeb})
    return site + 2 + static_cast<std::uint64_t>(std::int64_t{static_cast<std::int8_t>(code[1])});
  const bool is_long = code.size() >= 5 && (code[0] == std::byte{0xe8} || code[0] == std::byte{0xe9});
  const bool is_conditional =
      code.size() >= 6 && code[0] == std::byte{0x0f} && (code[1] & std::byte{0xf0}) == std::byte{0x80};
  if (!is_long && !is_conditional)
    return std::nullopt;
  const std::size_t opcode = is_long ? 1 : 2;
  return site + (opcode + 4) + static_cast<std::uint64_t>(std::int64_t{*load<std::int32_t>(code, opcode)});
}

bool is_lawful_jump_label(Bytes code, const JumpLabel &label) {
  if (is_long_nop(code))
    return true;
  if (code.size() >= 2 && code[0] == std::byte{0x66} && code[1] == std::byte{0x90})
    return true;
  return !code.empty() && (code[0] == std::byte{0xeb} || code[0] == std::byte{0xe9}) &&
         branch_target(label.site, code) == label.target;
}

bool CodeSites::has(const std::vector<Gva> &sites, Gva address) { return std::ranges::binary_search(sites, address); }

bool is_long_nop(Bytes code) {
  constexpr std::array<std::array<std::uint8_t, 5>, 4> nops{{
      {0x0f, 0x1f, 0x44, 0x00, 0x00},
      {0x66, 0x66, 0x66, 0x66, 0x90},
      {0x66, 0x66, 0x90, 0x66, 0x90},
      {0x3e, 0x8d, 0x74, 0x26, 0x00},
  }};
  return code.size() >= 5 && std::ranges::any_of(nops, [&](const auto &nop) {
           return std::memcmp(nop.data(), code.data(), nop.size()) == 0;
         });
}

bool is_filling_or_thunks(Bytes code) {
  const auto at = [&](std::size_t i) { return i < code.size() ? std::to_integer<unsigned>(code[i]) : 0U; };
  for (std::size_t i = 0; i < code.size();) {
    if (at(i) == 0xcc || at(i) == 0) {
      ++i;
      continue;
    }
    i += at(i) == 0x41 ? 1 : 0;
    if (at(i) != 0xff || (at(i + 1) & 0xf8) != 0xe0 || at(i + 2) != 0xcc)
      return false;
    i += 3;
  }
  return true;
}

} // namespace lararium::linux_guest
