#include "lararium/os/common/actor.h"
#include "lararium/watch/changes.h"

#include <algorithm>
#include <fmt/format.h>

namespace lararium::watch {
namespace {

constexpr std::size_t kept_text = 512;        // of a path that is remembered for each process
constexpr std::uint32_t reserved_pids = 300;  // RESERVED_PIDS: pids start there anew after a wrap
constexpr std::int32_t largest_pid = 4 << 20; // PID_MAX_LIMIT

// All threads are gone, and nobody has asked for its exit status yet.
bool is_dead(const Process &process) {
  return process.state == 'X' || (process.state == 'Z' && process.thread_count <= 1);
}

std::string joined(const std::vector<std::string> &words) {
  std::string text;
  for (const std::string &word : words) {
    if (text.size() > 4096)
      break;
    text += text.empty() ? "" : " ";
    text += word;
  }
  return clipped(text);
}

std::string named(std::int32_t pid, std::string_view comm, bool kernel_thread) {
  return fmt::format("{} {} ({})", kernel_thread ? "kernel thread" : "process", pid, comm);
}

} // namespace

bool ProcessChanges::same_credentials(const Known &known, const Process &now) {
  const auto ids = [](const UserIds &a) { return std::tuple(a.real, a.effective, a.saved, a.filesystem); };
  const auto sets = [](const Capabilities &a) {
    return std::tuple(a.inheritable, a.permitted, a.effective, a.bounding, a.ambient);
  };
  return ids(known.uid) == ids(now.uid) && ids(known.gid) == ids(now.gid) &&
         sets(known.capabilities) == sets(now.capabilities) && known.user_namespace == now.namespaces.user;
}

void ProcessChanges::take(Known &known, const Process &now) {
  Actor before = std::exchange(known.actor, actor_of(now));
  known.actor.exe = now.exe.empty() ? std::move(before.exe) : now.exe.substr(0, kept_text);
  known.actor.container_id = now.container_id.empty() ? std::move(before.container_id) : now.container_id.substr(0, 64);
  if (now.start_since_boot_ns != 0)
    known.start = now.start_since_boot_ns;
  if (now.memory)
    known.memory = now.memory;
  known.uid = now.uid;
  known.gid = now.gid;
  known.capabilities = now.capabilities;
  known.user_namespace = now.namespaces.user;
  known.kernel_thread = now.kernel_thread;
}

void ProcessChanges::started(const Process &process, Records &records) const {
  const std::string arguments = joined(process.arguments);
  const auto parent = actor(process.ppid);
  std::string sentence = named(process.tgid, process.comm, process.kernel_thread) + " started";
  if (!arguments.empty())
    sentence += ": " + arguments;
  else if (!process.exe.empty())
    sentence += ": " + clipped(process.exe);
  Record &record = records.add("process_started", std::move(sentence));
  record.actor = actor_of(process);
  if (process.kernel_thread)
    record.with("kernel_thread", true);
  if (!arguments.empty())
    record.with("arguments", arguments);
  if (process.exe_deleted)
    record.with("exe_deleted", true);
  if (parent)
    record.with("parent_comm", parent->comm);
}

void ProcessChanges::ended(const Known &known, Records &records) {
  Record &record =
      records.add("process_ended", named(known.actor.pid, known.actor.comm, known.kernel_thread) + " ended");
  record.actor = known.actor;
  if (known.kernel_thread)
    record.with("kernel_thread", true);
}

void ProcessChanges::executed(const Known &before, const Process &now, Records &records) {
  const std::string arguments = joined(now.arguments);
  Record &record =
      records.add("process_executed", fmt::format("process {} ({}) executes {}", now.tgid, before.actor.comm,
                                                  !arguments.empty() ? arguments
                                                  : !now.exe.empty() ? clipped(now.exe)
                                                                     : now.comm));
  record.actor = actor_of(now);
  record.with("previous_comm", before.actor.comm).with("previous_exe", before.actor.exe);
  if (!arguments.empty())
    record.with("arguments", arguments);
  if (now.exe_deleted)
    record.with("exe_deleted", true);
}

void ProcessChanges::credentials_changed(const Known &before, const Process &now, Records &records) {
  std::vector<std::string> what;
  const auto told = [&](std::string_view name, std::uint64_t from, std::uint64_t to, bool hex = false) {
    if (from != to)
      what.push_back(hex ? fmt::format("{} {:#x} to {:#x}", name, from, to)
                         : fmt::format("{} {} to {}", name, from, to));
  };
  told("uid", before.uid.effective, now.uid.effective);
  told("real uid", before.uid.real, now.uid.real);
  told("saved uid", before.uid.saved, now.uid.saved);
  told("gid", before.gid.effective, now.gid.effective);
  told("real gid", before.gid.real, now.gid.real);
  told("capabilities", before.capabilities.effective, now.capabilities.effective, true);
  told("permitted capabilities", before.capabilities.permitted, now.capabilities.permitted, true);
  told("inheritable capabilities", before.capabilities.inheritable, now.capabilities.inheritable, true);
  told("ambient capabilities", before.capabilities.ambient, now.capabilities.ambient, true);
  told("bounding capabilities", before.capabilities.bounding, now.capabilities.bounding, true);
  told("user namespace", before.user_namespace, now.namespaces.user);
  if (what.empty())
    what.emplace_back("the others of its ids");
  Record &record =
      records.add("credentials_changed",
                  fmt::format("{} changed: {}", named(now.tgid, now.comm, now.kernel_thread), fmt::join(what, ", ")));
  record.actor = actor_of(now);
  const auto both = [&](const char *name, std::uint64_t from, std::uint64_t to) {
    if (from != to)
      record.with(fmt::format("{}_before", name), from).with(fmt::format("{}_after", name), to);
  };
  both("uid", before.uid.effective, now.uid.effective);
  both("real_uid", before.uid.real, now.uid.real);
  both("saved_uid", before.uid.saved, now.uid.saved);
  both("filesystem_uid", before.uid.filesystem, now.uid.filesystem);
  both("gid", before.gid.effective, now.gid.effective);
  both("real_gid", before.gid.real, now.gid.real);
  both("saved_gid", before.gid.saved, now.gid.saved);
  both("filesystem_gid", before.gid.filesystem, now.gid.filesystem);
  // Capabilities are sets: JSON's numbers would lose bits above 2^53.
  const auto sets = [&](const char *name, std::uint64_t from, std::uint64_t to) {
    if (from != to)
      record.with(fmt::format("{}_before", name), fmt::format("{:#x}", from))
          .with(fmt::format("{}_after", name), fmt::format("{:#x}", to));
  };
  sets("effective", before.capabilities.effective, now.capabilities.effective);
  sets("permitted", before.capabilities.permitted, now.capabilities.permitted);
  sets("inheritable", before.capabilities.inheritable, now.capabilities.inheritable);
  sets("ambient", before.capabilities.ambient, now.capabilities.ambient);
  sets("bounding", before.capabilities.bounding, now.capabilities.bounding);
  both("user_namespace", before.user_namespace, now.namespaces.user);
}

void ProcessChanges::update(const View<Process> &now, const StartOfPid &start_of, Records &records) {
  const bool whole = !now.status.raced && !now.status.truncated;
  just_ended_.clear();
  for (const Process &process : now.items) {
    if (process.tgid <= 0 || process.tgid > largest_pid)
      continue; // no process has it: a task that was freed while it was read
    const auto found = known_.find(process.tgid);
    // One that could not be read is no other.
    const bool same = found != known_.end() && (found->second.start == process.start_since_boot_ns ||
                                                (process.start_since_boot_ns == 0 && !whole));
    if (same) {
      Known &known = found->second;
      known.seen = true;
      known.missing = false;
      if (known.ended)
        continue;
      if (is_dead(process)) {
        ended(known, records);
        known.ended = true;
        continue;
      }
      const bool other_memory = process.memory && known.memory && process.memory != known.memory;
      const bool other_name = process.comm != known.actor.comm && !process.kernel_thread;
      // The memory of two execs ago may have been given out again: the name and path tell then.
      const bool other_program =
          other_name && !process.exe.empty() && process.exe.substr(0, kept_text) != known.actor.exe;
      if (other_memory || other_program) {
        executed(known, process, records);
      } else if (other_name) {
        Record &record = records.add("process_renamed", fmt::format("process {} ({}) calls itself {}", process.tgid,
                                                                    known.actor.comm, process.comm));
        record.actor = actor_of(process);
        record.with("previous_comm", known.actor.comm);
      }
      if (!same_credentials(known, process))
        credentials_changed(known, process, records);
      take(known, process);
      continue;
    }
    if (found != known_.end()) { // the pid was used again
      if (!found->second.ended)
        ended(found->second, records);
      known_.erase(found);
    }
    if (known_.size() >= limit) {
      ++left_out_;
      continue;
    }
    if (!first_)
      started(process, records);
    Known &known = known_[process.tgid];
    take(known, process);
    known.seen = true;
    if (is_dead(process)) {
      if (!first_)
        ended(known, records);
      known.ended = true;
    }
  }
  any_missing_ = false;
  for (auto it = known_.begin(); it != known_.end();) {
    Known &known = it->second;
    if (known.seen) {
      known.seen = false;
      ++it;
      continue;
    }
    const auto start = start_of(it->first);
    const bool is_there = start && *start == known.start;
    if (!is_there && (start || whole || known.missing)) {
      if (!known.ended)
        ended(known, records);
      just_ended_.push_back(it->first);
      it = known_.erase(it);
    } else {
      known.missing = any_missing_ = true;
      ++it;
    }
  }
  first_ = false;
}

std::optional<Actor> ProcessChanges::actor(std::int32_t pid) const {
  const auto found = known_.find(pid);
  return found == known_.end() ? std::nullopt : std::optional(found->second.actor);
}

std::set<std::uint32_t> ProcessChanges::seen() const {
  std::set<std::uint32_t> pids;
  for (const auto &[pid, known] : known_)
    pids.insert(static_cast<std::uint32_t>(pid));
  for (const std::int32_t pid : just_ended_)
    pids.insert(static_cast<std::uint32_t>(pid));
  return pids;
}

std::vector<UnseenProcesses::Range> UnseenProcesses::advance(const Pulse &pulse) {
  if (!pulse.next_pid)
    return {};
  const auto before = std::exchange(cursor_, pulse.next_pid);
  if (!before || *before == *pulse.next_pid)
    return {};
  if (*before < *pulse.next_pid)
    return {{*before, *pulse.next_pid}};
  std::vector<Range> ranges;
  if (pulse.pid_limit && *before < *pulse.pid_limit)
    ranges.push_back({*before, *pulse.pid_limit});
  if (*pulse.next_pid > reserved_pids)
    ranges.push_back({reserved_pids, *pulse.next_pid});
  return ranges;
}

std::uint64_t UnseenProcesses::count(const std::vector<Range> &ranges, const std::vector<std::uint32_t> &in_use,
                                     std::set<std::uint32_t> seen) {
  seen.insert(in_use.begin(), in_use.end());
  std::uint64_t unseen = 0;
  for (const Range &range : ranges) { // what is not there is not counted one by one: a guest can claim millions
    const auto begin = seen.lower_bound(range.begin), end = seen.lower_bound(range.end);
    unseen += range.end - range.begin - static_cast<std::uint64_t>(std::distance(begin, end));
  }
  return unseen;
}

} // namespace lararium::watch
