#include "lawful_writes.h"

#include "lararium/os/linux/modules.h"

#include <algorithm>

namespace lararium::gate {
namespace {

using linux_guest::CodeSites;
using linux_guest::Kernel;
using linux_guest::ModuleRegion;

constexpr std::uint64_t longest_site = 6;
constexpr std::size_t lock_limit = 1 << 18, probed_limit = 1 << 16, trampoline_limit = 1 << 16;
constexpr std::byte breakpoint{0xcc};

// struct s32 smp_locks[]: distances, each from its own place.
std::vector<Gva> read_lock_prefixes(const Kernel &kernel) {
  std::vector<Gva> places;
  const auto begin = kernel.symbol("__smp_locks"), end = kernel.symbol("__smp_locks_end");
  if (!begin || !end || *end <= *begin)
    return places;
  std::vector<std::int32_t> distances(std::min<std::uint64_t>((*end - *begin) / 4, lock_limit));
  distances.resize(kernel.space().read_prefix(*begin, std::as_writable_bytes(std::span(distances))) / 4);
  for (std::size_t i = 0; i < distances.size(); ++i)
    places.push_back(*begin + i * 4 + static_cast<std::uint64_t>(std::int64_t{distances[i]}));
  return places;
}

bool begins_with(Bytes code, std::initializer_list<unsigned char> wanted) {
  return code.size() >= wanted.size() &&
         std::ranges::equal(wanted, code.first(wanted.size()),
                            [](unsigned char a, std::byte b) { return std::byte{a} == b; });
}

// What arch/x86/kernel/static_call.c puts there besides branches: nop, xor %eax,%eax (two spellings), ret, ud1.
bool is_static_filling(Bytes code) {
  return linux_guest::is_long_nop(code) || begins_with(code, {0x2e, 0x2e, 0x2e, 0x31, 0xc0}) ||
         begins_with(code, {0x66, 0x66, 0x48, 0x31, 0xc0}) || begins_with(code, {0xc3, 0xcc, 0xcc, 0xcc, 0xcc}) ||
         begins_with(code, {0xc3, 0x90, 0x90, 0x90, 0x90}) || begins_with(code, {0xc3, 0x0f, 0xb9, 0xcc});
}

} // namespace

void LawfulWrites::learn() {
  all_.clear();
  const Kernel &kernel = *kernel_;
  sites_ = CodeSites::read(kernel);
  add(Kind::tracer, sites_.ftrace);
  add(Kind::static_call, sites_.static_calls);
  add(Kind::patchable, CodeSites::patchable_symbols(kernel));
  add(Kind::lock_prefix, read_lock_prefixes(kernel));
  const auto add_labels = [&](const std::vector<linux_guest::JumpLabel> &labels) {
    for (const auto &label : labels)
      all_.push_back({label.site, label.target, Kind::jump_label, 5});
  };
  add_labels(sites_.jump_labels);
  if (const auto regions = linux_guest::read_module_regions(kernel))
    for (const ModuleRegion &region : regions->items)
      if (region.kind == ModuleRegion::Kind::text) {
        add(Kind::static_call, CodeSites::static_calls_of(kernel, region.module));
        add_labels(CodeSites::jump_labels_of(kernel, region.module));
      }
  std::vector<Gva> trampolines;
  linux_guest::for_each_module_symbol(kernel, [&](const KernelSymbol &symbol) {
    if (symbol.name.starts_with("__SCT__"))
      trampolines.push_back(symbol.address);
    return trampolines.size() < trampoline_limit;
  });
  add(Kind::patchable, trampolines);
  std::ranges::sort(all_, {}, &Site::begin);
  tracer_entries_.clear();
  for (const std::string_view name : {"ftrace_caller", "ftrace_regs_caller", "__fentry__"})
    if (const auto entry = kernel.symbol(name))
      tracer_entries_.push_back(*entry);
  for (const auto &probe : sites_.kprobes)
    remember(probe);
  sites_.ftrace = {};
  sites_.static_calls = {};
  sites_.jump_labels = {};
  code_.reset();
}

void LawfulWrites::add(Kind kind, const std::vector<Gva> &places) {
  for (const Gva place : places) {
    Site site{place, {}, kind};
    if (kind == Kind::lock_prefix)
      site.length = 1;
    if (kind == Kind::static_call)
      // A conditional tail call (4c8bb2c9c1c3, 6.3) stays one.
      if (const Code code = code_at(place);
          code[0] == std::byte{0x0f} && (code[1] & std::byte{0xf0}) == std::byte{0x80})
        site.length = 6;
    all_.push_back(site);
  }
}

LawfulWrites::Code LawfulWrites::code_at(Gva address) const {
  Code code{};
  static_cast<void>(kernel_->space().read_prefix(address, code));
  return code;
}

// Whether the kernel knows the code there. Its lists are read anew when they do not, but not for each of a flood.
bool LawfulWrites::is_known_code(Gva target) {
  const auto now = std::chrono::steady_clock::now();
  if (code_ && code_->is_known(target))
    return true;
  if (code_ && now - code_read_ < std::chrono::milliseconds(5))
    return false;
  code_ = linux_guest::CodeMap::read(*kernel_);
  code_read_ = now;
  return code_->is_known(target);
}

Judgement LawfulWrites::judge_site(const Site &site, Gva address) {
  const Code code = code_at(site.begin);
  const std::uint64_t behind = address - site.begin;
  const auto verdict = [&](std::string_view reason, std::uint64_t length, bool lawful, std::string_view wrong) {
    Judgement judgement{lawful, false, lawful ? reason : wrong, length > behind ? length - behind : 1};
    if (!lawful && code[0] == breakpoint) { // the kernel's own, while it changes what is behind it; or a probe
      judgement.lawful = judgement.passing = true;
      judgement.reason = reason;
      judgement.length = site.length > behind ? site.length - behind : 1;
      if (sites_.has_probe(site.begin))
        judgement.passing = false;
    }
    return judgement;
  };
  const auto target = linux_guest::branch_target(site.begin, code);
  const bool leads_to_known = target && code[0] != std::byte{0xeb} && is_known_code(*target);
  switch (site.kind) {
  case Kind::tracer: {
    // Into the image only where ftrace enters it: all of its functions are known code.
    const auto owner = code_ && target ? code_->find(*target) : nullptr;
    const bool in_image = owner != nullptr && owner->owner == linux_guest::CodeOwner::kernel;
    const bool leads_to_tracer =
        leads_to_known && (!in_image || std::ranges::find(tracer_entries_, *target) != tracer_entries_.end());
    return verdict("function tracing", 5, linux_guest::is_long_nop(code) || leads_to_tracer,
                   "a place for tracers that leads to no tracer");
  }
  case Kind::static_call:
  case Kind::patchable:
    return verdict("static call", site.length, is_static_filling(code) || leads_to_known,
                   "a static call that leads to no code that the kernel knows");
  case Kind::jump_label: {
    const std::uint64_t length = std::max<std::uint64_t>(linux_guest::length_of_jump_label(code), 2);
    return verdict("jump label", length, linux_guest::is_lawful_jump_label(code, {site.begin, site.target}),
                   "a jump label that holds neither a nop nor the jump to its target");
  }
  case Kind::lock_prefix: return {code[0] == std::byte{0xf0} || code[0] == std::byte{0x3e}, false, "lock prefix", 1};
  }
  return {};
}

// What stood at a place before it was probed, as far as it is known: of an int3 the first byte, until it becomes a
// jump.
void LawfulWrites::remember(Gva place, Bytes original) {
  const std::size_t known = std::min(original.size(), std::tuple_size_v<Code>);
  if (probed_.size() >= probed_limit && !probed_.contains(place))
    return;
  if (Probed &probed = probed_[place]; known > probed.known) {
    std::ranges::copy(original.subspan(probed.known, known - probed.known), probed.code.begin() + probed.known);
    probed.known = static_cast<std::uint8_t>(known);
  }
}

void LawfulWrites::remember(const linux_guest::Probe &probe) {
  remember(probe.address, Bytes(probe.original).first(probe.is_optimised ? probe.original.size() : 1));
}

std::optional<Judgement> LawfulWrites::judge_probe(Gva address, Bytes before) {
  const auto probe = std::ranges::find_if(sites_.kprobes, [&](const auto &candidate) {
    return address >= candidate.address && address - candidate.address < (candidate.is_optimised ? 5U : 1U);
  });
  if (probe != sites_.kprobes.end()) {
    const Code code = code_at(probe->address);
    const auto target = linux_guest::branch_target(probe->address, code);
    const bool lawful =
        probe->is_optimised ? target && is_known_code(*target) : code[0] == breakpoint || code[0] == probe->original[0];
    remember(*probe);
    return Judgement{lawful, false, lawful ? "kprobe" : "a kprobe whose jump leads to no code that the kernel knows",
                     (probe->is_optimised ? 5 : 1) - (address - probe->address)};
  }
  // A probe that is gone leaves what it found.
  auto after = probed_.upper_bound(address);
  if (after != probed_.begin())
    if (const auto &[place, original] = *std::prev(after); address - place < original.known) {
      const std::uint64_t behind = address - place;
      if (code_at(place)[behind] == original.code[behind])
        return Judgement{true, false, "kprobe", 1};
    }
  // Being changed: the table names what the kernel's own patching works on, wherever that is.
  for (const Gva place : sites_.patching)
    if (address >= place && address - place < longest_site && code_at(place)[0] == breakpoint) {
      if (address == place)
        remember(place, before);
      return Judgement{true, true, "text patching", longest_site - (address - place)};
    }
  return std::nullopt;
}

Judgement LawfulWrites::judge(Gva address, Bytes before) {
  Judgement unlawful{false, false, "no place that the kernel changes", 1};
  auto after = std::ranges::upper_bound(all_, address, {}, &Site::begin);
  while (after != all_.begin() && address - (--after)->begin < longest_site) {
    const std::uint64_t behind = address - after->begin;
    const Judgement judgement = judge_site(*after, address);
    // A site that ends before the byte says nothing of it.
    const unsigned label =
        after->kind == Kind::jump_label ? linux_guest::length_of_jump_label(code_at(after->begin)) : 0;
    const unsigned length = label != 0 ? label : after->length;
    const bool covers = behind < length;
    if (!covers)
      continue;
    if (judgement.lawful)
      return judgement;
    unlawful = judgement;
  }
  if (const auto probe = judge_probe(address, before))
    return *probe;
  return unlawful;
}

} // namespace lararium::gate
