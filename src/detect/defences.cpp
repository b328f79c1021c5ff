// What guards a kernel, and that an attacker with the run of its memory switches off first: the hooks of its security
// modules, settings that only ever get stricter, what it tells of itself, and its log.
//
// Most of it contradicts something that the kernel keeps elsewhere, and one look finds it. Where nothing is left of
// what was there before, it is found by a Check object that saw it before (`watch`).

#include "handler.h"
#include "lararium/os/linux/list.h"
#include "strongest.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <map>
#include <set>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;
using linux_guest::LayoutResolver;
using Field = std::optional<FieldLocation>;

constexpr const char *disable_tools = "T1562.001", *impair_audit = "T1562.012", *block_indicators = "T1562.006",
                     *clear_logs = "T1070.002";
constexpr std::size_t hook_limit = 1024; // of one security module, and in one list; Linux has some 250 kinds of hooks
constexpr std::size_t array_limit = 256; // of security modules' hooks
constexpr std::size_t member_limit = 1024;
constexpr std::size_t module_limit = 16384;

// The security modules' hooks. Each module has an array of struct security_hook_list, of which each element knows where
// it was put: into a list of security_hook_heads, or, since 6.12 (417c5643cd67), into a slot of static_calls_table that
// is called directly. The arrays stay as they were, so that an element that is not where it was put was taken out.
struct HookLayout {
  // An array, by its symbol.
  struct Array {
    Gva begin;
    std::uint64_t count = 0;
  };
  std::optional<FieldLocation> function;
  Field link, head, owner_name;      // lists
  Field calls, owner, owner_id_name; // slots
  Field key, trampoline, hook, active, key_function, enabled;
  std::uint64_t stride = 0, slot_size = 0;
  Gva begin, end; // of security_hook_heads or static_calls_table
  bool lists = false;
  std::vector<std::string> names; // of what stands there, by offset / 8
  std::vector<Array> arrays;

  static Result<HookLayout> resolve(const Kernel &kernel) {
    const Types &types = kernel.types();
    HookLayout f;
    const char *const element = "security_hook_list";
    f.function = types.field(element, "hook");
    f.stride = types.size_of(element).value_or(0);
    f.link = types.field(element, "list");
    f.head = types.field(element, "head");
    f.owner_name = types.field(element, "lsm");
    f.calls = types.field(element, "scalls");
    f.owner = types.field(element, "lsmid");
    f.owner_id_name = types.field("lsm_id", "name");
    f.key = types.field("lsm_static_call", "key");
    f.trampoline = types.field("lsm_static_call", "trampoline");
    f.hook = types.field("lsm_static_call", "hl");
    f.active = types.field("lsm_static_call", "active");
    f.slot_size = types.size_of("lsm_static_call").value_or(0);
    f.key_function = types.field("static_call_key", "func");
    f.enabled = types.field("static_key", "enabled");
    f.lists = f.link && f.head;
    const bool slots = f.calls && f.key && f.trampoline && f.hook && f.active && f.key_function && f.enabled &&
                       f.slot_size >= 32 && f.slot_size <= 256;
    if (!f.function || f.stride < 16 || f.stride > 256 || (!f.lists && !slots))
      return fail(ErrorCode::no_types, "the kernel's type information lacks security_hook_list");
    const char *const table_type = f.lists ? "security_hook_heads" : "lsm_static_calls_table";
    const auto table = kernel.symbol(f.lists ? "security_hook_heads" : "static_calls_table");
    const auto id = types.find(table_type);
    const auto size = types.size_of(table_type);
    if (!table || !id || !size || *size > 1 << 20)
      return fail(ErrorCode::not_found, "the kernel has no table of its security modules' hooks");
    f.begin = *table;
    f.end = *table + *size;
    f.names.resize(*size / 8);
    std::size_t members = 0;
    for (const MemberInfo &member : types.members(*id)) {
      if (++members > member_limit)
        break;
      const std::uint64_t from = member.bit_offset / 64, length = types.size_of(member.type).value_or(8) / 8;
      for (std::uint64_t i = from; i < from + length && i < f.names.size(); ++i)
        f.names[i] = member.name;
    }
    f.find_arrays(kernel);
    return f;
  }

