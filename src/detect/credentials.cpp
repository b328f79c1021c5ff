// Who may do what, against how each process came to it: credentials are changed by copying them (prepare_creds,
// commit_creds), so that what was written into them, or shared, by any other way contradicts what the kernel keeps
// beside them.

#include "lararium/detect/check.h"
#include "lararium/os/linux/tasks.h"
#include "lineage.h"

#include <array>
#include <fmt/format.h>
#include <map>
#include <unordered_map>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;
using linux_guest::LayoutResolver;
using Field = std::optional<FieldLocation>;

constexpr unsigned deepest_namespace = 33; // the kernel allows 32 below the first
constexpr std::size_t largest_cred = 1024, longest_vector = 128;
constexpr std::uint64_t pf_exiting = 4, pf_kthread = 0x00200000;

struct Layout {
  FieldLocation real_cred, cred, mm, flags, exit_state, comm, start_time, uid, euid, suid, fsuid, inheritable,
      permitted, effective, user, user_namespace;
  Field ambient, secure_bits, counts, user_uid, counts_namespace, vector, memory_namespace, exec_state, exec_namespace,
      parent_namespace, namespace_level, exec_id;
  std::uint64_t cred_size = 0;

  static Result<Layout> resolve(const Kernel &kernel) {
    LayoutResolver layout(kernel.types());
    Layout f;
    const auto task = [&](std::string_view path) { return layout.require("task_struct", path); };
    const auto cred = [&](std::string_view path) { return layout.require("cred", path); };
    f.real_cred = task("real_cred");
    f.cred = task("cred");
    f.mm = task("mm");
    f.flags = task("flags");
    f.exit_state = task("exit_state");
    f.comm = task("comm");
    f.start_time = layout.require_any("task_struct", {"start_boottime", "real_start_time"}); // 5.5, cf25e24db61c
    f.exec_id = layout.optional("task_struct", "self_exec_id");
    f.uid = cred("uid");
    f.euid = cred("euid");
    f.suid = cred("suid");
    f.fsuid = cred("fsuid");
    f.inheritable = cred("cap_inheritable");
    f.permitted = cred("cap_permitted");
    f.effective = cred("cap_effective");
    f.ambient = layout.optional("cred", "cap_ambient");
    f.secure_bits = layout.optional("cred", "securebits");
    f.user = cred("user");
    f.user_namespace = cred("user_ns");
    f.counts = layout.optional("cred", "ucounts"); // 5.14, 905ae01c4ae2
    f.counts_namespace = layout.optional("ucounts", "ns");
    f.user_uid = layout.optional("user_struct", "uid");
    f.vector = layout.optional("mm_struct", "saved_auxv");
    f.memory_namespace = layout.optional("mm_struct", "user_ns"); // 4.10, bfedb589252c; until it went into exec_state
    f.exec_state = layout.optional("task_struct", "exec_state");
    f.exec_namespace = layout.optional("task_exec_state", "user_ns");
    f.parent_namespace = layout.optional("user_namespace", "parent");
    f.namespace_level = layout.optional("user_namespace", "level");
    f.cred_size = layout.require_size("cred");
    TRY(layout.check());
    if (f.cred_size > largest_cred)
      return fail(ErrorCode::no_types, "the kernel's type information tells of credentials larger than they can be");
    return f;
  }
};

// One program of one task.
struct ProgramKey {
  Gva task;
  std::uint64_t start_time = 0, exec_id = 0;
  auto operator<=>(const ProgramKey &) const = default;
};
struct Remembered {
  CredentialSet credentials;
  bool sure = false; // seen so by two looks: what one saw may have been torn
};

class Credentials final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override {
    const Kernel &kernel = scene.kernel();
    TRY_ASSIGN(const Layout *layout, kernel.layout<Layout>());
    const auto &tasks = scene.tasks();
    if (!tasks)
      return std::unexpected(tasks.error());
    Look look{scene, kernel, *layout, findings, kernel.symbol("init_user_ns").value_or(Gva{}), {}, 0, {},
              {},    {},     {},      {}};
    look.first_cred = kernel.symbol("init_cred").value_or(Gva{});
    if (look.first_cred)
      look.all = kernel.read_field(look.first_cred, layout->permitted).value_or(0);
    for (const auto &entry : tasks->items)
      look.see(entry);
    for (const auto &subject : look.tasks)
      look.judge(subject, memory_);
    memory_ = std::move(look.remembered);
    return {};
  }

