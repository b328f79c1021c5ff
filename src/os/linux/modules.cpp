#include "lararium/os/linux/modules.h"

#include "lararium/os/linux/list.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>

namespace lararium::linux_guest {
namespace {

constexpr std::size_t module_limit = 16384;
constexpr std::size_t user_limit = 1024;
constexpr std::size_t walk_attempts = 4;
constexpr std::size_t module_symbol_limit = 1 << 20;

// A module's memory: one region for each kind since 6.4 (ac3b43283923), before that a core and an init layout.
struct ModuleLayout {
  FieldLocation list, name, state, references;
  std::optional<FieldLocation> memory, core_base, core_size, core_text_size, init_layout_base, init_layout_size,
      init_text_size;
  std::optional<FieldLocation> region_base, region_size;
  std::uint64_t region_stride = 0;
  std::uint32_t region_count = 0;
  std::optional<FieldLocation> version, source_version, taints, arguments, init, exit, users;
  std::optional<FieldLocation> use_list, use_source;
  std::optional<FieldLocation> kallsyms;
  std::optional<FieldLocation> symtab, symbol_count, strtab, typetab;

  static Result<ModuleLayout> resolve(const Kernel &kernel) {
    LayoutResolver layout(kernel.types());
    ModuleLayout f;
    f.list = layout.require("module", "list");
    f.name = layout.require("module", "name");
    f.state = layout.require("module", "state");
    f.references = layout.require("module", "refcnt");
    f.memory = layout.optional("module", "mem");
    if (f.memory) {
      f.region_base = layout.optional("module_memory", "base");
      f.region_size = layout.optional("module_memory", "size");
      f.region_stride = layout.require_size("module_memory");
      f.region_count = f.region_stride == 0
                           ? 0
                           : static_cast<std::uint32_t>(std::min<std::uint64_t>(f.memory->size / f.region_stride, 16));
    } else {
      f.core_base = layout.optional_any("module", {"core_layout.base", "module_core"});
      f.core_size = layout.optional_any("module", {"core_layout.size", "core_size"});
      f.core_text_size = layout.optional_any("module", {"core_layout.text_size", "core_text_size"});
      f.init_layout_base = layout.optional_any("module", {"init_layout.base", "module_init"});
      f.init_text_size = layout.optional_any("module", {"init_layout.text_size", "init_text_size"});
      f.init_layout_size = layout.optional_any("module", {"init_layout.size", "init_size"});
    }
    f.version = layout.optional("module", "version");
    f.source_version = layout.optional("module", "srcversion");
    f.taints = layout.optional("module", "taints");
    f.arguments = layout.optional("module", "args");
    f.init = layout.optional("module", "init");
    f.exit = layout.optional("module", "exit");
    f.users = layout.optional("module", "source_list");
    f.use_list = layout.optional("module_use", "source_list");
    f.use_source = layout.optional("module_use", "source");
    f.kallsyms = layout.optional("module", "kallsyms");
    f.symtab = layout.optional("mod_kallsyms", "symtab");
    f.symbol_count = layout.optional("mod_kallsyms", "num_symtab");
    f.strtab = layout.optional("mod_kallsyms", "strtab");
    f.typetab = layout.optional("mod_kallsyms", "typetab");
    TRY(layout.check());
    return f;
  }
};

std::string text_at(const Kernel &kernel, const std::optional<Gva> &pointer, std::size_t limit) {
  if (!pointer || !*pointer)
    return {};
  return kernel.space().read_c_string(*pointer, limit).value_or("");
}

std::string state_name(std::uint64_t state) { // enum module_state
  constexpr std::array<const char *, 4> names{"live", "loading", "unloading", "unformed"};
  return state < names.size() ? names[state] : fmt::format("{}", state);
}

// The letters that /proc/modules prints behind a tainting module: P O F C E K X N, by their taint bits.
std::string taint_letters(std::uint64_t taints) {
  struct Flag {
    unsigned bit;
    char letter;
  };
  constexpr std::array<Flag, 9> flags{
      {{0, 'P'}, {1, 'F'}, {10, 'C'}, {12, 'O'}, {13, 'E'}, {15, 'K'}, {16, 'X'}, {18, 'N'}, {5, 'B'}}};
  std::string letters;
  for (const auto &flag : flags)
    if ((taints >> flag.bit & 1) != 0)
      letters += flag.letter;
  return letters;
}

KernelModule read_module(const Kernel &kernel, const ModuleLayout &f, Gva module, ViewStatus &status) {
  KernelModule result;
  result.module = module;
  result.name = kernel.space().read_c_string(module + f.name.offset, f.name.size).value_or("?");
  result.state = state_name(kernel.read_field(module, f.state).value_or(99));
  // The kernel counts its own reference (MODULE_REF_BASE) as one more than it shows.
  result.references =
      static_cast<std::int64_t>(kernel.read<std::int32_t>(module + f.references.offset).value_or(1)) - 1;
  if (f.memory && f.region_base && f.region_size) {
    for (std::uint32_t i = 0; i < f.region_count; ++i) {
      const Gva region = module + f.memory->offset + i * f.region_stride;
      const auto base = kernel.read_pointer(region, *f.region_base);
      result.size += kernel.read_field(region, *f.region_size).value_or(0);
      if (i == 0) // MOD_TEXT
        result.base = base.value_or(Gva{});
    }
  } else if (f.core_base && f.core_size) {
    result.base = kernel.read_pointer(module, *f.core_base).value_or(Gva{});
    result.size = kernel.read_field(module, *f.core_size).value_or(0);
    if (f.init_layout_size)
      result.size += kernel.read_field(module, *f.init_layout_size).value_or(0);
  }
  const auto text = [&](const std::optional<FieldLocation> &field, std::size_t limit) {
    return field ? text_at(kernel, kernel.read_pointer(module, *field), limit) : std::string();
  };
  result.version = text(f.version, 64);
  result.source_version = text(f.source_version, 64);
  result.arguments = text(f.arguments, 1024);
  while (!result.arguments.empty() && result.arguments.back() == ' ')
    result.arguments.pop_back();
  if (f.taints)
    result.taint = taint_letters(kernel.read_field(module, *f.taints).value_or(0));
  if (f.init)
    result.init = kernel.read_pointer(module, *f.init).value_or(Gva{});
  if (f.exit)
    result.exit = kernel.read_pointer(module, *f.exit).value_or(Gva{});
  if (f.users && f.use_list && f.use_source) {
    const auto walk = walk_list(kernel, module + f.users->offset, user_limit, [&](Gva node) {
      const auto user = kernel.read_pointer(node - f.use_list->offset, *f.use_source);
      if (user && *user)
        result.used_by.push_back(kernel.space().read_c_string(*user + f.name.offset, f.name.size).value_or("?"));
      return true;
    });
    if (walk.end != WalkEnd::complete)
      status.warn(fmt::format("the list of modules that use {} is broken", result.name));
  }
  return result;
}

template <class Visit>
Result<WalkResult> walk_modules(const Kernel &kernel, const ModuleLayout &layout, Visit &&visit) {
  const auto head = kernel.symbol("modules");
  if (!head)
    return fail(ErrorCode::unsupported, "the kernel has no symbol `modules`: it was built without loadable modules");
  return walk_list(kernel, *head, module_limit, [&](Gva node) { return visit(node - layout.list.offset); });
}

} // namespace

Result<View<KernelModule>> read_modules(const Kernel &kernel) {
  TRY_ASSIGN(const ModuleLayout *kept, kernel.layout<ModuleLayout>());
  const ModuleLayout &layout = *kept;
  View<KernelModule> view;
  WalkResult walk;
  for (std::size_t attempt = 0; attempt < walk_attempts; ++attempt) {
    view.items.clear();
    TRY_ASSIGN(walk, walk_modules(kernel, layout, [&](Gva module) {
                 view.items.push_back(read_module(kernel, layout, module, view.status));
                 return true;
               }));
    if (walk.consistent())
      return view;
    ++view.status.retries;
  }
  view.status.raced = true;
  if (walk.end != WalkEnd::complete) {
    view.status.truncated = true;
    view.status.warn(fmt::format("the list of modules does not end well at {:#x}", walk.at.value));
  }
  return view;
}

namespace {

void add_regions(const Kernel &kernel, const ModuleLayout &f, Gva module, std::vector<ModuleRegion> &out) {
  using Kind = ModuleRegion::Kind;
  const std::string name = kernel.space().read_c_string(module + f.name.offset, f.name.size).value_or("?");
  const auto add = [&](Kind kind, Gva base, std::uint64_t size) {
    constexpr std::uint64_t largest = 1 << 30; // all modules together have less room
    if (base && size != 0 && size <= largest && kernel.is_kernel_address(base))
      out.push_back({module, name, kind, base, size});
  };
  if (f.memory && f.region_base && f.region_size) {
    // enum mod_mem_type: text, data, rodata, ro_after_init, init_text, init_data, init_rodata
    constexpr std::array<Kind, 7> kinds{Kind::text,      Kind::data,      Kind::data,     Kind::data,
                                        Kind::init_text, Kind::init_data, Kind::init_data};
    for (std::uint32_t i = 0; i < std::min<std::size_t>(f.region_count, kinds.size()); ++i) {
      const Gva region = module + f.memory->offset + i * f.region_stride;
      add(kinds[i], kernel.read_pointer(region, *f.region_base).value_or(Gva{}),
          kernel.read_field(region, *f.region_size).value_or(0));
    }
    return;
  }
  const auto layout = [&](const auto &base_field, const auto &size_field, const auto &text_field, Kind text,
                          Kind data) {
    if (!base_field || !size_field || !text_field)
      return;
    const Gva base = kernel.read_pointer(module, *base_field).value_or(Gva{});
    const std::uint64_t size = kernel.read_field(module, *size_field).value_or(0);
    const std::uint64_t text_size = std::min(size, kernel.read_field(module, *text_field).value_or(0));
    add(text, base, text_size);
    add(data, base + text_size, size - text_size);
  };
  layout(f.core_base, f.core_size, f.core_text_size, Kind::text, Kind::data);
  layout(f.init_layout_base, f.init_layout_size, f.init_text_size, Kind::init_text, Kind::init_data);
}

} // namespace

Result<ModuleRegions> read_module_regions(const Kernel &kernel) {
  TRY_ASSIGN(const ModuleLayout *layout, kernel.layout<ModuleLayout>());
  ModuleRegions regions;
  for (std::size_t attempt = 0; attempt < walk_attempts; ++attempt) {
    regions.items.clear();
    TRY_ASSIGN(regions.walk, walk_modules(kernel, *layout, [&](Gva module) {
                 add_regions(kernel, *layout, module, regions.items);
                 return true;
               }));
    if (regions.walk.consistent())
      break;
  }
  return regions;
}

ViewStatus for_each_module_symbol(const Kernel &kernel, const std::function<bool(const KernelSymbol &)> &visitor) {
  ViewStatus status;
  const auto resolved = kernel.layout<ModuleLayout>();
  if (!resolved)
    return status;
  const ModuleLayout *layout = *resolved;
  if (!layout->kallsyms || !layout->symtab || !layout->symbol_count || !layout->strtab)
    return status;
  struct ElfSymbol { // Elf64_Sym
    std::uint32_t name;
    std::uint8_t info, other;
    std::uint16_t section;
    std::uint64_t value, size;
  };
  std::size_t budget = module_symbol_limit;
  const auto walk = walk_modules(kernel, *layout, [&](Gva module) {
    const auto kallsyms = kernel.read_pointer(module, *layout->kallsyms);
    if (!kallsyms || !*kallsyms)
      return true;
    const auto symtab = kernel.read_pointer(*kallsyms, *layout->symtab);
    const auto strtab = kernel.read_pointer(*kallsyms, *layout->strtab);
    const auto typetab = layout->typetab ? kernel.read_pointer(*kallsyms, *layout->typetab) : std::nullopt;
    const std::size_t claimed = kernel.read_field(*kallsyms, *layout->symbol_count).value_or(0);
    const std::size_t count = std::min(claimed, budget);
    KernelSymbol symbol;
    symbol.module = kernel.space().read_c_string(module + layout->name.offset, layout->name.size).value_or("?");
    const auto incomplete = [&] {
      status.raced = true;
      status.warn(fmt::format("the symbols of module {} are not all in the kernel's memory", symbol.module));
    };
    if (!symtab || !strtab) {
      incomplete();
      return true;
    }
    if (claimed > budget) {
      status.truncated = true;
      status.warn(fmt::format("module {} claims to have {} symbols", symbol.module, claimed));
    }
    for (std::size_t i = 1; i < count; ++i) { // the first is the empty symbol of every ELF table
      const auto entry = kernel.read<ElfSymbol>(*symtab + i * sizeof(ElfSymbol));
      if (!entry) {
        incomplete();
        break;
      }
      --budget;
      if (entry->section == 0)
        continue;
      symbol.address = Gva{entry->value};
      const auto name = kernel.space().read_c_string(*strtab + entry->name, 512);
      if (!name) {
        incomplete();
        break;
      }
      symbol.name = *name;
      // Where there is no table of letters (before 5.2) the letter stands in st_size or st_info; it is not worth
      // guessing.
      symbol.type = typetab ? static_cast<char>(kernel.read<std::uint8_t>(*typetab + i).value_or('?')) : '?';
      if (!symbol.name.empty() && !visitor(symbol))
        return false;
    }
    return budget > 0;
  });
  if (walk && !walk->consistent()) {
    status.raced = true;
    if (walk->end != WalkEnd::complete)
      status.warn(fmt::format("the list of modules does not end well at {:#x}", walk->at.value));
  }
  return status;
}

} // namespace lararium::linux_guest