  // Their symbols are called "apparmor_hooks" and the like; the first element tells an array from other things.
  void find_arrays(const Kernel &kernel) {
    const Profile &profile = kernel.profile();
    for (std::size_t i = 0; i < profile.symbol_count() && arrays.size() < array_limit; ++i) {
      const ProfileSymbol symbol = profile.symbol_at(i);
      if (symbol.base != SymbolBase::image || !symbol.name.ends_with("_hooks"))
        continue;
      const Gva at = kernel.location().base + symbol.value;
      if (!place_of(kernel, at) || (!arrays.empty() && arrays.back().begin == at))
        continue;
      std::uint64_t next = symbol.value + stride * hook_limit;
      for (std::size_t k = i + 1; k < profile.symbol_count(); ++k) {
        const ProfileSymbol following = profile.symbol_at(k);
        if (following.base != SymbolBase::image || following.value > symbol.value) {
          if (following.base == SymbolBase::image)
            next = std::min(next, following.value);
          break;
        }
      }
      arrays.push_back({at, (next - symbol.value) / stride});
    }
  }

  // Where an element says that it belongs; nothing when that is no place of the table.
  [[nodiscard]] std::optional<Gva> place_of(const Kernel &kernel, Gva element) const {
    const auto place = kernel.read_pointer(element, lists ? *head : *calls);
    return place && *place >= begin && *place < end && (*place - begin) % 8 == 0 ? place : std::nullopt;
  }

  [[nodiscard]] std::string name_at(Gva place) const {
    const std::uint64_t index = (place - begin) / 8;
    return index < names.size() ? names[index] : "?";
  }

  // Empty: its module was not switched on.
  [[nodiscard]] std::string module_of(const Kernel &kernel, Gva element) const {
    const Field &field = lists ? owner_name : owner;
    auto text = field ? kernel.read_pointer(element, *field) : std::nullopt;
    if (text && *text && !lists)
      text = owner_id_name ? kernel.read_pointer(*text, *owner_id_name) : std::nullopt;
    return text && *text ? kernel.space().read_c_string(*text, 64).value_or("?") : std::string();
  }
};

class SecurityHooks {
public:
  SecurityHooks(const Scene &scene, const HookLayout &layout, Findings &findings)
      : scene_(scene), kernel_(scene.kernel()), f_(layout), findings_(findings) {}

  void look() {
    if (f_.lists)
      look_at_lists();
    else
      look_at_slots();
    for (const auto &array : f_.arrays)
      look_at_array(array);
  }

private:
  void look_at_lists() {
    for (Gva head = f_.begin; head < f_.end; head += 8) {
      const auto first = kernel_.read_pointer(head);
      if (!first)
        continue;
      const std::string name = f_.name_at(head);
      const auto walk = linux_guest::walk_chain(kernel_, *first, 0, hook_limit, [&](Gva node) {
        const Gva element = node - f_.link->offset;
        in_use_.insert(element);
        look_at_function(element, name);
        return true;
      });
      if (!walk.consistent())
        add(name, fmt::format("the list of security hooks for {} does not end well", name), walk.at);
    }
  }

  void look_at_slots() {
    for (Gva slot = f_.begin; slot + f_.slot_size <= f_.end; slot += f_.slot_size)
      look_at_slot(slot);
  }

