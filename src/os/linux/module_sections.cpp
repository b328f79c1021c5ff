#include "lararium/os/linux/module_sections.h"

#include <algorithm>
#include <array>

namespace lararium::linux_guest {
namespace {

constexpr std::size_t section_limit = 4096, name_limit = 64, version_limit = 64;
constexpr std::size_t symbol_limit = 1 << 18, symbol_name_limit = 512; // a kernel has some 30,000

// The attributes of a module's folder `sections` in sysfs. struct module_sect_attr holds a section's address; from 6.14
// on (4b2c11e4aaf7, f47c0bebed9e) it is what the attribute keeps for its owner, and the group lists the attributes.
std::vector<ModuleSections::Section> read_sections(const Kernel &kernel, Gva attributes) {
  const LayoutResolver layout(kernel.types());
  const auto first = layout.optional("module_sect_attrs", "attrs");
  std::optional<FieldLocation> count, name, address;
  std::optional<std::uint64_t> size;
  if (layout.optional("module_sect_attr", "address")) {
    count = layout.optional("module_sect_attrs", "nsections");
    name = layout.optional_any("module_sect_attr", {"battr.attr.name", "name"});
    address = layout.optional("module_sect_attr", "address");
    size = kernel.types().size_of("module_sect_attr");
  } else {
    name = layout.optional("bin_attribute", "attr.name");
    address = layout.optional("bin_attribute", "private");
    size = kernel.types().size_of("bin_attribute");
  }
  std::vector<ModuleSections::Section> sections;
  if (!first || !name || !address || !size)
    return sections;
  const auto list = layout.optional_any("module_sect_attrs", {"grp.bin_attrs", "grp.bin_attrs_new"});
  const auto listed = list && !count ? kernel.read_pointer(attributes, *list) : std::nullopt;
  if (!count && !listed)
    return sections;
  const std::uint64_t claimed = count ? kernel.read_field(attributes, *count).value_or(0) : section_limit;
  for (std::uint64_t i = 0; i < std::min<std::uint64_t>(claimed, section_limit); ++i) {
    const Gva attribute = attributes + first->offset + i * *size;
    if (listed && kernel.read_pointer(*listed + i * sizeof(std::uint64_t)).value_or(Gva{}) != attribute)
      break; // the list ends with null
    const auto text = kernel.read_pointer(attribute, *name), place = kernel.read_pointer(attribute, *address);
    if (text && place)
      sections.push_back({kernel.space().read_c_string(*text, name_limit).value_or(""), *place});
  }
  return sections;
}

} // namespace

std::optional<Gva> ModuleSections::address_of(std::string_view name) const {
  const auto found = std::ranges::find(items, name, &Section::name);
  return found == items.end() ? std::nullopt : std::optional(found->address);
}

Result<ModuleSections> ModuleSections::read(const Kernel &kernel, Gva module) {
  const LayoutResolver layout(kernel.types());
  ModuleSections sections;
  const auto attributes = layout.optional("module", "sect_attrs"), state = layout.optional("module", "state"),
             per_cpu = layout.optional("module", "percpu"), version = layout.optional("module", "srcversion");
  sections.is_live = state && kernel.read_field(module, *state) == 0; // MODULE_STATE_LIVE
  if (version)
    if (const auto text = kernel.read_pointer(module, *version); text && *text)
      sections.source_version = kernel.space().read_c_string(*text, version_limit).value_or("");
  if (const auto area = per_cpu ? kernel.read_pointer(module, *per_cpu) : std::nullopt; area && *area)
    sections.per_cpu = *area;
  const auto object = attributes ? kernel.read_pointer(module, *attributes) : std::nullopt;
  if (object && *object)
    sections.items = read_sections(kernel, *object);
  if (sections.items.empty())
    return fail(ErrorCode::not_found, "the kernel does not say where its sections are");
  return sections;
}

// struct kernel_symbol: distances of what it stands for and of its name, each from its own place (7290d5809571, 4.19).
void ExportedSymbols::add(const Kernel &kernel, Gva begin, std::uint64_t count) {
  const LayoutResolver layout(kernel.types());
  const auto value = layout.optional("kernel_symbol", "value_offset"),
             name = layout.optional("kernel_symbol", "name_offset");
  const auto size = kernel.types().size_of("kernel_symbol");
  if (!value || !name || !size || *size < 8 || *size > 64)
    return;
  std::vector<std::byte> table(std::min<std::uint64_t>(count, symbol_limit - symbols_.size()) * *size);
  table.resize(kernel.space().read_prefix(begin, table));
  for (std::size_t at = 0; at + *size <= table.size(); at += *size) {
    const auto target = [&](const FieldLocation &field) {
      const auto distance = load<std::int32_t>(table, at + field.offset).value_or(0);
      return begin + (at + field.offset) + static_cast<std::uint64_t>(std::int64_t{distance});
    };
    if (auto text = kernel.space().read_c_string(target(*name), symbol_name_limit))
      symbols_.try_emplace(std::move(*text), target(*value)); // the first is the one that the kernel finds
  }
}

ExportedSymbols ExportedSymbols::read(const Kernel &kernel, const std::vector<Gva> &modules) {
  ExportedSymbols exported;
  const LayoutResolver layout(kernel.types());
  const auto size = kernel.types().size_of("kernel_symbol");
  struct Table {
    const char *begin, *end;   // in the kernel's image
    const char *first, *count; // in struct module
  };
  // Those of their own for GPL came to an end in 7.0, all others but the first in 5.12 (f1c3d73e973c).
  constexpr std::array<Table, 5> tables{{
      {"__start___ksymtab", "__stop___ksymtab", "syms", "num_syms"},
      {"__start___ksymtab_gpl", "__stop___ksymtab_gpl", "gpl_syms", "num_gpl_syms"},
      {"__start___ksymtab_gpl_future", "__stop___ksymtab_gpl_future", "gpl_future_syms", "num_gpl_future_syms"},
      {"__start___ksymtab_unused", "__stop___ksymtab_unused", "unused_syms", "num_unused_syms"},
      {"__start___ksymtab_unused_gpl", "__stop___ksymtab_unused_gpl", "unused_gpl_syms", "num_unused_gpl_syms"},
  }};
  for (const Table &table : tables) {
    const auto begin = kernel.symbol(table.begin), end = kernel.symbol(table.end);
    if (begin && end && *end > *begin && size && *size != 0)
      exported.add(kernel, *begin, (*end - *begin) / *size);
  }
  for (const Gva module : modules)
    for (const Table &table : tables) {
      const auto first = layout.optional("module", table.first), count = layout.optional("module", table.count);
      const auto begin = first ? kernel.read_pointer(module, *first) : std::nullopt;
      if (begin && *begin && count)
        exported.add(kernel, *begin, kernel.read_field(module, *count).value_or(0));
    }
  return exported;
}

std::optional<Gva> ExportedSymbols::find(std::string_view name) const {
  const auto found = symbols_.find(name);
  return found == symbols_.end() ? std::nullopt : std::optional(found->second);
}

} // namespace lararium::linux_guest
