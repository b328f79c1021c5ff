#include "lararium/gate/security_driver.h"

#include "lararium/os/common/actor.h"
#include "lararium/os/linux.h"
#include "lararium/os/linux/tasks.h"

#include <algorithm>
#include <fmt/format.h>

namespace lararium::gate {
namespace {

using linux_guest::Kernel;

constexpr std::size_t known_limit = 4096, parents_limit = 8;

std::uint64_t host_time() {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch())
          .count());
}

// "sshd (212), init (1)"
std::string parents_of(const Kernel &kernel, Gva task) {
  std::string text;
  for (std::size_t i = 0; i < parents_limit; ++i) {
    const auto parent = linux_guest::parent_of_task(kernel, task);
    const auto pid = kernel.types().field("task_struct", "tgid");
    const auto number = parent && pid ? kernel.read_field(*parent, *pid).value_or(0) : 0;
    if (number == 0) // the idle task is everybody's last ancestor
      break;
    text += fmt::format("{}{} ({})", text.empty() ? "" : ", ", linux_guest::task_comm(kernel, *parent), number);
    task = *parent;
  }
  return text;
}

} // namespace

const SecurityDriver::Known *SecurityDriver::process_of(Gva task) {
  const Kernel &kernel = gate_.reader().kernel();
  const auto &reader = gate_.reader();
  const std::uint64_t start = reader.number(task, "task_struct", "start_time").value_or(0);
  const auto memory = reader.pointer(task, "task_struct", "mm");
  const std::uint64_t program = memory ? reader.number(*memory, "mm_struct", "exe_file").value_or(0) : 0;
  if (const auto found = known_.find(task.value);
      found != known_.end() && found->second.start_time == start && found->second.program == program) {
    // Name and user change without a new program.
    found->second.actor.comm = linux_guest::task_comm(kernel, task);
    if (const auto cred = reader.pointer(task, "task_struct", "real_cred"))
      found->second.actor.uid = static_cast<std::uint32_t>(reader.number(*cred, "cred", "euid.val").value_or(0));
    return &found->second;
  }
  const auto process = linux_guest::process_of_task(kernel, task);
  if (!process)
    return nullptr;
  if (known_.size() >= known_limit)
    known_.clear();
  Known &known = known_[task.value];
  known = {start, program, actor_of(*process), parents_of(kernel, task)};
  return &known;
}

Record SecurityDriver::record_of(const GateEvent &event) {
  const Kernel &kernel = gate_.reader().kernel();
  Record record;
  record.type = event.hook->name;
  record.host_time_ns = host_time();
  if (const auto pulse = system_.pulse())
    record.guest_time_ns = pulse->time_ns;
  std::string who = "somebody";
  const auto task = linux_guest::running_task(kernel, event.cpu);
  const Known *known = task ? process_of(task->task) : nullptr;
  if (known != nullptr) {
    record.actor = known->actor;
    who = fmt::format("{} ({})", known->actor.comm, known->actor.pid);
  }
  Meaning meaning = event.hook->tell(gate_.reader(), event.call);
  record.sentence = fmt::format("{} {}", who, meaning.sentence);
  record.fields = std::move(meaning.fields);
  if (task && known != nullptr && task->pid != known->actor.pid)
    record.with("thread_id", static_cast<std::uint64_t>(task->pid));
  if (known != nullptr)
    record.with("parents", known->parents);
  record.with("cpu", std::uint64_t{event.cpu});
  return record;
}

// Who it was: as it is known, or is still there; else what was kept of it.
Actor SecurityDriver::actor_of_seen(const SeenCall &call, std::string &parents) {
  const auto same = [&](const Known *known) { return known != nullptr && known->start_time == call.start_time; };
  const auto found = known_.find(call.task.value);
  const Known *known = found != known_.end() ? &found->second : nullptr;
  if (!same(known) || known->program != call.program) {
    system_.refresh();
    known = process_of(call.task);
  }
  Actor actor{.pid = call.pid,
              .ppid = call.ppid,
              .uid = call.uid,
              .comm = call.comm,
              .exe = {},
              .container_id = {},
              .start_time_ns = {}};
  if (same(known) && known->actor.pid == call.pid) {
    actor.container_id = known->actor.container_id;
    actor.start_time_ns = known->actor.start_time_ns;
    parents = known->parents;
    if (known->program == call.program)
      actor.exe = known->actor.exe;
  }
  if (const auto ran = executed_.find(call.task.value);
      actor.exe.empty() && ran != executed_.end() && ran->second.first == call.start_time)
    actor.exe = ran->second.second;
  // In the call's moment, that is.
  if (auto container = container_of(call))
    actor.container_id = std::move(*container);
  return actor;
}

// A control group outlives most of its processes.
std::optional<std::string> SecurityDriver::container_of(const SeenCall &call) {
  if (call.cgroup == 0)
    return std::nullopt;
  if (const auto found = containers_.find(call.cgroup); found != containers_.end())
    return found->second;
  system_.refresh();
  auto container = linux_guest::container_of_group(gate_.reader().kernel(), call.group, call.cgroup);
  if (container) {
    if (containers_.size() >= known_limit)
      containers_.clear();
    containers_[call.cgroup] = *container;
  }
  return container;
}