  void look_at_slot(Gva slot) {
    const auto key = kernel_.read_pointer(slot, *f_.key), element = kernel_.read_pointer(slot, *f_.hook),
               active = kernel_.read_pointer(slot, *f_.active), trampoline = kernel_.read_pointer(slot, *f_.trampoline);
    if (!key || !element || !active || !trampoline)
      return;
    const auto enabled = kernel_.read_field(*active, *f_.enabled);
    const auto called = kernel_.read_pointer(*key, *f_.key_function);
    const std::string name = f_.name_at(slot);
    if (!enabled || !called)
      return;
    const bool is_on = static_cast<std::int32_t>(*enabled) > 0;
    if (!*element) {
      if (is_on)
        add(name,
            fmt::format("{} is called for {}, and no security module has put it there", scene_.describe(*called), name),
            slot);
      return;
    }
    in_use_.insert(*element);
    look_at_function(*element, name);
    if (findings_.is_full())
      return;
    const auto registered = kernel_.read_pointer(*element, *f_.function);
    const std::string owner = f_.module_of(kernel_, *element);
    if (static_cast<std::int32_t>(*enabled) == 0)
      add(fmt::format("{} of {}", name, owner), fmt::format("the security hook {} of {} is switched off", name, owner),
          slot);
    if (!registered)
      return;
    const auto differs = [&](Gva found) {
      add(fmt::format("{} of {}", name, owner),
          fmt::format("the security hook {} of {} leads to {} and not to {}", name, owner, scene_.describe(found),
                      scene_.describe(*registered)),
          slot)
          .with("found", found)
          .with("expected", *registered);
    };
    if (*called != *registered)
      return differs(*called);
    // The trampoline is a jump to the same place; where it holds something else it is being changed.
    std::array<std::byte, 5> code{};
    if (kernel_.space().read(*trampoline, code) && code[0] == std::byte{0xe9}) {
      std::int32_t distance = 0;
      std::memcpy(&distance, &code[1], sizeof distance);
      const Gva target = *trampoline + code.size() + static_cast<std::uint64_t>(std::int64_t{distance});
      if (target != *registered)
        differs(target);
    }
  }

  // What is called must be the first byte of a function of the kernel's image, and what names it must lie there too:
  // security modules cannot be loaded.
  void look_at_function(Gva element, const std::string &name) {
    const auto function = kernel_.read_pointer(element, *f_.function);
    if (!function)
      return;
    const std::string subject = fmt::format("{} at {:#x}", name, element.value);
    if (scene_.holder_of(element) != "kernel") {
      if (is_enough())
        return;
      add(subject,
          fmt::format("a security hook for {} was put in from {}, outside of the kernel's image, and leads to {}", name,
                      scene_.describe(element), scene_.describe(*function)),
          element)
          .with("found", *function);
      return;
    }
    const CodeRange *range = scene_.code().find(*function);
    if (range != nullptr && range->owner == CodeOwner::kernel)
      if (const auto symbol = scene_.system().symbolize(*function); symbol && symbol->second == 0)
        return;
    if (is_enough())
      return;
    add(subject,
        fmt::format("the security hook {} of {} leads to {}, which is no function of the kernel's image", name,
                    f_.module_of(kernel_, element), scene_.describe(*function)),
        element)
        .with("found", *function)
        .with("owner", std::string(range != nullptr ? name_of(range->owner) : "nobody"));
  }

  // To put a lie into words costs more than to meet it: what is too much is only counted.
  bool is_enough() {
    if (findings_.is_full())
      findings_.leave_out();
    return findings_.is_full();
  }

