#include "pages.h"

#include <algorithm>
#include <cstring>
#include <fmt/format.h>
#include <sys/random.h>

extern "C" {
extern const std::byte lararium_sim_code[], lararium_sim_code_end[];
}

namespace lararium::gate::sim {
namespace {

using linux_guest::Kernel;

constexpr std::uint64_t plans_at = page, rules_at = 2 * page, texts_at = 3 * page;

CaptureKind kind_of(KeepKind kind) {
  switch (kind) {
  case KeepKind::counted: return CaptureKind::counted;
  case KeepKind::text: return CaptureKind::text;
  case KeepKind::path: return CaptureKind::path;
  case KeepKind::path_below: return CaptureKind::path_below;
  case KeepKind::user_arguments: return CaptureKind::user_strings;
  case KeepKind::member:
  case KeepKind::bytes: break;
  }
  return CaptureKind::bytes;
}

Role role_of(KeepRole role) {
  switch (role) {
  case KeepRole::path: return Role::path;
  case KeepRole::socket_address: return Role::socket_address;
  case KeepRole::port: return Role::port;
  case KeepRole::none: break;
  }
  return Role::none;
}

Result<Capture> capture_of(const Kernel &kernel, const Keep &keep) {
  Capture capture{.kind = kind_of(keep.kind),
                  .role = role_of(keep.role),
                  .argument = keep.argument,
                  .second = keep.second,
                  .derefs = 0,
                  .length = keep.length,
                  .offsets = {}};
  std::vector<Member> members = keep.members;
  if (keep.kind == KeepKind::user_arguments) {
    members = {{"linux_binprm", "mm"}, {"linux_binprm", "p"}, {"linux_binprm", "argc"}};
    capture.length = strings_limit;
  }
  if (members.size() > std::size(capture.offsets))
    return fail(ErrorCode::unsupported, "too many members follow each other");
  for (std::size_t i = 0; i < members.size(); ++i) {
    if (members[i].type.empty())
      continue;
    const auto field = kernel.types().field(members[i].type, members[i].name);
    if (!field || field->offset > UINT16_MAX)
      return fail(ErrorCode::unsupported,
                  fmt::format("the kernel's struct {} has no {}", members[i].type, members[i].name));
    capture.offsets[i] = static_cast<std::uint16_t>(field->offset);
    if (keep.kind == KeepKind::member && i + 1 == members.size())
      capture.length = static_cast<std::uint16_t>(std::min<std::uint32_t>(field->size, sizeof(std::uint64_t)));
  }
  if (keep.kind != KeepKind::user_arguments)
    capture.derefs = static_cast<std::uint16_t>(members.empty() ? 0 : members.size() - 1);
  return capture;
}

Result<Config> config_of(const Kernel &kernel) {
  Config c{};
  linux_guest::LayoutResolver layout(kernel.types());
  const auto take = [&](std::uint32_t &out, std::string_view type, std::string_view member) {
    out = layout.require(type, member).offset;
  };
  take(c.task_pid, "task_struct", "pid");
  take(c.task_tgid, "task_struct", "tgid");
  take(c.task_comm, "task_struct", "comm");
  take(c.task_start_time, "task_struct", "start_time");
  take(c.task_parent, "task_struct", "real_parent");
  take(c.task_cred, "task_struct", "real_cred");
  take(c.task_mm, "task_struct", "mm");
  take(c.cred_euid, "cred", "euid.val");
  take(c.mm_exe_file, "mm_struct", "exe_file");
  take(c.mm_pgd, "mm_struct", "pgd");
  take(c.path_mnt, "path", "mnt");
  take(c.path_dentry, "path", "dentry");
  take(c.dentry_parent, "dentry", "d_parent");
  take(c.dentry_name, "dentry", "d_name.name");
  take(c.dentry_name_length, "dentry", "d_name.len");
  take(c.vfsmount_root, "vfsmount", "mnt_root");
  take(c.mount_vfsmount, "mount", "mnt");
  take(c.mount_parent, "mount", "mnt_parent");
  take(c.mount_mountpoint, "mount", "mnt_mountpoint");
  TRY(layout.check());
  const auto groups = layout.optional("task_struct", "cgroups"), group = layout.optional("css_set", "dfl_cgrp"),
             node = layout.optional("cgroup", "kn"), id = layout.optional("kernfs_node", "id");
  if (groups && group && node && id && id->size == sizeof(std::uint64_t)) {
    c.has_cgroups = 1;
    c.task_cgroups = groups->offset;
    c.set_cgroup = group->offset;
    c.cgroup_node = node->offset;
    c.node_id = id->offset;
    const auto name = layout.optional("kernfs_node", "name"),
               parent = layout.optional_any("kernfs_node", {"__parent", "parent"}); // renamed in 6.15, 633488947ef6
    if (name && parent) {
      c.has_group_names = 1;
      c.node_name = name->offset;
      c.node_parent = parent->offset;
    }
  }
  return c;
}

// Where each CPU keeps its current task, from its gs base on: a member of pcpu_hot from 6.2 to 6.14 (e57ef2ed97c1,
// 46e8fff6d45f), a variable of its own before and after.
Result<std::uint64_t> current_task_offset(const Kernel &kernel) {
  const auto base = kernel.per_cpu_pointer(Gva{0}, 0);
  const auto hot = kernel.per_cpu_symbol("pcpu_hot", 0);
  const auto member = kernel.types().field("pcpu_hot", "current_task");
  const auto place = hot && member ? std::optional(*hot + member->offset) : kernel.per_cpu_symbol("current_task", 0);
  if (!base || !place)
    return fail(ErrorCode::unsupported, "the kernel does not say where a CPU keeps its current task");
  return place->value - base->value;
}

} // namespace

Bytes code() { return {lararium_sim_code, static_cast<std::size_t>(lararium_sim_code_end - lararium_sim_code)}; }

Keys new_keys(std::uint32_t cpus) {
  Keys keys;
  keys.cpus.resize(cpus);
  const auto fill = [](void *to, std::size_t size) {
    // Up to 256 bytes cannot fail once the pool is ready, and a host's is.
    for (std::size_t at = 0; at < size;) {
      const ssize_t got = ::getrandom(static_cast<std::byte *>(to) + at, std::min<std::size_t>(size - at, 256), 0);
      at += got > 0 ? static_cast<std::size_t>(got) : 0;
    }
  };
  fill(keys.hash.data(), sizeof keys.hash);
  for (auto &key : keys.cpus)
    fill(key.data(), sizeof key);
  return keys;
}

Result<Plan> plan_of(const Kernel &kernel, const HookPoint &point) {
  Plan plan{};
  if (point.keeps.size() > capture_limit)
    return fail(ErrorCode::unsupported, "more is to be kept of a call than there is room for");
  for (std::size_t i = 0; i < point.keeps.size(); ++i) {
    TRY_ASSIGN(plan.captures[i], capture_of(kernel, point.keeps[i]));
  }
  return plan;
}

Result<void> write_rules(std::span<std::byte> pages, const SimOptions &options,
                         const std::vector<const HookEntry *> &hooks) {
  if (options.verdicts.size() + options.records.size() > rule_limit)
    return fail(ErrorCode::usage, fmt::format("more rules than there is room for in the guest ({}): a value of several "
                                              "counts as that many",
                                              rule_limit));
  auto &texts = *reinterpret_cast<Texts *>(pages.data() + texts_at);
  auto *rules = reinterpret_cast<Rule *>(pages.data() + rules_at);
  std::memset(rules, 0, page);
  std::memset(texts.text, 0, sizeof texts.text);
  std::size_t used = 0;
  for (const auto *list : {&options.verdicts, &options.records})
    for (const SimRule &rule : *list) {
      Rule out{};
      for (std::size_t i = 0; i < hooks.size(); ++i)
        if (rule.hooks.empty() || std::ranges::find(rule.hooks, hooks[i]) != rule.hooks.end())
          out.hooks |= 1U << i;
      constexpr std::array actions{Action::allow, Action::deny, Action::ask, Action::record, Action::skip};
      out.action = actions[static_cast<std::size_t>(rule.action)];
      out.error = static_cast<std::uint8_t>(options.error);
      out.number = rule.number;
      const auto condition = [&](bool is_given, std::uint16_t bit) {
        out.conditions |= is_given ? bit : std::uint16_t{0};
      };
      condition(rule.uid && !rule.uid_negated, if_uid);
      condition(rule.uid && rule.uid_negated, if_uid_not);
      condition(rule.port.has_value(), if_port);
      condition(rule.pid.has_value(), if_pid);
      condition(rule.below.has_value(), if_below);
      condition(rule.path && !rule.path_begins, if_path);
      condition(rule.path && rule.path_begins, if_path_begins);
      condition(rule.container && !rule.container_begins, if_container);
      condition(rule.container && rule.container_begins, if_container_begins);
      condition(rule.contained, if_contained);
      if (rule.uid)
        out.uid_low = rule.uid->low, out.uid_high = rule.uid->high;
      if (rule.port)
        out.port_low = rule.port->low, out.port_high = rule.port->high;
      out.pid = rule.pid.value_or(0);
      out.below = rule.below.value_or(0);
      const auto put = [&](const std::optional<std::string> &text, std::uint16_t &at, std::uint16_t &length) {
        if (!text)
          return true;
        if (used + text->size() > sizeof texts.text)
          return false;
        at = static_cast<std::uint16_t>(used);
        length = static_cast<std::uint16_t>(text->size());
        std::ranges::copy(*text, texts.text + used);
        used += text->size();
        return true;
      };
      if (!put(rule.path, out.path, out.path_length) || !put(rule.container, out.container, out.container_length))
        return fail(ErrorCode::usage,
                    "the paths and containers of all rules together are longer than there is room for in the guest "
                    "(3 KiB)");
      *rules++ = out;
    }
  auto &config = *reinterpret_cast<Config *>(pages.data());
  config.verdict_rules = static_cast<std::uint32_t>(options.verdicts.size());
  config.record_rules = static_cast<std::uint32_t>(options.records.size());
  return {};
}

Result<std::vector<std::byte>> make_pages(const Kernel &kernel, const Shape &shape, const SimOptions &options,
                                          std::uint64_t patience_cycles, const std::vector<const HookEntry *> &hooks,
                                          const std::vector<Plan> &plans, const Keys &keys) {
  if (hooks.size() > hook_limit || plans.size() > plan_limit)
    return fail(ErrorCode::unsupported, "more hooks than the code in the guest has room for");
  std::vector<std::byte> pages(shape.size());
  TRY_ASSIGN(Config config, config_of(kernel));
  TRY_ASSIGN(config.current_task, current_task_offset(kernel));
  const auto direct_map = kernel.symbol("page_offset_base");
  const auto base = direct_map ? kernel.read<std::uint64_t>(*direct_map) : std::nullopt;
  if (!base)
    return fail(ErrorCode::unsupported, "the kernel does not say where it maps physical memory");
  config.kernel_begin = ~std::uint64_t{0} << (12 + 9 * kernel.location().root.levels - 1);
  config.direct_map = *base;
  for (const RamRange &range : kernel.memory().ranges())
    config.physical_limit = std::max(config.physical_limit, range.base.value + range.size);
  config.patience = patience_cycles;
  config.levels = static_cast<std::uint32_t>(kernel.location().root.levels);
  config.ring_size = static_cast<std::uint32_t>(shape.ring_size);
  std::memcpy(pages.data(), &config, sizeof config);
  std::ranges::copy(std::as_bytes(std::span(plans)), pages.begin() + plans_at);
  std::memcpy(pages.data() + texts_at, keys.hash.data(), sizeof keys.hash);
  for (std::uint32_t cpu = 0; cpu < shape.cpus; ++cpu)
    std::memcpy(pages.data() + shape.cpu_page(cpu) + offsetof(CpuState, key), keys.cpus[cpu].data(),
                sizeof keys.cpus[cpu]);
  TRY(write_rules(pages, options, hooks));
  return pages;
}

} // namespace lararium::gate::sim