Record SecurityDriver::record_of(const SeenCall &call) {
  Record record;
  record.type = call.hook->name;
  record.host_time_ns = call.host_time_ns;
  std::string parents;
  record.actor = actor_of_seen(call, parents);
  Meaning meaning = call.hook->tell(gate_.reader().of_kept(call.kept), call.call);
  record.sentence = fmt::format("{} ({}) {}", call.comm, call.pid, meaning.sentence);
  record.fields = std::move(meaning.fields);
  if (record.type == "exec")
    if (const auto path = std::ranges::find(record.fields, "path", &RecordField::name); path != record.fields.end()) {
      if (executed_.size() >= known_limit)
        executed_.clear();
      executed_[call.task.value] = {call.start_time, std::get<std::string>(path->value)};
    }
  if (call.thread != call.pid)
    record.with("thread_id", static_cast<std::uint64_t>(call.thread));
  if (!parents.empty())
    record.with("parents", std::move(parents));
  record.with("cpu", std::uint64_t{call.cpu});
  if (call.is_cut)
    record.with("cut", true);
  record.with("verdict", std::string(call.verdict != 0 ? "denied" : "allowed"));
  if (call.rule != 0 && filter_ != nullptr) {
    record.with("decided_by", filter_->rule_name(call.rule));
    if (call.verdict != 0)
      record.sentence += fmt::format(": denied by {}", filter_->rule_name(call.rule));
  }
  return record;
}

Record SecurityDriver::record_of(const Tampering &tampering) {
  Record record;
  record.kind = RecordKind::finding;
  record.type = "gate_tampered";
  record.host_time_ns = host_time();
  std::string who = tampering.vcpu ? "somebody" : "somebody, a device, or a snapshot that was loaded,";
  if (const auto &task = tampering.task) {
    who = fmt::format("{} ({})", task->comm, task->pid);
    if (const Known *known = process_of(task->task))
      record.actor = known->actor;
  }
  const bool is_forged = tampering.expected.empty();
  record.sentence = is_forged ? (tampering.vcpu ? fmt::format("{}: {}", who, tampering.what) : tampering.what)
                              : fmt::format("{} changed {}{}", who, tampering.what,
                                            tampering.put_back ? ": it was put back" : ": it could not be put back");
  record.with("address", tampering.address).with("what", tampering.what);
  if (!tampering.expected.empty())
    record.with("expected_bytes", tampering.expected);
  if (!tampering.found.empty())
    record.with("found_bytes", tampering.found);
  if (tampering.vcpu)
    record.with("vcpu", std::uint64_t{*tampering.vcpu});
  if (!is_forged)
    record.with("put_back", tampering.put_back)
        .with("after_microseconds", static_cast<std::uint64_t>(tampering.after.count()));
  if (tampering.in_memory_after)
    record.with("in_memory_after_microseconds", static_cast<std::uint64_t>(tampering.in_memory_after->count()));
  record.finding = Finding{.check = "guard",
                           .subject = tampering.what,
                           .severity = Severity::critical,
                           .technique = "T1562",
                           .sentence = record.sentence,
                           .evidence = record.fields,
                           .process = record.actor};
  return record;
}

void SecurityDriver::tell_seen(std::vector<Record> &out) {
  gate_.take_seen(seen_);
  for (const SeenCall &call : seen_) {
    if (call.hook == nullptr)
      continue;
    Record record = record_of(call);
    ++counts_.events;
    ++counts_.seen;
    counts_.denied += call.verdict != 0 ? 1 : 0;
    if (call.verdict != 0 || filter_ == nullptr || filter_->is_recorded(*call.hook, record))
      out.push_back(std::move(record));
  }
}

Result<void> SecurityDriver::step(std::chrono::microseconds timeout, std::vector<Record> &out) {
  events_.clear();
  tamperings_.clear();
  const auto waited = gate_.wait(timeout, events_, tamperings_);
  for (const GateEvent &event : events_) {
    Record record = record_of(event);
    Verdict verdict = tool_.decide(*event.hook, record);
    if (!event.hook->may_deny)
      verdict.error = 0;
    TRY(gate_.answer(event, verdict.error));
    const auto took = std::chrono::steady_clock::now() - event.seen;
    ++counts_.events;
    counts_.denied += verdict.error != 0 ? 1 : 0;
    counts_.waited += took;
    counts_.longest_wait = std::max<std::chrono::nanoseconds>(counts_.longest_wait, took);
    if (verdict.error != 0)
      record.sentence += fmt::format(": denied by {}", verdict.decided_by);
    record.with("verdict", std::string(verdict.error != 0 ? "denied" : "allowed"));
    if (!verdict.decided_by.empty())
      record.with("decided_by", verdict.decided_by);
    record.with("wait_nanoseconds",
                static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(took).count()));
    if (verdict.error != 0 || filter_ == nullptr || filter_->is_recorded(*event.hook, record))
      out.push_back(std::move(record));
  }
  tell_seen(out);
  for (const Tampering &tampering : tamperings_)
    out.push_back(record_of(tampering));
  return waited;
}

} // namespace lararium::gate
