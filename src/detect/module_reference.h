// Loaded modules beside the files that they were loaded from.
#pragma once

#include "lararium/os/linux/code_sites.h"
#include "lararium/os/linux/modules.h"
#include "lararium/symbols/module_folder.h"
#include "reference_text.h"

#include <string>
#include <vector>

namespace lararium::detect {

// Compares the code and read-only data of every module that has a file of the same build in `folder`. What could not be
// compared is in the result: sentences for people.
[[nodiscard]] std::vector<std::string> compare_modules(const ModuleFolder &folder, const linux_guest::Kernel &kernel,
                                                       const std::vector<linux_guest::ModuleRegion> &regions,
                                                       const linux_guest::CodeSites &now,
                                                       const ReferenceText::Give &give);

} // namespace lararium::detect
