#include "lararium/os/linux/code_map.h"

#include "lararium/os/linux/list.h"
#include "lararium/os/linux/modules.h"

#include <algorithm>

namespace lararium::linux_guest {
namespace {

constexpr std::size_t bpf_limit = 1 << 17;
constexpr std::size_t ftrace_limit = 1 << 14;
constexpr std::size_t slot_page_limit = 1 << 14;
constexpr std::uint64_t largest_range = 1 << 30;

} // namespace

std::string_view name_of(CodeOwner owner) {
  switch (owner) {
  case CodeOwner::kernel: return "kernel";
  case CodeOwner::kernel_init: return "kernel (freed after boot)";
  case CodeOwner::module: return "module";
  case CodeOwner::module_init: return "module (initialisation)";
  case CodeOwner::bpf: return "BPF";
  case CodeOwner::ftrace_trampoline: return "ftrace trampoline";
  case CodeOwner::kprobe_slot: return "kprobe slot";
  }
  return "unknown";
}

CodeMap CodeMap::read(const Kernel &kernel) {
  CodeMap map;
  const auto add_between = [&](std::string_view first, std::string_view last, CodeOwner owner) {
    const auto begin = kernel.symbol(first), end = kernel.symbol(last);
    if (begin && end && *end > *begin)
      map.add(*begin, *end - *begin, owner, {});
  };
  add_between("_stext", "_etext", CodeOwner::kernel);
  add_between("_sinittext", "_einittext", CodeOwner::kernel_init);
  map.add_modules(kernel);
  map.add_bpf(kernel);
  map.add_ftrace(kernel);
  map.add_kprobe_slots(kernel);
  std::ranges::sort(map.ranges_, {}, &CodeRange::begin);
  return map;
}

void CodeMap::add(Gva begin, std::uint64_t size, CodeOwner owner, std::string name) {
  if (size != 0 && size <= largest_range && begin.value >> 63 != 0 && (begin + size).value > begin.value)
    ranges_.push_back({begin, begin + size, owner, std::move(name)});
}

const CodeRange *CodeMap::find(Gva address) const {
  // A guest that lies may let ranges overlap: the last that begins at or before the address wins, if it reaches it.
  auto after = std::ranges::upper_bound(ranges_, address, {}, &CodeRange::begin);
  constexpr int most_overlapping = 8;
  for (int i = 0; i < most_overlapping && after != ranges_.begin(); ++i)
    if (--after; address < after->end)
      return &*after;
  return nullptr;
}

void CodeMap::add_modules(const Kernel &kernel) {
  const auto regions = read_module_regions(kernel);
  if (!regions || !regions->walk.consistent())
    complete_ = false;
  if (!regions)
    return;
  using Kind = ModuleRegion::Kind;
  for (const auto &region : regions->items)
    if (region.kind == Kind::text || region.kind == Kind::init_text)
      add(region.base, region.size, region.kind == Kind::text ? CodeOwner::module : CodeOwner::module_init,
          region.name);
}

// bpf_kallsyms: programs, trampolines and dispatchers alike (5.7, bfea9a8574f3).
void CodeMap::add_bpf(const Kernel &kernel) {
  const auto list = kernel.symbol("bpf_kallsyms");
  LayoutResolver layout(kernel.types());
  const auto start = layout.optional("bpf_ksym", "start"), end = layout.optional("bpf_ksym", "end");
  const auto node = layout.optional("bpf_ksym", "lnode"), name = layout.optional("bpf_ksym", "name");
  if (!list || !start || !end || !node || !name)
    return;
  const auto walk = walk_list(kernel, *list, bpf_limit, [&](Gva link) {
    const Gva symbol = link - node->offset;
    const auto first = kernel.read_field(symbol, *start), last = kernel.read_field(symbol, *end);
    if (first && last && *last > *first)
      add(Gva{*first}, *last - *first, CodeOwner::bpf,
          kernel.space().read_c_string(symbol + name->offset, name->size).value_or("?"));
    return true;
  });
  complete_ = complete_ && walk.consistent();
}

void CodeMap::add_ftrace(const Kernel &kernel) {
  const auto first = kernel.symbol("ftrace_ops_list"), end = kernel.symbol("ftrace_list_end");
  LayoutResolver layout(kernel.types());
  const auto next = layout.optional("ftrace_ops", "next"), trampoline = layout.optional("ftrace_ops", "trampoline"),
             size = layout.optional("ftrace_ops", "trampoline_size"), function = layout.optional("ftrace_ops", "func");
  if (!first || !end || !next || !trampoline || !size || !function)
    return;
  const auto head = kernel.read_pointer(*first);
  if (!head) {
    complete_ = false;
    return;
  }
  const auto add_trampoline = [&](Gva ops) {
    const auto base = kernel.read_pointer(ops, *trampoline);
    if (base && *base)
      add(*base, kernel.read_field(ops, *size).value_or(0), CodeOwner::ftrace_trampoline, {});
  };
  const auto walk = walk_chain(kernel, *head, next->offset, ftrace_limit, [&](Gva ops) {
    if (ops == *end)
      return false;
    add_trampoline(ops);
    return true;
  });
  complete_ = complete_ && walk.consistent();

  // The kernel's own tracers (kprobes, the function tracers) keep their trampoline when the last user leaves and they
  // are off that list. It stays in the list of trampolines with symbols (5.8, fc0ea795f53c).
  const auto with_symbols = kernel.symbol("ftrace_ops_trampoline_list");
  const auto node = layout.optional("ftrace_ops", "list");
  if (!with_symbols || !node)
    return;
  const auto kept = walk_list(kernel, *with_symbols, ftrace_limit, [&](Gva link) {
    add_trampoline(link - node->offset);
    return true;
  });
  complete_ = complete_ && kept.consistent();
}

void CodeMap::add_kprobe_slots(const Kernel &kernel) {
  LayoutResolver layout(kernel.types());
  const auto pages = layout.optional("kprobe_insn_cache", "pages");
  const auto node = layout.optional("kprobe_insn_page", "list"), code = layout.optional("kprobe_insn_page", "insns");
  if (!pages || !node || !code)
    return;
  for (const std::string_view cache : {"kprobe_insn_slots", "kprobe_optinsn_slots"})
    if (const auto address = kernel.symbol(cache)) {
      const auto walk = walk_list(kernel, *address + pages->offset, slot_page_limit, [&](Gva link) {
        if (const auto page = kernel.read_pointer(link - node->offset, *code))
          add(*page, page_size, CodeOwner::kprobe_slot, {});
        return true;
      });
      complete_ = complete_ && walk.consistent();
    }
}

} // namespace lararium::linux_guest