  void look_at_array(const HookLayout::Array &array) {
    std::string owner, first_missing;
    std::uint64_t missing = 0, all = 0;
    for (std::uint64_t i = 0; i < array.count; ++i) {
      const Gva element = array.begin + i * f_.stride;
      const auto place = f_.place_of(kernel_, element);
      if (!place)
        break;
      const std::string module = f_.module_of(kernel_, element);
      if (module.empty())
        continue; // not switched on
      owner = module;
      ++all;
      if (in_use_.contains(element))
        continue;
      if (++missing == 1)
        first_missing = f_.name_at(*place);
      // All of a module are told as one.
      if (missing <= 8)
        removed_.push_back({fmt::format("{} of {}", f_.name_at(*place), module), element, f_.name_at(*place), module});
    }
    // SELinux could once be taken out whole by its own means (CONFIG_SECURITY_SELINUX_DISABLE, until 6.4).
    const bool lawful = missing == all && owner == "selinux" && is_selinux_disabled();
    if (missing > 8 && missing == all && !lawful)
      add(owner, fmt::format("all {} security hooks of {}, {} among them, were taken out", all, owner, first_missing),
          array.begin);
    else if (!lawful)
      for (const Removed &removed : removed_)
        add(removed.subject, fmt::format("the security hook {} of {} was taken out", removed.name, removed.module),
            removed.element);
    removed_.clear();
  }

  [[nodiscard]] bool is_selinux_disabled() const {
    const auto state = kernel_.symbol("selinux_state");
    const auto disabled = kernel_.types().field("selinux_state", "disabled");
    return state && disabled && kernel_.read_field(*state, *disabled).value_or(0) != 0;
  }

  Finding &add(std::string subject, std::string sentence, Gva at) {
    return findings_
        .add({.subject = std::move(subject),
              .severity = Severity::critical,
              .technique = disable_tools,
              .sentence = std::move(sentence)})
        .with("address", at);
  }

  struct Removed {
    std::string subject;
    Gva element;
    std::string name, module;
  };
  const Scene &scene_;
  const Kernel &kernel_;
  const HookLayout &f_;
  Findings &findings_;
  std::set<Gva> in_use_; // elements; at most as many as slots, or hook_limit for each list
  std::vector<Removed> removed_;
};

// A variable that guards something. Larger values guard more.
struct Setting {
  const char *name, *symbol;
  std::uint8_t size;
  std::int64_t no_way_back; // from this value on the kernel itself never lowers it until it boots again
  const char *technique;
  const char *type = nullptr, *member = nullptr; // of which the symbol is
};
constexpr std::int64_t always = 1, never = INT64_MAX;
constexpr Setting settings[] = {
    {"kernel lockdown", "kernel_locked_down", 4, always, disable_tools},
    {"modules_disabled", "modules_disabled", 4, always, disable_tools},
    {"enforcement of module signatures", "sig_enforce", 1, always, disable_tools},
    {"kexec_load_disabled", "kexec_load_disabled", 4, always, disable_tools},
    {"SELinux enforcement", "selinux_state", 1, never, disable_tools, "selinux_state", "enforcing"},
    {"auditing", "audit_enabled", 4, 2, impair_audit}, // AUDIT_LOCKED
    {"kptr_restrict", "kptr_restrict", 4, never, disable_tools},
    {"dmesg_restrict", "dmesg_restrict", 4, never, disable_tools},
    {"perf_event_paranoid", "sysctl_perf_event_paranoid", 4, never, disable_tools},
    {"yama.ptrace_scope", "ptrace_scope", 4, 3, disable_tools}, // YAMA_SCOPE_NO_ATTACH
    {"randomize_va_space", "randomize_va_space", 4, never, disable_tools},
    {"mmap_min_addr", "mmap_min_addr", 8, never, disable_tools},
};

class Defences final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override {
    const Kernel &kernel = scene.kernel();
    const auto hooks = kernel.layout<HookLayout>();
    if (hooks)
      SecurityHooks(scene, **hooks, findings).look();
    else if (kernel.symbol("security_hook_heads") || kernel.symbol("static_calls_table"))
      return std::unexpected(hooks.error());
    look_at_settings(kernel, findings);
    const auto log = scene.system().kernel_log(); // before what it may contradict
    look_at_lockdown(kernel, log, findings);
    look_at_selinux(kernel, findings);
    look_at_tracers(kernel, findings);
    look_at_audit(kernel, findings);
    look_at_taint(kernel, findings);
    look_at_processors(scene, findings);
    look_at_log(log, findings);
    return {};
  }