private:
  using Memory = std::map<ProgramKey, Remembered>;
  Memory memory_; // of the tasks of the last look only

  struct Subject {
    linux_guest::TaskEntry entry;
    Gva real, subjective, mm;
    bool kernel_thread = false;
  };

  struct Look {
    const Scene &scene;
    const Kernel &kernel;
    const Layout &f;
    Findings &findings;
    Gva first_namespace, first_cred;
    std::uint64_t all; // capabilities that the kernel has
    std::vector<Subject> tasks;
    std::unordered_map<Gva, std::size_t> owner; // the first task that has these credentials
    std::unordered_map<Gva, std::optional<Start>> starts;
    Memory remembered;
    Finding left_out;

    void see(const linux_guest::TaskEntry &entry) {
      const auto real = kernel.read_pointer(entry.task, f.real_cred),
                 subjective = kernel.read_pointer(entry.task, f.cred), mm = kernel.read_pointer(entry.task, f.mm);
      const auto flags = kernel.read_field(entry.task, f.flags);
      if (!real || !subjective || !mm || !flags || kernel.read_field(entry.task, f.exit_state).value_or(1) != 0 ||
          (*flags & pf_exiting) != 0)
        return;
      owner.try_emplace(*real, tasks.size());
      tasks.push_back({entry, *real, *subjective, *mm, (*flags & pf_kthread) != 0});
    }

    Finding &add(const Subject &subject, std::string_view kind, Severity severity, const char *technique,
                 std::string sentence) {
      if (findings.is_full()) { // no more words about a guest that lies about every task
        findings.leave_out();
        left_out = {};
        return left_out;
      }
      const std::string comm = linux_guest::task_comm(kernel, subject.entry.task);
      Finding &finding =
          findings.add({.subject = fmt::format("pid {} {}", subject.entry.pid, kind),
                        .severity = severity,
                        .technique = technique,
                        .sentence = fmt::format("process {} ({}) {}", subject.entry.pid, comm, sentence)});
      finding.with("address", subject.real);
      Actor actor;
      actor.pid = subject.entry.tgid;
      actor.comm = comm;
      for (const Process &process : scene.processes())
        if (process.tgid == subject.entry.tgid)
          actor = scene.actor(process);
      finding.process = std::move(actor);
      return finding;
    }

    void judge(const Subject &subject, const Memory &memory) {
      look_at_sharing(subject);
      const auto now = read(subject.real);
      if (!now)
        return;
      look_beside(subject, *now);
      const bool fits = look_at_namespace(subject, *now);
      if (subject.kernel_thread)
        return;
      if (fits && now->user_namespace == first_namespace)
        look_at_lineage(subject, *now);
      look_at_growth(subject, *now, memory);
    }

    // Threads of one process share credentials, processes never do: fork() copies them. What a task acts by for a
    // moment (override_creds) can be anybody's, which is why only another's that lasts and that gives more is told.
    void look_at_sharing(const Subject &subject) {
      const auto first = owner.find(subject.real);
      if (subject.real == first_cred && !subject.kernel_thread) {
        add(subject, "shares", Severity::critical, "T1068", "has the credentials of the kernel's first task");
      } else if (first != owner.end()) {
        const Subject &other = tasks[first->second];
        if (other.entry.tgid != subject.entry.tgid && !(other.kernel_thread && subject.kernel_thread))
          add(subject, "shares", Severity::critical, "T1068",
              fmt::format("has the very credentials of process {} ({})", other.entry.pid,
                          linux_guest::task_comm(kernel, other.entry.task)))
              .with("other_pid", static_cast<std::uint64_t>(other.entry.pid));
      }
      if (subject.subjective == subject.real || subject.kernel_thread)
        return;
      const auto lender = owner.find(subject.subjective);
      const bool lent = subject.subjective == first_cred ||
                        (lender != owner.end() && tasks[lender->second].entry.tgid != subject.entry.tgid);
      const auto own = read(subject.real), borrowed = read(subject.subjective);
      if (lent && own && borrowed && (borrowed->permitted & ~own->permitted) != 0)
        add(subject, "acts by", Severity::high, "T1068",
            "acts by the credentials of another process, which may do more");
    }

    [[nodiscard]] std::optional<CredentialSet> read(Gva cred) const {
      std::array<std::byte, largest_cred> bytes{};
      if (!kernel.is_kernel_address(cred) || !kernel.space().read(cred, std::span(bytes).first(f.cred_size)))
        return std::nullopt;
      const auto number = [&](const FieldLocation &field) -> std::uint64_t {
        std::uint64_t value = 0;
        if (field.size <= sizeof value && field.offset + field.size <= f.cred_size)
          std::memcpy(&value, &bytes[field.offset], field.size);
        return value;
      };
      CredentialSet set;
      set.uid = static_cast<std::uint32_t>(number(f.uid));
      set.euid = static_cast<std::uint32_t>(number(f.euid));
      set.suid = static_cast<std::uint32_t>(number(f.suid));
      set.fsuid = static_cast<std::uint32_t>(number(f.fsuid));
      set.inheritable = number(f.inheritable);
      set.permitted = number(f.permitted);
      set.effective = number(f.effective);
      set.ambient = f.ambient ? number(*f.ambient) : 0;
      set.secure_bits = f.secure_bits ? static_cast<std::uint32_t>(number(*f.secure_bits)) : 0;
      set.user_namespace = Gva{number(f.user_namespace)};
      return set;
    }

    // The kernel counts what each user has: the credentials name the counters of their own user and namespace.
    void look_beside(const Subject &subject, const CredentialSet &now) {
      const auto user = kernel.read_pointer(subject.real, f.user);
      const auto counted = user && f.user_uid ? kernel.read_field(*user, *f.user_uid) : std::nullopt;
      if (counted && *counted != now.uid)
        add(subject, "user", Severity::critical, "T1068",
            fmt::format("is user {} by a change of memory: the kernel counts it as one of user {}'s", now.uid,
                        *counted))
            .with("found", std::uint64_t{now.uid})
            .with("expected", *counted);
      const auto counts = f.counts ? kernel.read_pointer(subject.real, *f.counts) : std::nullopt;
      const auto space =
          counts && *counts && f.counts_namespace ? kernel.read_pointer(*counts, *f.counts_namespace) : std::nullopt;
      if (space && *space != now.user_namespace)
        add(subject, "namespace", Severity::critical, "T1611",
            "is in a user namespace by a change of memory: the kernel counts it in another")
            .with("found", now.user_namespace)
            .with("expected", *space);
    }

    // Whether `ancestor` is `inner` or above it; nothing when the chain of namespaces is none.
    [[nodiscard]] std::optional<bool> is_within(Gva inner, Gva ancestor) const {
      Gva space = inner;
      bool met = false;
      for (unsigned depth = 0; depth <= deepest_namespace; ++depth) {
        met |= space == ancestor;
        if (space == first_namespace)
          return met;
        const auto parent = kernel.read_pointer(space, *f.parent_namespace);
        if (!parent || !kernel.is_kernel_address(*parent))
          return std::nullopt;
        if (f.namespace_level) {
          const auto level = kernel.read_field(space, *f.namespace_level),
                     above = kernel.read_field(*parent, *f.namespace_level);
          if (!level || !above || *level != *above + 1)
            return std::nullopt;
        }
        space = *parent;
      }
      return std::nullopt;
    }

    // A process can go down into a user namespace and never up: it stays within the one that its program was started
    // in.
    bool look_at_namespace(const Subject &subject, const CredentialSet &now) {
      if (!first_namespace || !f.parent_namespace)
        return true;
      if (!is_within(now.user_namespace, first_namespace)) {
        add(subject, "namespace chain", Severity::critical, "T1611",
            fmt::format("is in a user namespace at {:#x} that is none of the kernel's", now.user_namespace.value))
            .with("found", now.user_namespace);
        return false;
      }
      Gva started;
      if (f.exec_state && f.exec_namespace) {
        if (const auto state = kernel.read_pointer(subject.entry.task, *f.exec_state); state && *state)
          started = kernel.read_pointer(*state, *f.exec_namespace).value_or(Gva{});
      } else if (f.memory_namespace && subject.mm) {
        started = kernel.read_pointer(subject.mm, *f.memory_namespace).value_or(Gva{});
      }
      if (!started || !is_within(started, first_namespace))
        return true; // just ending
      if (is_within(now.user_namespace, started) != false)
        return true;
      add(subject, "namespace", Severity::critical, "T1611",
          now.user_namespace == first_namespace
              ? "was started in a user namespace of its own and is in the host's now: it escaped"
              : "left the user namespace that it was started in")
          .with("found", now.user_namespace)
          .with("expected", started);
      return false;
    }

    void look_at_lineage(const Subject &subject, const CredentialSet &now) {
      for (const Breach breach : breaches_of(now, start(subject.mm), all)) {
        const auto begin = start(subject.mm);
        const std::string started = begin ? fmt::format("user {}", begin->uid) : std::string("another user");
        switch (breach) {
        case Breach::effective_beyond_permitted:
          add(subject, "effective", Severity::critical, "T1068", "has capabilities in effect that it is not permitted")
              .with("found", now.effective)
              .with("expected", now.permitted);
          break;
        case Breach::root_without_start:
          add(subject, "root", Severity::critical, "T1068",
              fmt::format("is user 0, but its program was started by {} and gained nothing by it", started))
              .with("uid", std::uint64_t{now.uid})
              .with("euid", std::uint64_t{now.euid});
          break;
        case Breach::capabilities_without_start:
          add(subject, "capabilities", Severity::critical, "T1068",
              fmt::format("has capabilities, but its program was started by {} and gained nothing by it", started))
              .with("found", now.permitted);
          break;
        case Breach::all_capabilities:
          add(subject, "capabilities", Severity::high, "T1068",
              fmt::format("is user {} and has every capability, which it did not ask to keep", now.uid))
              .with("found", now.permitted);
          break;
        }
      }
    }

    std::optional<Start> start(Gva mm) {
      if (!mm || !f.vector)
        return std::nullopt;
      const auto [entry, fresh] = starts.try_emplace(mm);
      std::array<std::uint64_t, longest_vector> words{};
      const std::size_t count = std::min<std::size_t>(f.vector->size / 8, words.size());
      if (fresh && kernel.space().read(mm + f.vector->offset, std::as_writable_bytes(std::span(words).first(count))))
        entry->second = start_of(std::span(words).first(count));
      return entry->second;
    }

    void look_at_growth(const Subject &subject, const CredentialSet &now, const Memory &memory) {
      if (!f.exec_id)
        return; // one program could not be told from the next
      const ProgramKey key{subject.entry.task, kernel.read_field(subject.entry.task, f.start_time).value_or(0),
                           kernel.read_field(subject.entry.task, *f.exec_id).value_or(0)};
      const auto known = memory.find(key);
      if (known == memory.end()) {
        remembered.try_emplace(key, Remembered{now, false});
        return;
      }
      const CredentialSet &before = known->second.credentials;
      const Growth growth = growth_of(before, now);
      if (growth == Growth::none || !known->second.sure) {
        remembered.try_emplace(key, Remembered{now, before == now});
        return;
      }
      remembered.try_emplace(key, known->second);
      if (growth == Growth::root)
        add(subject, "became root", Severity::critical, "T1068",
            fmt::format("became user 0 from user {} in the midst of its program, without the right to", before.uid));
      else
        add(subject, "capabilities grew", Severity::critical, "T1068",
            "got capabilities in the midst of its program, which the kernel never gives")
            .with("found", now.permitted)
            .with("expected", before.permitted);
    }
  };
};

LARARIUM_CHECK(
    Credentials, "credentials", "T1068 T1611", "what processes may do, and how they came to it",
    "Credentials must belong to one process, name the counters of their own user and namespace, and fit how the "
    "process' program was started: by which user, with or without a gain (a setuid file, file capabilities), in which "
    "user namespace. `watch` also sees capabilities and user 0 that come in the midst of a program. A process that "
    "was made user 0 and then started another program looks like one of an administrator's.")

} // namespace
} // namespace lararium::detect
