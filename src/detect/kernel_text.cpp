// The code of the kernel and of its modules, stepped through from symbol to symbol: whatever leads out of all code that
// the kernel knows of is a hook. So is what the kernel's own tables of changeable places do not explain: a jump from
// the image into a module, an int3 with no probe, a place for tracers that holds something else.

#include "code_leads.h"
#include "code_sites.h"
#include "lararium/detect/check.h"
#include "lararium/os/linux/module_sections.h"
#include "lararium/os/linux/modules.h"
#include "module_reference.h"
#include "reference_text.h"
#include "text_memory.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <optional>
#include <vector>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;

constexpr std::size_t window_bytes = 256 << 10;
constexpr std::size_t largest_function = 4 << 20; // between two symbols; more is stepped through in parts
constexpr std::uint8_t undecodable = 0x06;        // stands for bytes that cannot be read
constexpr std::size_t module_symbol_limit = 1 << 21;
constexpr std::uint64_t endbr_bytes = 4;
constexpr std::uint64_t largest_module = 64 << 20;
constexpr std::size_t use_limit = 4096;
constexpr unsigned most_looks_past_places = 16;

class KernelText final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override {
    // Code that is missing in an incomplete list would make every way to it look like a hook.
    if (!scene.code().complete())
      return fail(ErrorCode::corrupt, "the kernel's lists of code cannot be read to their ends");
    Look look{scene, findings, CodeSites::read(scene.kernel()), {}, {}, {}, {}, {}, {}, {}};
    if (auto regions = linux_guest::read_module_regions(scene.kernel()))
      look.regions = std::move(regions->items);
    const auto begin = scene.kernel().symbol("_stext"), end = scene.kernel().symbol("_etext");
    if (!begin || !end || *end <= *begin)
      return fail(ErrorCode::not_found, "the kernel's symbols do not say where its text lies");
    look.text_begin = *begin;
    look.text_end = *end;
    look_at_mapping(look);
    const bool same_map = stepped_ && stepped_->map == scene.code().ranges();
    if (same_map)
      look.trampolines = stepped_->trampolines;
    else
      read_module_symbols(look);
    const auto code = compare_with_first_look(look);
    const std::size_t before = findings.items().size();
    // Where not a byte changed, what stands at the places that the kernel changes was looked at before; but now and
    // then all the same, as it may have changed between that look and the comparison before it.
    const bool nothing_new = same_map && code == FirstLook::Sameness::untouched && places_were_lawful_ &&
                             ++looks_past_places_ % most_looks_past_places != 0 && look.sites.kprobes.empty() &&
                             look.sites.patching.empty();
    if (!nothing_new) {
      if (same_map && code != FirstLook::Sameness::different)
        look_at_changing_places(look, *stepped_);
      else
        step_through_all(look, same_map);
      look_at_tracer_places(look);
      look_at_jump_labels(look);
      places_were_lawful_ =
          findings.items().size() == before && look.sites.kprobes.empty() && look.sites.patching.empty();
    }
    return look_beside_references(look);
  }

