#include "handler.h"

#include <fmt/format.h>

namespace lararium::detect {

void judge(const Scene &scene, const Handler &handler, Findings &findings) {
  if (!handler.target)
    return;
  const CodeRange *owner = scene.code().find(handler.target);
  const auto report = [&](Severity severity, std::string why) {
    findings
        .add({.subject = handler.what,
              .severity = severity,
              .technique = std::string(handler.technique),
              .sentence = fmt::format("{} leads to {}, {}", handler.what, scene.describe(handler.target), why)})
        .with("address", handler.at)
        .with("found", handler.target)
        .with("owner", std::string(owner != nullptr ? name_of(owner->owner) : "nobody"));
  };
  if (owner == nullptr) {
    // Lists that were read in part leave lawful code without an owner.
    if (scene.code().complete())
      report(Severity::critical, "which belongs to no module, no BPF program and no tracer");
    return;
  }
  if (owner->owner == CodeOwner::kernel_init)
    return report(Severity::high, "which was given free after boot");
  if (owner->owner != CodeOwner::module && owner->owner != CodeOwner::module_init)
    return;
  if (handler.trust == Trust::no_foreign && scene.is_foreign_module(owner->name))
    return report(Severity::high, fmt::format("in {}, a module from outside the kernel's tree", owner->name));
  if (handler.trust == Trust::kernel_or_own && scene.module_at(handler.at) != owner->name)
    report(Severity::critical, fmt::format("in the module {}, which does not own these operations", owner->name));
}

void judge_operations(const Scene &scene, Gva operations, std::string_view type, const std::string &what, Trust trust,
                      Findings &findings) {
  const Types &types = scene.kernel().types();
  const auto id = types.find(type);
  if (!id || !operations)
    return;
  constexpr std::size_t most_members = 256;
  std::size_t count = 0;
  for (const MemberInfo &member : types.members(*id)) {
    if (++count > most_members)
      return;
    const auto pointer = types.info(types.strip(member.type));
    if (!pointer || pointer->kind != TypeKind::pointer)
      continue;
    const auto function = types.info(types.strip(pointer->target));
    if (!function || function->kind != TypeKind::function_prototype)
      continue;
    const Gva at = operations + member.bit_offset / 8;
    if (const auto target = scene.kernel().read_pointer(at))
      judge(scene, {at, *target, fmt::format("{} of {}", member.name, what), "T1014", trust}, findings);
  }
}

} // namespace lararium::detect
