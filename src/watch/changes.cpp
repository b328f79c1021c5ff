#include "lararium/watch/changes.h"

#include "lararium/os/common/actor.h"

#include <algorithm>
#include <fmt/format.h>

namespace lararium::watch {

std::string clipped(std::string_view text) {
  constexpr std::size_t limit = 4096;
  return text.size() <= limit ? std::string(text) : std::string(text.substr(0, limit)) + "...";
}

Record &Records::add(std::string type, std::string sentence) {
  Record record;
  record.type = std::move(type);
  record.sentence = std::move(sentence);
  if (items_.size() < limit) {
    items_.push_back(std::move(record));
    return items_.back();
  }
  ++left_out_;
  overflow_ = std::move(record);
  return overflow_;
}

void ModuleChanges::update(const View<KernelModule> &now, Records &records) {
  std::map<std::string, KernelModule> items;
  for (const KernelModule &module : now.items)
    if (items.size() < 2 * Followed<KernelModule>::limit)
      items.emplace(fmt::format("{} {:x}", clipped(module.name), module.module.value), module);
  const auto tell = [&](const char *type, const KernelModule &module, const char *what) {
    Record &record = records.add(type, fmt::format("module {} {}", clipped(module.name), what));
    record.with("module", clipped(module.name)).with("address", module.base).with("size", module.size);
    if (!module.taint.empty())
      record.with("taint", clipped(module.taint));
    if (!module.arguments.empty())
      record.with("arguments", clipped(module.arguments));
  };
  followed_.update(
      std::move(items), now.status, [&](const KernelModule &module) { tell("module_loaded", module, "was loaded"); },
      [](const KernelModule &, const KernelModule &) {},
      [&](const KernelModule &module) { tell("module_unloaded", module, "was unloaded"); });
}

void MountChanges::update(const View<Mount> &now, Records &records) {
  std::map<std::string, Mount> items;
  std::set<std::uint32_t> namespaces;
  for (const Mount &mount : now.items)
    if (items.size() < 2 * Followed<Mount>::limit) {
      namespaces.insert(mount.mount_namespace);
      items.emplace(fmt::format("{} {} {} {}", mount.mount_namespace, mount.id, clipped(mount.mount_point),
                                clipped(mount.source)),
                    mount);
    }
  const auto tell = [&](const char *type, const Mount &mount, const char *what) {
    records
        .add(type, fmt::format("{} ({} of {}) was {}", clipped(mount.mount_point), clipped(mount.filesystem),
                               clipped(mount.source), what))
        .with("mount_point", clipped(mount.mount_point))
        .with("filesystem", clipped(mount.filesystem))
        .with("source", clipped(mount.source))
        .with("options", clipped(mount.options))
        .with("mount_namespace", std::uint64_t{mount.mount_namespace});
  };
  followed_.update(
      std::move(items), now.status,
      [&](const Mount &mount) {
        if (namespaces_.contains(mount.mount_namespace))
          tell("mounted", mount, "mounted");
      },
      [](const Mount &, const Mount &) {},
      [&](const Mount &mount) {
        if (namespaces.contains(mount.mount_namespace))
          tell("unmounted", mount, "unmounted");
      });
  namespaces_ = std::move(namespaces);
}

void BpfChanges::update(const BpfView &now, const ActorByPid &actor, Records &records) {
  std::map<std::string, BpfProgram> items;
  for (const BpfProgram &program : now.programs)
    if (items.size() < 2 * Followed<BpfProgram>::limit)
      items.emplace(fmt::format("{} {:x}", program.id, program.program.value), program);
  const auto tell = [&](const char *type, const BpfProgram &program, const char *what) {
    const std::string name = program.name.empty() ? std::string() : fmt::format(" \"{}\"", clipped(program.name));
    Record &record =
        records.add(type, fmt::format("BPF program {}{} ({}) was {}", program.id, name, clipped(program.type), what));
    record.with("program", std::uint64_t{program.id})
        .with("program_type", clipped(program.type))
        .with("name", clipped(program.name))
        .with("tag", clipped(program.tag));
    if (!program.attached_to.empty())
      record.with("attached_to", clipped(fmt::format("{}", fmt::join(program.attached_to, ", "))));
    if (!program.owners.empty())
      record.actor = actor(program.owners.front().pid);
  };
  followed_.update(
      std::move(items), now.status, [&](const BpfProgram &program) { tell("bpf_program_loaded", program, "loaded"); },
      [](const BpfProgram &, const BpfProgram &) {},
      [&](const BpfProgram &program) { tell("bpf_program_unloaded", program, "unloaded"); });
}

void FindingChanges::update(const std::vector<CheckRound> &rounds, Records &records) {
  std::set<std::pair<std::string, std::string>> found;
  std::set<std::string> made;
  const auto tell = [&](const char *type, const Finding &finding, std::string sentence) {
    Record &record = records.add(type, std::move(sentence));
    record.kind = RecordKind::finding;
    record.actor = finding.process;
    record.finding = finding;
  };
  for (const CheckRound &round : rounds) {
    if (!round.made)
      continue;
    made.insert(round.check);
    for (const Finding &finding : round.findings) {
      const auto key = std::pair(finding.check, finding.subject);
      found.insert(key);
      if (standing_.contains(key))
        continue;
      if (standing_.size() >= limit) {
        ++left_out_;
        continue;
      }
      standing_.emplace(key, finding);
      tell("finding_appeared", finding, finding.sentence);
    }
  }
  std::erase_if(standing_, [&](const auto &standing) {
    const auto &[key, finding] = standing;
    if (found.contains(key) || !made.contains(key.first))
      return false;
    tell("finding_cleared", finding, "no more: " + finding.sentence);
    return true;
  });
}

} // namespace lararium::watch
