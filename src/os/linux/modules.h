// Loaded kernel modules, from the kernel's list of them, and their symbols.
#pragma once

#include "kernel.h"
#include "lararium/os/common/views.h"

#include <functional>

namespace lararium::linux_guest {

[[nodiscard]] Result<View<KernelModule>> read_modules(const Kernel &kernel);

// The symbols of all modules as their own kallsyms hold them. The visitor returns false to stop.
ViewStatus for_each_module_symbol(const Kernel &kernel, const std::function<bool(const KernelSymbol &)> &visitor);

} // namespace lararium::linux_guest
