// Where a loaded module's sections lie, and what the kernel and its modules give to others: what is needed to relocate
// a module's file as the kernel did.
#pragma once

#include "lararium/os/linux/kernel.h"

#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace lararium::linux_guest {

struct ModuleSections {
  struct Section {
    std::string name;
    Gva address;
  };
  bool is_live = false;       // else it is being loaded or given free
  std::string source_version; // empty: there is none
  std::vector<Section> items; // as the kernel shows them in /sys/module/NAME/sections; those of CPUs are not among them
  std::optional<Gva> per_cpu; // what stands for .data..percpu

  [[nodiscard]] std::optional<Gva> address_of(std::string_view name) const;

  // `module`: its struct module. Fails with `not_found` where the kernel does not keep the sections' addresses.
  [[nodiscard]] static Result<ModuleSections> read(const Kernel &kernel, Gva module);
};

// EXPORT_SYMBOL() of the kernel and of all `modules`.
class ExportedSymbols {
public:
  [[nodiscard]] static ExportedSymbols read(const Kernel &kernel, const std::vector<Gva> &modules);
  [[nodiscard]] std::optional<Gva> find(std::string_view name) const;

private:
  struct Hash {
    using is_transparent = void;
    std::size_t operator()(std::string_view name) const { return std::hash<std::string_view>()(name); }
  };
  void add(const Kernel &kernel, Gva begin, std::uint64_t count);
  std::unordered_map<std::string, Gva, Hash, std::equal_to<>> symbols_;
};

} // namespace lararium::linux_guest
