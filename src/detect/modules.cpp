// Modules that are in one of the kernel's records and not in another: who hides from `lsmod` takes itself off the list
// of modules, and rarely off all of list, tree, sysfs and memory.

#include "lararium/detect/check.h"
#include "module_census.h"

#include <fmt/format.h>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;
using linux_guest::LayoutResolver;

struct Names {
  FieldLocation name;
  FieldLocation state;
};

class Modules final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override {
    const Kernel &kernel = scene.kernel();
    LayoutResolver layout(kernel.types());
    const Names names{layout.require("module", "name"), layout.require("module", "state")};
    TRY(layout.check());
    TRY_ASSIGN(const ModuleCensus census, take_module_census(kernel));
    const auto &[list, tree, sysfs, warnings, types, list_walk] = census;
    for (const ModuleSource *other : {&tree, &sysfs, &warnings, &types})
      for (const Gva module : other->modules)
        if (list.complete && !list.modules.contains(module))
          report(scene, names, module, list, *other, findings);
    for (const Gva module : list.modules)
      for (const ModuleSource *other : {&tree, &sysfs})
        if (other->complete && !other->modules.contains(module))
          report(scene, names, module, *other, list, findings);
    if (!list_walk.consistent())
      findings
          .add({.subject = "the list of modules",
                .severity = Severity::high,
                .technique = "T1014",
                .sentence = "the list of modules does not end well: its links contradict each other"})
          .with("address", list_walk.at);
    return {};
  }

private:
  static void report(const Scene &scene, const Names &names, Gva module, const ModuleSource &missing,
                     const ModuleSource &seen, Findings &findings) {
    const Kernel &kernel = scene.kernel();
    const std::string name =
        kernel.space().read_c_string(module + names.name.offset, names.name.size).value_or("(no name)");
    // One that is being loaded or unloaded is on its way into or out of each record in turn.
    const auto state = kernel.read_field(module, names.state);
    if (state != 0)
      return;
    findings
        .add({.subject = fmt::format("{:#x} {}", module.value, missing.name),
              .severity = Severity::critical,
              .technique = "T1014",
              .sentence =
                  fmt::format("the module {} is in {} and not in {}: it is hidden", name, seen.name, missing.name)})
        .with("module", name)
        .with("address", module)
        .with("missing_from", std::string(missing.name))
        .with("seen_in", std::string(seen.name));
  }
};

LARARIUM_CHECK(
    Modules, "modules", "T1014 T1547.006", "modules that hide from lsmod",
    "Compares the list of modules with the tree by which the kernel looks up addresses, with sysfs, and with the lists "
    "of modules that may warn and that have types. A module that is in one and not in another is hidden, or half "
    "removed. "
    "One that took itself out of all of them is found by its code: see orphan_code.")

} // namespace
} // namespace lararium::detect
