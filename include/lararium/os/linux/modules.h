// Loaded kernel modules, from the kernel's list of them, and their symbols.
#pragma once

#include "lararium/os/common/views.h"
#include "lararium/os/linux/kernel.h"
#include "lararium/os/linux/list.h"

#include <functional>
#include <string>
#include <vector>

namespace lararium::linux_guest {

[[nodiscard]] Result<View<KernelModule>> read_modules(const Kernel &kernel);

// Part of a module's memory. Before 6.4 data, read-only data and what is read-only after initialisation are one region.
struct ModuleRegion {
  enum class Kind : std::uint8_t { text, data, init_text, init_data };
  Gva module; // its struct module
  std::string name;
  Kind kind = Kind::text;
  Gva base;
  std::uint64_t size = 0;
};

// Of every module in the list. Incomplete when the walk is not consistent().
struct ModuleRegions {
  std::vector<ModuleRegion> items;
  WalkResult walk;
};
[[nodiscard]] Result<ModuleRegions> read_module_regions(const Kernel &kernel);

// The symbols of all modules as their own kallsyms hold them. The visitor returns false to stop.
ViewStatus for_each_module_symbol(const Kernel &kernel, const std::function<bool(const KernelSymbol &)> &visitor);

} // namespace lararium::linux_guest