private:
  Strongest strongest_;
  LogMemory log_;

  [[nodiscard]] static std::optional<std::uint64_t> number(const Kernel &kernel, std::string_view symbol,
                                                           std::size_t size) {
    const auto at = kernel.symbol(symbol);
    std::uint64_t value = 0;
    if (!at || size > sizeof value ||
        !kernel.space().read(*at, std::as_writable_bytes(std::span(&value, 1)).first(size)))
      return std::nullopt;
    return value;
  }

  void look_at_settings(const Kernel &kernel, Findings &findings) {
    for (const Setting &setting : settings) {
      std::optional<std::uint64_t> raw;
      if (setting.member != nullptr) {
        const auto field = kernel.types().field(setting.type, setting.member);
        const auto at = kernel.symbol(setting.symbol);
        raw = field && at ? kernel.read_field(*at, *field) : std::nullopt;
      } else {
        raw = number(kernel, setting.symbol, setting.size);
      }
      if (!raw)
        continue;
      const auto value =
          setting.size == 4 ? std::int64_t{static_cast<std::int32_t>(*raw)} : static_cast<std::int64_t>(*raw);
      compare(setting.name, value, setting.no_way_back, setting.technique, findings);
    }
    // 1 cannot be undone and 2 can (08389d888287).
    if (const auto value = number(kernel, "sysctl_unprivileged_bpf_disabled", 4)) {
      const std::int64_t rank = *value == 1 ? 2 : *value == 2 ? 1 : 0;
      compare("unprivileged_bpf_disabled", rank, 2, disable_tools, findings);
    }
  }

  void compare(const char *name, std::int64_t value, std::int64_t no_way_back, const char *technique,
               Findings &findings) {
    const auto before = strongest_.lowered(name, value);
    if (!before)
      return;
    const bool unlawful = *before >= no_way_back;
    findings
        .add({.subject = name,
              .severity = unlawful ? Severity::critical : Severity::medium,
              .technique = technique,
              .sentence = fmt::format("{} went from {} down to {} since the first look{}", name, *before, value,
                                      unlawful ? ", which the kernel itself never does" : "")})
        .with("found", static_cast<std::uint64_t>(value))
        .with("expected", static_cast<std::uint64_t>(*before));
  }

  // A kernel that was told at its start to lock itself down does so before anything else runs.
  // And whenever it is locked down, it says so in its log; what programs write there is told from its own words.
  static void look_at_lockdown(const Kernel &kernel, const Result<View<LogRecord>> &log, Findings &findings) {
    const auto level = number(kernel, "kernel_locked_down", 4);
    const auto is_locking = [](const LogRecord &record) {
      return record.facility == 0 && record.text.starts_with("Kernel is locked down from ");
    };
    if (level == 0u && log)
      if (const auto record = std::ranges::find_if(log->items, is_locking); record != log->items.end())
        findings
            .add({.subject = "kernel lockdown",
                  .severity = Severity::critical,
                  .technique = disable_tools,
                  .sentence = fmt::format("the kernel is not locked down, and record {} of its log says that it was: "
                                          "lockdown was lifted by a change of memory",
                                          record->sequence)})
            .with("address", *kernel.symbol("kernel_locked_down"))
            .with("number", record->sequence)
            .with("found", *level);
    const auto line = kernel.symbol("saved_command_line");
    const auto text = line ? kernel.read_pointer(*line) : std::nullopt;
    if (!level || !text)
      return;
    const std::string words = " " + kernel.space().read_c_string(*text, 4096).value_or("") + " ";
    for (const auto &[word, enumerator] : {std::pair(" lockdown=integrity ", "LOCKDOWN_INTEGRITY_MAX"),
                                           std::pair(" lockdown=confidentiality ", "LOCKDOWN_CONFIDENTIALITY_MAX")}) {
      const auto least = kernel.types().enumerator(enumerator);
      if (words.find(word) == words.npos || !least || static_cast<std::int64_t>(*level) >= *least)
        continue;
      findings
          .add({.subject = "kernel lockdown at boot",
                .severity = Severity::critical,
                .technique = disable_tools,
                .sentence = fmt::format("the kernel was booted with{}and is not locked down so far", word)})
          .with("found", *level)
          .with("expected", static_cast<std::uint64_t>(*least));
    }
  }

  // What SELinux tells programs of itself lies in a page that they can map; `setenforce` and the loading of a policy
  // change both.
  static void look_at_selinux(const Kernel &kernel, Findings &findings) {
    const Types &types = kernel.types();
    const auto state = kernel.symbol("selinux_state");
    const auto enforcing = types.field("selinux_state", "enforcing"),
               initialized = types.field("selinux_state", "initialized"),
               policy = types.field("selinux_state", "policy"), page = types.field("selinux_state", "status_page"),
               told = types.field("selinux_kernel_status", "enforcing");
    const auto page_struct_size = types.size_of("page");
    const auto add = [&](const char *subject, std::string sentence, std::uint64_t found, std::uint64_t expected) {
      findings
          .add({.subject = subject,
                .severity = Severity::critical,
                .technique = disable_tools,
                .sentence = std::move(sentence)})
          .with("address", *state)
          .with("found", found)
          .with("expected", expected);
    };
    if (!state)
      return;
    if (policy && initialized && kernel.read_field(*state, *policy).value_or(0) != 0 &&
        kernel.read_field(*state, *initialized) == 0u)
      add("SELinux policy", "SELinux has a policy and does not use it: it was made to believe that it has none", 0, 1);
    const auto array_symbol = kernel.symbol("vmemmap_base"), direct_symbol = kernel.symbol("page_offset_base");
    const auto array = array_symbol ? kernel.read_pointer(*array_symbol) : std::nullopt,
               direct = direct_symbol ? kernel.read_pointer(*direct_symbol) : std::nullopt;
    if (!enforcing || !page || !told || !page_struct_size || *page_struct_size == 0 || !array || !direct)
      return;
    const auto frame = kernel.read_pointer(*state, *page);
    if (!frame || *frame < *array)
      return; // nobody asked for that page yet
    const auto is = kernel.read_field(*state, *enforcing),
               said = kernel.read_field(*direct + (*frame - *array) / *page_struct_size * page_size, *told);
    if (is && said && (*is != 0) != (*said != 0))
      add("SELinux enforcement",
          *is == 0
              ? "SELinux lets everything pass, and tells programs that it enforces its policy: it was switched off by "
                "a change of memory"
              : "SELinux enforces its policy, and tells programs that it does not",
          *is, *said);
  }

  static void look_at_tracers(const Kernel &kernel, Findings &findings) {
    // Set by the kernel when it finds its own bookkeeping wrong, and then it warns; there is no other way.
    if (number(kernel, "ftrace_disabled", 4).value_or(0) != 0)
      findings.add({.subject = "ftrace_disabled",
                    .severity = Severity::high,
                    .technique = block_indicators,
                    .sentence = "ftrace is dead (ftrace_disabled): the kernel gave it up because of an error of its "
                                "own, or it was killed so that nobody can trace"});
    const auto enabled = number(kernel, "ftrace_enabled", 4), last = number(kernel, "last_ftrace_enabled", 4);
    if (!enabled || *enabled != 0)
      return;
    // The sysctl keeps what it was set to last in a second variable.
    const bool by_hand = last && *last != 0;
    findings
        .add({.subject = "ftrace_enabled",
              .severity = by_hand ? Severity::critical : Severity::medium,
              .technique = block_indicators,
              .sentence = by_hand ? "ftrace was switched off by a change of memory: its sysctl knows nothing of it"
                                  : "ftrace is switched off by its sysctl: nothing can trace functions"})
        .with("found", *enabled);
  }

  // A daemon that is connected would hear nothing.
  static void look_at_audit(const Kernel &kernel, Findings &findings) {
    const auto enabled = number(kernel, "audit_enabled", 4), ever = number(kernel, "audit_ever_enabled", 1),
               daemon = number(kernel, "auditd_conn", 8);
    // The kernel keeps one that ended until it has something to tell it.
    const auto pid = kernel.types().field("auditd_connection", "pid"), tasks = kernel.types().field("pid", "tasks");
    const auto number_of_daemon = daemon && pid ? kernel.read_pointer(Gva{*daemon}, *pid) : std::nullopt;
    const auto process =
        number_of_daemon && tasks && *number_of_daemon ? kernel.read_pointer(*number_of_daemon, *tasks) : std::nullopt;
    if (enabled && ever && *enabled == 0 && *ever != 0 && process && *process)
      findings
          .add({.subject = "audit_enabled",
                .severity = Severity::high,
                .technique = impair_audit,
                .sentence = "auditing was on and is off, while the audit daemon still waits for records"})
          .with("address", *kernel.symbol("audit_enabled"));
  }

  // What taints a module taints the kernel, for ever.
  void look_at_taint(const Kernel &kernel, Findings &findings) {
    const auto mask = kernel.symbol("tainted_mask"), list = kernel.symbol("modules");
    LayoutResolver layout(kernel.types());
    const auto link = layout.optional("module", "list"), taints = layout.optional("module", "taints"),
               name = layout.optional("module", "name"), state = layout.optional("module", "state");
    // Modules that were unloaded: 6.0, 99bd9956551b.
    const auto old_list = kernel.symbol("unloaded_tainted_modules");
    const auto old_link = layout.optional("mod_unload_taint", "list"),
               old_taints = layout.optional("mod_unload_taint", "taints"),
               old_name = layout.optional("mod_unload_taint", "name");
    if (!mask)
      return;
    struct Tainted {
      std::string name;
      std::uint64_t bits = 0;
    };
    std::vector<Tainted> tainted;
    const auto gather = [&](Gva head, const FieldLocation &place, const FieldLocation &bits, const FieldLocation &text,
                            const Field &stage) {
      linux_guest::walk_list(kernel, head, module_limit, [&](Gva node) {
        const Gva module = node - place.offset;
        const auto found = kernel.read_field(module, bits);
        // One that is being loaded taints itself and the kernel in turn.
        if (found && *found != 0 && (!stage || kernel.read_field(module, *stage) == 0))
          tainted.push_back({kernel.space().read_c_string(module + text.offset, text.size).value_or("?"), *found});
        return true;
      });
    };
    if (list && link && taints && name)
      gather(*list, *link, *taints, *name, state);
    if (old_list && old_link && old_taints && old_name)
      gather(*old_list, *old_link, *old_taints, *old_name, std::nullopt);
    // Read last: a bit that was set for a module that we have seen is there.
    const auto whole = kernel.read<std::uint64_t>(*mask);
    if (!whole)
      return;
    constexpr std::uint64_t known_bits = (1 << 20) - 1; // TAINT_FLAGS_COUNT
    std::uint64_t missing = 0;
    std::string names;
    for (const Tainted &module : tainted)
      if (const std::uint64_t bits = module.bits & known_bits & ~*whole; bits != 0) {
        missing |= bits;
        if (names.size() < 200)
          names += (names.empty() ? "" : ", ") + module.name;
      }
    if (missing != 0)
      findings
          .add({.subject = "tainted_mask",
                .severity = Severity::critical,
                .technique = "T1014",
                .sentence = fmt::format("the kernel's taint was reset: it lacks what {} brought in", names)})
          .with("address", *mask)
          .with("found", *whole)
          .with("expected", *whole | missing);
    for (unsigned bit = 0; bit < 20; ++bit)
      if (strongest_.lowered(fmt::format("taint {}", bit), static_cast<std::int64_t>(*whole >> bit & 1)) &&
          (missing >> bit & 1) == 0)
        findings
            .add({.subject = fmt::format("tainted_mask bit {}", bit),
                  .severity = Severity::critical,
                  .technique = "T1014",
                  .sentence = fmt::format("bit {} of the kernel's taint was reset since the first look", bit)})
            .with("address", *mask)
            .with("found", *whole);
  }

  // CR0.WP and what the kernel pins of CR4 (SMEP, SMAP, UMIP, ...; 5.3, 873d50d58f67) stay set on each CPU.
  static void look_at_processors(const Scene &scene, Findings &findings) {
    constexpr std::uint64_t write_protect = 1 << 16;
    const auto pinned = number(scene.kernel(), "cr4_pinned_bits", 8).value_or(0);
    for (const VcpuRegisters &vcpu : scene.vcpus()) {
      if (!vcpu.paging() || (vcpu.cr0 & 1) == 0)
        continue; // not started, or in its firmware
      const auto add = [&](const char *name, std::string sentence, std::uint64_t found, std::uint64_t expected) {
        findings
            .add({.subject = fmt::format("{} of CPU {}", name, vcpu.index),
                  .severity = Severity::critical,
                  .technique = disable_tools,
                  .sentence = std::move(sentence)})
            .with("found", found)
            .with("expected", expected);
      };
      if ((vcpu.cr0 & write_protect) == 0)
        add("CR0", fmt::format("CPU {} does not heed write protection: CR0.WP is off", vcpu.index), vcpu.cr0,
            vcpu.cr0 | write_protect);
      if ((vcpu.cr4 & pinned) != pinned)
        add("CR4",
            fmt::format("CPU {} has protections off that the kernel pinned: CR4 lacks {:#x}", vcpu.index,
                        pinned & ~vcpu.cr4),
            vcpu.cr4, vcpu.cr4 | pinned);
    }
  }

  void look_at_log(const Result<View<LogRecord>> &view, Findings &findings) {
    if (!view || view->status.raced || view->status.truncated)
      return;
    for (const LogMemory::Loss &loss : log_.look(view->items)) {
      if (findings.is_full()) {
        findings.leave_out();
        continue;
      }
      const char *what = "was changed";
      std::string sentence;
      if (loss.kind == LogMemory::Loss::Kind::emptied) {
        what = "emptied";
        sentence = fmt::format("{} records of the kernel's log, from {} on, are gone and nothing took their room",
                               loss.count, loss.sequence);
      } else {
        what = loss.kind == LogMemory::Loss::Kind::changed ? "was changed" : "was removed";
        sentence = fmt::format("record {} of the kernel's log {} since the first look", loss.sequence, what);
      }
      findings
          .add({.subject = fmt::format("log record {} {}", loss.sequence, what),
                .severity = Severity::high,
                .technique = clear_logs,
                .sentence = std::move(sentence)})
          .with("number", loss.sequence);
    }
  }
};

LARARIUM_CHECK(
    Defences, "defences", "T1562.001 T1562.006 T1562.012 T1070.002 T1014",
    "security hooks, lockdown, auditing, tracing, taint and log, switched off",
    "Every hook that a security module of the kernel registered must still be called, and lead to a function of the "
    "kernel's image; the kernel's taint must hold that of its modules; ftrace must be alive; lockdown must be what the "
    "command line asked for and the log tells of; SELinux must do what it tells programs; auditing must be on while "
    "its "
    "daemon waits for records; each CPU must keep CR0.WP and the pinned bits of CR4. What can only be seen by a look "
    "before is seen by `watch`: settings that are weaker than they were (medium where an administrator may do it, "
    "critical where the kernel never does), records of the log that were changed or removed. A hook that was exchanged "
    "for another function of the kernel is seen by kernel_text's comparison with the first look alone.")

} // namespace
} // namespace lararium::detect
