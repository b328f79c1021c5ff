#include "handler.h"

#include <cstring>
#include <fmt/format.h>
#include <optional>

namespace lararium::detect {
namespace {

constexpr std::size_t table_limit = 8192, table_size_limit = 4096;

struct Objection {
  Severity severity = Severity::high;
  std::string why;
};

bool can_be_executed(const Scene &scene, Gva address) {
  const auto place = scene.kernel().space().translate(address);
  return place && place->executable;
}

std::optional<Objection> objection_to(const Scene &scene, Gva at, Gva target, Trust trust) {
  if (!target)
    return std::nullopt;
  const CodeRange *owner = scene.code().find(target);
  if (owner == nullptr) {
    // Lists that were read in part leave lawful code without an owner.
    if (scene.code().complete() && can_be_executed(scene, target))
      return Objection{Severity::critical, "which belongs to no module, no BPF program and no tracer"};
    return std::nullopt;
  }
  if (owner->owner == CodeOwner::kernel_init)
    return Objection{Severity::high, "which was given free after boot"};
  if (owner->owner != CodeOwner::module && owner->owner != CodeOwner::module_init)
    return std::nullopt;
  if (trust == Trust::no_foreign && scene.is_foreign_module(owner->name))
    return Objection{Severity::high, fmt::format("in {}, a module from outside the kernel's tree", owner->name)};
  if (trust == Trust::kernel_or_own && scene.module_at(at) != owner->name)
    return Objection{Severity::critical,
                     fmt::format("in the module {}, which does not own these operations", owner->name)};
  return std::nullopt;
}

} // namespace

bool is_lawful(const Scene &scene, Gva at, Gva target, Trust trust) { return !objection_to(scene, at, target, trust); }

void judge(const Scene &scene, const Handler &handler, Findings &findings) {
  const auto objection = objection_to(scene, handler.at, handler.target, handler.trust);
  if (!objection)
    return;
  if (findings.is_full())
    return findings.leave_out();
  const CodeRange *owner = scene.code().find(handler.target);
  findings
      .add({.subject = handler.what,
            .severity = objection->severity,
            .technique = std::string(handler.technique),
            .sentence = fmt::format("{}{}{} leads to {}, {}", handler.what, handler.note.empty() ? "" : " ",
                                    handler.note, scene.describe(handler.target), objection->why)})
      .with("address", handler.at)
      .with("found", handler.target)
      .with("owner", std::string(owner != nullptr ? name_of(owner->owner) : "nobody"));
}

bool lies_well(const Scene &scene, Gva table, bool foreign_may_own) {
  // Lists of modules that were read in part leave lawful tables without an owner.
  if (!scene.kernel().is_kernel_address(table) || !scene.code().complete())
    return true;
  const std::string holder = scene.holder_of(table);
  if (holder.empty())
    return !scene.kernel().space().translate(table); // a stale pointer is no table
  return holder == "kernel" || foreign_may_own || !scene.is_foreign_module(holder);
}

void judge_place(const Scene &scene, const TablePointer &pointer, Findings &findings) {
  if (lies_well(scene, pointer.table, pointer.foreign_may_own))
    return;
  if (findings.is_full())
    return findings.leave_out();
  const std::string holder = scene.holder_of(pointer.table);
  findings
      .add({.subject = pointer.what,
            .severity = Severity::high,
            .technique = "T1014",
            .sentence = fmt::format("{}{}{} lie in {}", pointer.what, pointer.note.empty() ? "" : " ", pointer.note,
                                    holder.empty() ? "memory of neither the kernel nor a module"
                                                   : holder + ", a module from outside the kernel's tree")})
      .with("address", pointer.at)
      .with("found", pointer.table)
      .with("owner", holder.empty() ? std::string("nobody") : holder);
}

bool OperationTables::is_new(Gva table) {
  return scene_->kernel().is_kernel_address(table) && seen_.size() < table_limit && seen_.insert(table.value).second;
}

std::string OperationTables::name_of(Gva table) const {
  const auto symbol = scene_->system().symbolize(table);
  return symbol && symbol->second == 0 ? symbol->first.name : fmt::format("{:#x}", table.value);
}

const OperationTables::Type &OperationTables::type_of(std::string_view name) {
  const auto [place, is_first] = types_.try_emplace(std::string(name));
  Type &type = place->second;
  if (!is_first)
    return type;
  const Types &types = scene_->kernel().types();
  const auto id = types.find(name);
  const auto size = id ? types.size_of(*id) : std::nullopt;
  if (!size || *size > table_size_limit)
    return type;
  type.size = *size;
  for (const MemberInfo &member : types.members(*id)) {
    const auto pointer = types.info(types.strip(member.type));
    if (!pointer || pointer->kind != TypeKind::pointer || member.bit_size != 0)
      continue;
    const auto function = types.info(types.strip(pointer->target));
    if (function && function->kind == TypeKind::function_prototype && member.bit_offset / 8 + 8 <= type.size)
      type.functions.push_back({member.name, member.bit_offset / 8});
  }
  return type;
}

void OperationTables::judge(Gva table, std::string_view type_name, std::string_view user) {
  const Type &type = type_of(type_name);
  bytes_.resize(type.size);
  if (type.functions.empty() || !scene_->kernel().space().read(table, bytes_))
    return;
  const std::string holder = scene_->holder_of(table);
  const Trust trust = holder == "kernel"                                     ? Trust::kernel_or_own
                      : !holder.empty() && scene_->is_foreign_module(holder) ? Trust::any_owner
                                                                             : Trust::no_foreign;
  for (const Function &function : type.functions) {
    Gva target;
    std::memcpy(&target.value, bytes_.data() + function.offset, sizeof(target.value));
    const Gva at = table + function.offset;
    if (is_lawful(*scene_, at, target, trust))
      continue;
    if (findings_->is_full())
      findings_->leave_out();
    else
      detect::judge(*scene_,
                    {.at = at,
                     .target = target,
                     .what = fmt::format("{} of the {} {}", function.name, type_name, name_of(table)),
                     .trust = trust,
                     .note = std::string(user)},
                    *findings_);
  }
}

} // namespace lararium::detect
