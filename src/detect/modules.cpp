// Modules that are in one of the kernel's records and not in another: who hides from `lsmod` takes itself off the list
// of modules, and rarely off all of list, tree, sysfs and memory.

#include "lararium/os/linux/modules.h"
#include "lararium/detect/check.h"
#include "lararium/os/linux/list.h"
#include "lararium/os/linux/rb_tree.h"

#include <fmt/format.h>
#include <map>
#include <set>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;
using linux_guest::LayoutResolver;
using linux_guest::WalkResult;

constexpr std::size_t module_limit = 16384;

// What is seen of modules in one of the kernel's records: addresses of struct module.
struct Source {
  const char *name;
  std::set<Gva> modules;
  bool complete = false; // false: what is missing in it says nothing
};

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
    TRY_ASSIGN(const auto regions, linux_guest::read_module_regions(kernel));
    Source list{"the list of modules", {}, regions.walk.consistent()};
    for (const auto &region : regions.items)
      list.modules.insert(region.module);
    const Source tree = from_tree(kernel), sysfs = from_sysfs(kernel);
    for (const Source *other : {&tree, &sysfs})
      for (const Gva module : other->modules)
        if (list.complete && !list.modules.contains(module))
          report(scene, names, module, list, *other, findings);
    for (const Gva module : list.modules)
      for (const Source *other : {&tree, &sysfs})
        if (other->complete && !other->modules.contains(module))
          report(scene, names, module, *other, list, findings);
    if (!regions.walk.consistent())
      findings
          .add({.subject = "the list of modules",
                .severity = Severity::high,
                .technique = "T1014",
                .sentence = "the list of modules does not end well: its links contradict each other"})
          .with("address", regions.walk.at);
    return {};
  }

private:
  static void report(const Scene &scene, const Names &names, Gva module, const Source &missing, const Source &seen,
                     Findings &findings) {
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

  // mod_tree, by which addresses are looked up: a latch tree (93c2e105f6bc, 4.2), whose nodes name their module.
  static Source from_tree(const Kernel &kernel) {
    Source source{"the tree of modules (mod_tree)", {}, false};
    const auto tree = kernel.symbol("mod_tree");
    LayoutResolver layout(kernel.types());
    const auto node_member = layout.optional("mod_tree_node", "node");
    const auto module_member = layout.optional("mod_tree_node", "mod");
    const auto roots = layout.optional_any("mod_tree_root", {"root.tree"});
    const auto rb = linux_guest::RbLayout::resolve(kernel);
    const auto node_size = kernel.types().size_of("rb_node");
    if (!tree || !node_member || !module_member || !rb || !node_size)
      return source;
    // struct latch_tree_root: a sequence counter and two trees, of which one is whole at any time.
    const auto trees = roots ? roots : layout.optional("latch_tree_root", "tree");
    if (!trees)
      return source;
    const std::uint64_t root_size = kernel.types().size_of("rb_root").value_or(8);
    for (unsigned which = 0; which < 2; ++which) {
      const auto root = kernel.read_pointer(*tree + trees->offset + which * root_size);
      if (!root)
        continue;
      std::set<Gva> modules;
      const WalkResult walk = linux_guest::walk_rb_tree(kernel, *rb, *root, module_limit * 8, [&](Gva link) {
        const Gva node = link - which * *node_size - node_member->offset;
        if (const auto module = kernel.read_pointer(node, *module_member); module && kernel.is_kernel_address(*module))
          modules.insert(*module);
        return true;
      });
      source.modules.insert(modules.begin(), modules.end());
      source.complete |= walk.consistent();
    }
    return source;
  }

  // /sys/module: the kobjects of module_kset. Built-in code has entries too, without a struct module.
  static Source from_sysfs(const Kernel &kernel) {
    Source source{"sysfs (/sys/module)", {}, false};
    const auto kset_pointer = kernel.symbol("module_kset");
    LayoutResolver layout(kernel.types());
    const auto list = layout.optional("kset", "list"), entry = layout.optional("kobject", "entry");
    const auto own = layout.optional("module_kobject", "kobj"),
               module_member = layout.optional("module_kobject", "mod");
    if (!kset_pointer || !list || !entry || !own || !module_member)
      return source;
    const auto kset = kernel.read_pointer(*kset_pointer);
    if (!kset || !kernel.is_kernel_address(*kset))
      return source;
    const WalkResult walk = linux_guest::walk_list(kernel, *kset + list->offset, module_limit, [&](Gva link) {
      const Gva object = link - entry->offset - own->offset;
      if (const auto module = kernel.read_pointer(object, *module_member);
          module && *module && kernel.is_kernel_address(*module))
        source.modules.insert(*module);
      return true;
    });
    source.complete = walk.consistent();
    return source;
  }
};

LARARIUM_CHECK(
    Modules, "modules", "T1014 T1547.006", "modules that hide from lsmod",
    "Compares the list of modules with the tree by which the kernel looks up addresses, and with sysfs. A "
    "module that is in one and not in another is hidden, or half removed. One that took itself out of all of "
    "them is found by its code: see orphan_code.")

} // namespace
} // namespace lararium::detect