private:
  // Whose code is stepped through.
  struct Text {
    Gva begin, end;
    Gva module;                    // null: the image
    std::vector<Gva> static_calls; // its places that may lead into any module
    std::vector<Gva> uses;         // modules whose symbols it uses
    bool uses_known = true;
  };

  // What was there when all code was stepped through the last time, and nothing was found. As long as code is the same,
  // and so is whose it is, that need not be done again, but for the places that the kernel changes.
  struct Stepped {
    std::vector<CodeRange> map;
    std::vector<Gva> trampolines, patchable;
    std::vector<Text> texts;
  };
  TextMemory memory_;
  std::optional<Stepped> stepped_;
  bool places_were_lawful_ = false; // at the last look at them, with nothing under way
  unsigned looks_past_places_ = 0;
  std::optional<ReferenceText> reference_;
  std::optional<Gva> reference_base_; // of the image that it was made for

  struct Look {
    const Scene &scene;
    Findings &findings;
    CodeSites sites;
    Gva text_begin, text_end;
    std::vector<linux_guest::ModuleRegion> regions;
    std::vector<Gva> trampolines; // of static calls in modules
    std::vector<Gva> symbols;     // of modules, by address
    std::vector<Text> texts;      // that were stepped through
    std::vector<std::byte> buffer;

    [[nodiscard]] Gva module_at(Gva address) const {
      for (const auto &region : regions)
        if (address >= region.base && address - region.base < region.size)
          return region.module;
      return {};
    }
  };

  // The image lies in one piece of physical memory: a page of its text that another frame stands for was exchanged.
  static void look_at_mapping(const Look &look) {
    const auto &location = look.scene.kernel().location();
    constexpr std::size_t extent_limit = 1 << 16;
    for (const MappedExtent &extent :
         look.scene.kernel().space().extents(look.text_begin.page(), look.text_end, extent_limit)) {
      const Gpa lawful = location.physical_base + (extent.base - location.base);
      if (extent.physical == lawful)
        continue;
      look.findings
          .add({.subject = fmt::format("{:#x}", extent.base.value),
                .severity = Severity::critical,
                .technique = "T1014",
                .sentence = fmt::format("{} KiB of the kernel's text from {} on are mapped from other memory than the "
                                        "kernel's",
                                        extent.size >> 10, look.scene.describe(extent.base))})
          .with("address", extent.base)
          .with("expected", lawful.value)
          .with("found", extent.physical.value);
    }
  }

  static void look_at_image(Look &look) {
    const Kernel &kernel = look.scene.kernel();
    const Profile &profile = kernel.profile();
    const Gva base = kernel.location().base;
    std::vector<Gva> starts;
    starts.reserve(1 << 16);
    starts.push_back(look.text_begin);
    for (std::size_t i = 0; i < profile.symbol_count(); ++i) {
      const ProfileSymbol symbol = profile.symbol_at(i);
      const Gva address = base + symbol.value;
      if (symbol.base != SymbolBase::image || address >= look.text_end)
        break;
      if (address > starts.back())
        starts.push_back(address);
    }
    look.texts.push_back({look.text_begin, look.text_end, {}, look.sites.static_calls, {}, true});
    look_at_code(look, starts, look.texts.back());
  }

  static void read_module_symbols(Look &look) {
    linux_guest::for_each_module_symbol(look.scene.kernel(), [&](const KernelSymbol &symbol) {
      look.symbols.push_back(symbol.address);
      if (symbol.name.starts_with("__SCT__"))
        look.trampolines.push_back(symbol.address);
      return look.symbols.size() < module_symbol_limit;
    });
    std::ranges::sort(look.symbols);
  }

  FirstLook::Sameness compare_with_first_look(const Look &look) {
    return memory_.look(look.scene, look.sites, look.regions, look.trampolines,
                        [&](Gva line, Bytes found, bool is_code) {
                          const char *const what = is_code ? "code" : "read-only data";
                          report(look, line,
                                 fmt::format("{} bytes of {} from {} on are not what they were at the first look",
                                             found.size(), what, look.scene.describe(line)))
                              .with("found_bytes", copy(found));
                        });
  }

  void step_through_all(Look &look, bool same_map) {
    stepped_.reset();
    if (same_map) {
      look.trampolines.clear();
      read_module_symbols(look);
    }
    const std::size_t before = look.findings.items().size();
    look_at_image(look);
    look_at_modules(look);
    if (look.findings.items().size() == before)
      stepped_ = {look.scene.code().ranges(), look.trampolines, CodeSites::patchable_symbols(look.scene.kernel()),
                  std::move(look.texts)};
  }

  // Where the kernel writes calls and jumps: they are left out when code is compared with what it was.
  static void look_at_changing_places(const Look &look, const Stepped &stepped) {
    const Kernel &kernel = look.scene.kernel();
    const auto look_at = [&](const std::vector<Gva> &places) {
      for (const Gva place : places) {
        std::array<std::byte, 6> code{};
        if (!kernel.space().read(place, code))
          continue;
        const auto target = linux_guest::branch_target(place, code);
        const auto text = std::ranges::find_if(
            stepped.texts, [&](const Text &each) { return place >= each.begin && place < each.end; });
        if (!target || text == stepped.texts.end() || (*target >= text->begin && *target < text->end))
          continue;
        const auto length = static_cast<std::uint8_t>(code[0] == std::byte{0x0f} ? 6 : 5);
        judge(look, {place, length, *target, "a call or jump", false}, place, code, *text, true);
      }
    };
    look_at(look.sites.ftrace);
    look_at(look.sites.static_calls);
    look_at(stepped.patchable);
    look_at(stepped.trampolines);
    for (const Text &text : stepped.texts)
      if (text.module)
        look_at(text.static_calls);
  }

  static void look_at_modules(Look &look) {
    const Kernel &kernel = look.scene.kernel();
    const std::vector<Gva> &symbols = look.symbols;
    for (const auto &region : look.regions) {
      if (region.kind != linux_guest::ModuleRegion::Kind::text || region.size > largest_module)
        continue;
      const Gva end = region.base + region.size;
      std::vector<Gva> starts{region.base};
      for (auto symbol = std::ranges::upper_bound(symbols, region.base); symbol != symbols.end() && *symbol < end;
           ++symbol)
        if (*symbol > starts.back())
          starts.push_back(*symbol);
      Text text{region.base, end, region.module, CodeSites::static_calls_of(kernel, region.module), {}, false};
      read_uses(kernel, text);
      look.texts.push_back(text);
      look_at_code(look, starts, text);
    }
  }

  // struct module_use, in a list of all that one module uses.
  static void read_uses(const Kernel &kernel, Text &text) {
    const linux_guest::LayoutResolver layout(kernel.types());
    const auto list = layout.optional("module", "target_list"), link = layout.optional("module_use", "target_list"),
               used = layout.optional("module_use", "target");
    if (!list || !link || !used)
      return;
    const auto walk = linux_guest::walk_list(kernel, text.module + list->offset, use_limit, [&](Gva node) {
      if (const auto module = kernel.read_pointer(node - link->offset, *used))
        text.uses.push_back(*module);
      return true;
    });
    text.uses_known = walk.consistent();
  }

  // `starts` are the beginnings of functions, in order; the last ends with the text.
  static void look_at_code(Look &look, const std::vector<Gva> &starts, const Text &text) {
    const auto end_of = [&](std::size_t i) { return i + 1 < starts.size() ? starts[i + 1] : text.end; };
    for (std::size_t first = 0; first < starts.size();) {
      // As many functions at a time as fit a window: copied, so that nothing is decided on bytes that change.
      std::size_t last = first + 1;
      while (last < starts.size() && end_of(last) - starts[first] <= window_bytes)
        ++last;
      const std::uint64_t size = std::min<std::uint64_t>(end_of(last - 1) - starts[first], largest_function);
      read_window(look, starts[first], size);
      for (std::size_t i = first; i < last; ++i) {
        const std::uint64_t offset = starts[i] - starts[first];
        if (offset >= size)
          break;
        const Bytes code = Bytes(look.buffer).subspan(offset, std::min(end_of(i) - starts[i], size - offset));
        step_through(code, starts[i], text.begin, text.end,
                     [&](const Lead &lead) { judge(look, lead, starts[i], code, text); });
      }
      first = last;
    }
  }

  static void read_window(Look &look, Gva begin, std::uint64_t size) {
    look.buffer.resize(size);
    const std::span<std::byte> all(look.buffer);
    const auto &space = look.scene.kernel().space();
    for (std::uint64_t done = 0; done < size;) {
      const std::uint64_t part = std::min(size - done, page_size - (begin + done).page_offset());
      if (!space.read(begin + done, all.subspan(done, part)))
        std::ranges::fill(all.subspan(done, part), std::byte{undecodable});
      done += part;
    }
  }

  // `is_code`: it is known that there is code at the place.
  static void judge(const Look &look, const Lead &lead, Gva function, Bytes code, const Text &text,
                    bool is_code = false) {
    const CodeRange *range = look.scene.code().find(lead.target);
    if (range != nullptr) {
      if (range->owner != CodeOwner::module && range->owner != CodeOwner::module_init)
        return;
      // The image knows no module, and a module only those whose symbols it uses: all else can only be a static call,
      // or its trampoline.
      const Gva module = look.module_at(lead.target);
      if (text.module &&
          (!text.uses_known || module == text.module || std::ranges::find(text.uses, module) != text.uses.end()))
        return;
      if (CodeSites::has(text.static_calls, lead.site))
        return;
      const auto symbol = look.scene.system().symbolize(lead.site);
      if (symbol && symbol->first.name.starts_with("__SCT__"))
        return;
      if (text.module && is_left_of_initialisation(look, lead, text.module))
        return;
    } else {
      // Bytes that are no code, or are read from a wrong place, lead anywhere, but hardly to where code can be. The
      // first bytes of a function that can be traced are code.
      const auto page = look.scene.kernel().space().translate(lead.target.page());
      is_code = is_code || (lead.at_entry && (CodeSites::has(look.sites.ftrace, function) ||
                                              CodeSites::has(look.sites.ftrace, function + endbr_bytes)));
      if (!is_code && (!page || !page->executable))
        return;
      // The cold parts of a module's initialisation stay when it is given free, and lead to where it was.
      std::vector<std::byte> rest(page_size - lead.target.page_offset());
      if (look.scene.kernel().space().read(lead.target, rest) && is_filling_or_thunks(rest))
        return;
    }
    const std::size_t offset = lead.site - function;
    report(look, lead.site,
           fmt::format(
               "{} at {} leads to {}, {}", lead.kind, look.scene.describe(lead.site), look.scene.describe(lead.target),
               range == nullptr ? "where the kernel knows of no code" : "a module that the code there cannot know"))
        .with("found", lead.target)
        .with("found_bytes", copy(code.subspan(offset, std::min<std::size_t>(lead.length, code.size() - offset))))
        .with("owner", std::string(range != nullptr ? name_of(range->owner) : "nobody"));
  }

  // What alternatives are made from stays in a module's memory and never runs there. Of its initialisation, which is
  // given free, it leads to where that was: by now that may be another module's memory.
  static bool is_left_of_initialisation(const Look &look, const Lead &lead, Gva module) {
    constexpr std::uint64_t most = 64 << 10; // how large it was is no longer known
    const auto sections = linux_guest::ModuleSections::read(look.scene.kernel(), module);
    if (!sections)
      return false;
    const auto begin = sections->address_of(".init.text"), kept = sections->address_of(".altinstr_replacement");
    if (!begin || !kept || lead.target < *begin || lead.target - *begin >= most || lead.site < *kept)
      return false;
    return std::ranges::none_of(sections->items, [&](const linux_guest::ModuleSections::Section &section) {
      return section.address > *kept && section.address <= lead.site;
    });
  }

  // Each holds a nop, or a call (or, for BPF, a jump) that is judged like all others, or int3 for a moment.
  static void look_at_tracer_places(const Look &look) {
    const Kernel &kernel = look.scene.kernel();
    for (const Gva site : look.sites.ftrace) {
      std::array<std::byte, 5> code{};
      const CodeRange *range = look.scene.code().find(site);
      if (range == nullptr || (range->owner != CodeOwner::kernel && range->owner != CodeOwner::module) ||
          !kernel.space().read(site, code))
        continue;
      if (range->owner == CodeOwner::kernel)
        look_before_tracer_place(look, site);
      const auto first = std::to_integer<unsigned>(code[0]);
      if (is_long_nop(code) || first == 0xe8 || first == 0xe9)
        continue;
      if (first == 0xcc && (CodeSites::has(look.sites.patching, site) || look.sites.has_probe(site)))
        continue;
      constexpr std::array<std::byte, 5> nop{std::byte{0x0f}, std::byte{0x1f}, std::byte{0x44}, std::byte{0},
                                             std::byte{0}};
      report(look, site,
             fmt::format("{} holds neither a call to a tracer nor the nop in its place", look.scene.describe(site)))
          .with("expected_bytes", copy(nop))
          .with("found_bytes", copy(code));
    }
  }

  // The function's first instruction, where it is endbr64, or the nop in its place.
  static void look_before_tracer_place(const Look &look, Gva site) {
    const Kernel &kernel = look.scene.kernel();
    const Gva function = site - endbr_bytes;
    std::array<std::byte, endbr_bytes> code{};
    // Where the function begins at the place itself, int3 is what fills the gap before it.
    if (!kernel.space().read(function, code) || code[0] != std::byte{0xcc} || look.sites.has_probe(function) ||
        CodeSites::has(look.sites.patching, function))
      return;
    const std::uint64_t offset = function - kernel.location().base;
    if (const auto symbol = kernel.profile().nearest(offset + endbr_bytes); symbol && symbol->value == offset)
      report(look, function, fmt::format("{} begins with int3, and no probe is there", look.scene.describe(function)))
          .with("found_bytes", copy(code));
  }

  // Each holds a nop or a jump to the one place that its entry names.
  static void look_at_jump_labels(const Look &look) {
    const Kernel &kernel = look.scene.kernel();
    // Tables also name initialisation code, which is given free, and whose place may have become another's.
    const auto look_at = [&](const std::vector<JumpLabel> &labels, Gva begin, Gva end) {
      for (const JumpLabel &label : labels) {
        std::array<std::byte, 5> code{};
        if (label.site < begin || label.site >= end || !kernel.space().read(label.site, code) ||
            is_lawful_jump_label(code, label) || CodeSites::has(look.sites.patching, label.site))
          continue;
        report(look, label.site,
               fmt::format("the jump label at {} holds neither a nop nor the jump to its target",
                           look.scene.describe(label.site)))
            .with("expected", label.target)
            .with("found_bytes", copy(code));
      }
    };
    look_at(look.sites.jump_labels, look.text_begin, look.text_end);
    for (const auto &region : look.regions)
      if (region.kind == linux_guest::ModuleRegion::Kind::text)
        look_at(CodeSites::jump_labels_of(kernel, region.module), region.base, region.base + region.size);
  }

  Result<void> look_beside_references(Look &look) {
    const Kernel &kernel = look.scene.kernel();
    const References &references = look.scene.references();
    const ReferenceText::Give give = [&](const ReferenceText::Difference &difference) {
      report(look, difference.at,
             fmt::format("{} bytes of {} from {} on are not those of the reference", difference.found.size(),
                         difference.is_code ? "code" : "read-only data", look.scene.describe(difference.at)))
          .with("expected_bytes", copy(difference.expected))
          .with("found_bytes", copy(difference.found));
    };
    if (references.kernel != nullptr) {
      if (reference_base_ != kernel.location().base) {
        TRY_ASSIGN(reference_, ReferenceText::create(*references.kernel, kernel));
        reference_base_ = kernel.location().base;
      }
      reference_->look(kernel, look.sites, give);
    }
    if (references.modules != nullptr)
      for (std::string &what : compare_modules(*references.modules, kernel, look.regions, look.sites, give))
        look.findings.could_not_see(std::move(what));
    return {};
  }

  static Finding &report(const Look &look, Gva site, std::string sentence) {
    const std::string symbol = look.scene.describe(site);
    Finding &finding = look.findings.add(
        {.subject = symbol, .severity = Severity::critical, .technique = "T1014", .sentence = std::move(sentence)});
    return finding.with("address", site).with("symbol", symbol);
  }

  static std::vector<std::byte> copy(Bytes bytes) { return {bytes.begin(), bytes.end()}; }
};

LARARIUM_CHECK(
    KernelText, "kernel_text", "T1014 T1601.001", "hooks in the code of the kernel and its modules",
    "Steps through all code of the kernel and its modules. A call or jump that leads to no code that the kernel knows "
    "of "
    "is a hook; so is one into a module that the code there cannot know (it does not use the module's symbols, and "
    "makes no static call), and a function's place for tracers that holds neither nop nor call. A page of the kernel's "
    "text that is mapped from elsewhere was exchanged. While a guest is watched, code and the kernel's read-only data "
    "are "
    "also compared with what they were at the first look, which is trusted, less the places that the kernel itself "
    "changes. A single check remembers nothing: what was changed before, and leads nowhere, is seen only beside "
    "the file that the kernel was booted from, and the folder of its modules (--reference).")

} // namespace
} // namespace lararium::detect
