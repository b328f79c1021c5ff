#include "module_census.h"

#include "lararium/os/linux/modules.h"
#include "lararium/os/linux/rb_tree.h"

namespace lararium::detect {
namespace {

using linux_guest::Kernel;
using linux_guest::LayoutResolver;
using linux_guest::WalkResult;

constexpr std::size_t module_limit = 16384;

// mod_tree, by which addresses are looked up: a latch tree (93c2e105f6bc, 4.2), whose nodes name their module.
ModuleSource from_tree(const Kernel &kernel) {
  ModuleSource source{"the tree of modules (mod_tree)", {}, false};
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
ModuleSource from_sysfs(const Kernel &kernel) {
  ModuleSource source{"sysfs (/sys/module)", {}, false};
  const auto kset_pointer = kernel.symbol("module_kset");
  LayoutResolver layout(kernel.types());
  const auto list = layout.optional("kset", "list"), entry = layout.optional("kobject", "entry");
  const auto own = layout.optional("module_kobject", "kobj"), module_member = layout.optional("module_kobject", "mod");
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

// module_bug_list: every module that came in, so that the kernel finds where a warning comes from.
ModuleSource from_warnings(const Kernel &kernel) {
  ModuleSource source{"the list of modules that may warn (module_bug_list)", {}, false};
  const auto list = kernel.symbol("module_bug_list");
  const auto link = kernel.types().field("module", "bug_list");
  if (list && link)
    linux_guest::walk_list(kernel, *list, module_limit, [&](Gva node) {
      source.modules.insert(node - link->offset);
      return true;
    });
  return source;
}

// btf_modules: those that brought types for BPF (36e68442d1af, 5.11).
ModuleSource from_types(const Kernel &kernel) {
  ModuleSource source{"the list of modules with types (btf_modules)", {}, false};
  const auto list = kernel.symbol("btf_modules");
  const auto link = kernel.types().field("btf_module", "list"), owner = kernel.types().field("btf_module", "module");
  if (list && link && owner)
    linux_guest::walk_list(kernel, *list, module_limit, [&](Gva node) {
      if (const auto module = kernel.read_pointer(node - link->offset, *owner);
          module && *module && kernel.is_kernel_address(*module))
        source.modules.insert(*module);
      return true;
    });
  return source;
}

} // namespace

Result<ModuleCensus> take_module_census(const Kernel &kernel) {
  TRY_ASSIGN(const auto regions, linux_guest::read_module_regions(kernel));
  ModuleSource list{"the list of modules", {}, regions.walk.consistent()};
  for (const auto &region : regions.items)
    list.modules.insert(region.module);
  return ModuleCensus{std::move(list),       from_tree(kernel),  from_sysfs(kernel),
                      from_warnings(kernel), from_types(kernel), regions.walk};
}

} // namespace lararium::detect
