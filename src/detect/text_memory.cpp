#include "text_memory.h"

#include <algorithm>
#include <random>
#include <set>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;
using linux_guest::LayoutResolver;
using linux_guest::ModuleRegion;

constexpr std::uint64_t largest_image = 256 << 20, largest_module = 64 << 20, largest_of_all = 512 << 20;

bool is_sealed(const Kernel &kernel, Gva rodata) {
  const auto page = kernel.space().translate(rodata);
  return page && !page->writable;
}

// The number of a module's folder in sysfs, which is given once (kernfs_node.id).
std::optional<std::uint64_t> load_of(const Kernel &kernel, Gva module) {
  const LayoutResolver layout(kernel.types());
  const auto folder = layout.optional("module", "mkobj.kobj.sd"), id = layout.optional("kernfs_node", "id");
  // Code for other modules is written into that of a live patch while it is in use.
  if (const auto patch = layout.optional("module", "klp"); patch && kernel.read_field(module, *patch).value_or(0) != 0)
    return std::nullopt;
  if (!folder || !id)
    return std::nullopt;
  const auto node = kernel.read_pointer(module, *folder);
  return node && *node ? kernel.read_field(*node, *id) : std::nullopt;
}

} // namespace

TextMemory::TextMemory() {
  std::random_device source;
  key_ = static_cast<std::uint64_t>(source()) << 32 | source() | 1;
}

void TextMemory::learn_image(const Kernel &kernel) {
  base_ = kernel.location().base;
  patchable_ = CodeSites::patchable_symbols(kernel);
}

std::vector<Mask> TextMemory::masks(const Kernel &kernel, const CodeSites &sites, std::span<const ModuleRegion> regions,
                                    std::span<const Gva> trampolines) const {
  std::vector<Mask> masks;
  const auto add = [&](Gva site, bool is_jump_label) {
    std::array<std::byte, 6> code{};
    if (!kernel.space().read(site, code))
      return;
    Mask mask{site, 5, Mask::Kind::hide, {}};
    if (is_jump_label)
      mask.length = length_of_jump_label(code);
    else if (code[0] == std::byte{0x0f} && (code[1] & std::byte{0xf0}) == std::byte{0x80})
      mask.length = 6; // a conditional static tail call (4c8bb2c9c1c3, 6.3)
    if (code[0] == std::byte{0xcc}) {
      mask.kind = Mask::Kind::blind;
      mask.length = 6;
    }
    masks.push_back(mask);
  };
  const auto add_all = [&](std::span<const Gva> places) {
    for (const Gva site : places)
      add(site, false);
  };
  add_all(sites.ftrace);
  add_all(sites.static_calls);
  add_all(patchable_);
  add_all(trampolines);
  for (const JumpLabel &label : sites.jump_labels)
    add(label.site, true);
  // A module's tables also name its initialisation, whose place may have become another module's.
  for (const ModuleRegion &region : regions) {
    if (region.kind != ModuleRegion::Kind::text)
      continue;
    const auto is_own = [&](Gva site) { return site >= region.base && site - region.base < region.size; };
    for (const Gva site : CodeSites::static_calls_of(kernel, region.module))
      if (is_own(site))
        add(site, false);
    for (const JumpLabel &label : CodeSites::jump_labels_of(kernel, region.module))
      if (is_own(label.site))
        add(label.site, true);
  }
  for (const Gva site : sites.patching)
    masks.push_back({site, 6, Mask::Kind::blind, {}});
  for (const Probe &probe : sites.kprobes)
    if (!CodeSites::has(sites.ftrace, probe.address))
      masks.push_back(
          {probe.address, static_cast<std::uint8_t>(probe.is_optimised ? 5 : 1), Mask::Kind::restore, probe.original});
  std::ranges::sort(masks, {}, &Mask::begin);
  return masks;
}

FirstLook::Sameness TextMemory::look(const Scene &scene, const CodeSites &sites, std::span<const ModuleRegion> regions,
                                     std::span<const Gva> trampolines, const Give &give) {
  using Sameness = FirstLook::Sameness;
  const Kernel &kernel = scene.kernel();
  const auto text = kernel.symbol("_stext"), text_end = kernel.symbol("_etext"),
             rodata = kernel.symbol("__start_rodata"), rodata_end = kernel.symbol("__end_rodata");
  if (!text || !text_end || !rodata || !is_sealed(kernel, *rodata))
    return Sameness::different;
  // When a guest gets its second CPU, all lock prefixes are put back (alternatives_enable_smp()).
  const auto single = kernel.symbol("uniproc_patched");
  const auto lock_prefixes = single ? kernel.read<std::uint8_t>(*single) : std::nullopt;
  if (base_ != kernel.location().base || lock_prefixes_ != lock_prefixes) {
    remembered_.clear();
    lock_prefixes_ = lock_prefixes;
    learn_image(kernel);
  }

  struct Wanted {
    Identity identity;
    bool is_code;
  };
  std::vector<Wanted> wanted;
  if (*text_end > *text && *text_end - *text <= largest_image)
    wanted.push_back({{*text, *text_end - *text, 0}, true});
  if (rodata_end && *rodata_end > *rodata && *rodata_end - *rodata <= largest_image)
    wanted.push_back({{*rodata, *rodata_end - *rodata, 0}, false});
  std::uint64_t total = 0;
  auto all = !wanted.empty() && wanted.front().is_code ? Sameness::untouched : Sameness::different;
  for (const ModuleRegion &region : regions) {
    if (region.kind != ModuleRegion::Kind::text)
      continue;
    const bool fits = region.size <= largest_module && (total += region.size) <= largest_of_all;
    if (const auto load = fits ? load_of(kernel, region.module) : std::nullopt)
      wanted.push_back({{region.base, region.size, *load}, true});
    else
      all = Sameness::different;
  }
  std::erase_if(remembered_, [&](const auto &entry) {
    return std::ranges::none_of(wanted, [&](const Wanted &each) { return each.identity == entry.first; });
  });

  const auto see = [&](Gva address, std::span<std::byte> buffer) -> Bytes {
    if (const Bytes in_place = kernel.space().view(address); in_place.size() >= buffer.size())
      return in_place.first(buffer.size());
    return kernel.space().read(address, buffer) ? Bytes(buffer) : Bytes();
  };
  const auto give_nothing = [](Gva, Bytes) {};
  std::optional<std::vector<Mask>> now;
  const FirstLook::Masks masks_now = [&]() -> std::span<const Mask> {
    if (!now)
      now = masks(kernel, sites, regions, trampolines);
    return *now;
  };
  std::vector<FirstLook *> fresh;
  for (const Wanted &each : wanted) {
    const Identity &identity = each.identity;
    const auto known = remembered_.find(identity);
    if (known != remembered_.end()) {
      const auto sameness =
          known->second.look(see, masks_now, [&](Gva line, Bytes found) { give(line, found, each.is_code); });
      if (each.is_code)
        all = std::max(all, sameness);
    } else {
      all = Sameness::different;
      FirstLook &first = remembered_.try_emplace(identity, identity.begin, identity.size, key_).first->second;
      first.look(see, masks_now, give_nothing);
      fresh.push_back(&first);
    }
  }
  if (fresh.empty())
    return all;
  // The second time with what the tables say then, so that no change that was under way is remembered.
  now = masks(kernel, CodeSites::read(kernel), regions, trampolines);
  for (FirstLook *first : fresh)
    first->look(see, masks_now, give_nothing);
  return Sameness::different;
}

} // namespace lararium::detect
