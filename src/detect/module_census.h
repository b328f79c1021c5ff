// The modules that each of the kernel's records of them has.
#pragma once

#include "lararium/os/linux/list.h"

#include <set>

namespace lararium::detect {

struct ModuleSource {
  const char *name;
  std::set<Gva> modules; // addresses of struct module
  bool complete = false; // false: what is missing in it says nothing
};

struct ModuleCensus {
  ModuleSource list, tree, sysfs;
  // Not all modules are there, and who forgets these is named by them.
  ModuleSource warnings, types;
  linux_guest::WalkResult list_walk;
};

[[nodiscard]] Result<ModuleCensus> take_module_census(const linux_guest::Kernel &kernel);

} // namespace lararium::detect
