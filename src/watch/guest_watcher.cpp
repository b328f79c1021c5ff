#include "lararium/watch/guest_watcher.h"

#include <algorithm>
#include <fmt/format.h>
#include <unordered_map>

namespace lararium::watch {
namespace {

using namespace std::chrono_literals;

constexpr std::size_t namespace_limit = 16;        // mount namespaces that are looked at
constexpr std::uint64_t jump_back = 2'000'000'000; // ns: less can be a torn read of the guest's clock

const Process *first_process(const std::vector<Process> &processes) {
  const auto found = std::ranges::find(processes, 1, &Process::tgid);
  return found == processes.end() ? nullptr : &*found;
}

// What a later look compares is kept of a process, and no text but its name: each look bounds the texts that it reads,
// but those of many looks would add up.
void forget_texts(Process &process) {
  process.groups = {};
  process.arguments = {};
  for (std::string *const text :
       {&process.exe, &process.current_directory, &process.cgroup, &process.container_id, &process.tty})
    *text = {};
}

} // namespace

Result<BootIdentity> identify(OperatingSystem &system) {
  TRY(system.pulse());
  TRY_ASSIGN(const auto view,
             system.processes({.paths = false, .arguments = false, .memory = false, .only_pids = {1}}));
  const Process *first = first_process(view.items);
  if (first == nullptr || first->start_since_boot_ns == 0)
    return fail(ErrorCode::not_found, "the guest's first process has not begun");
  TRY_ASSIGN(const SystemInfo info, system.info());
  return BootIdentity{info.kernel_base, info.kernel_physical_base, first->start_since_boot_ns};
}

Result<void> GuestWatcher::start(Clock::time_point now) {
  system_.refresh();
  TRY_ASSIGN(identity_, identify(system_));
  Records nothing; // a first look makes no records
  still_since_ = now;
  return poll(now, nothing);
}

bool GuestWatcher::is_due(Clock::time_point now, std::chrono::milliseconds every, Clock::time_point &last) const {
  constexpr auto early = 5ms; // a tick that comes a little early is none that is left out
  if (every == 0ms || now - last < every - early)
    return false;
  last = now;
  return true;
}

Result<void> GuestWatcher::poll(Clock::time_point now, Records &records) {
  system_.refresh();
  ++counts_.polls;
  const std::size_t before = records.items().size();
  const auto last_time = pulse_.time_ns;
  TRY(read_pulse(now, records));
  const bool ran_before = std::exchange(ran_, pulse_.time_ns != last_time || !pulse_.time_ns);
  if (ran_)
    still_since_ = now;
  // While the clock stands still, nothing runs. What came after the clock was read the last time, within that tick, is
  // seen at the next one, or now and then all the same: the clock too is the guest's word.
  const bool idle = !ran_ && !ran_before && now - whole_look_ < 1s;
  if (!idle) {
    whole_look_ = now;
    TRY(look_at_processes(records));
    TRY(look_at_the_rest(now, records));
    tell_left_out(records);
  }
  counts_.records += records.items().size() - before;
  counts_.left_out += records.left_out();
  return {};
}

Result<void> GuestWatcher::read_pulse(Clock::time_point now, Records &records) {
  TRY_ASSIGN(pulse_, system_.pulse());
  const auto went_back = [&] {
    return pulse_.uptime_ns && farthest_uptime_ && *pulse_.uptime_ns + jump_back < *farthest_uptime_;
  };
  if (went_back()) { // two words that the guest writes one after the other: look again
    system_.refresh();
    TRY_ASSIGN(pulse_, system_.pulse());
  }
  if (went_back()) {
    records
        .add("guest_restored", fmt::format("the guest went back by {:.1f} s, as when a snapshot is loaded",
                                           static_cast<double>(*farthest_uptime_ - *pulse_.uptime_ns) / 1e9))
        .with("uptime_before_ns", *farthest_uptime_)
        .with("uptime_after_ns", *pulse_.uptime_ns);
    unseen_.forget();
    last_ = {};
    still_since_ = now;
    farthest_uptime_.reset();
  }
  if (pulse_.uptime_ns)
    farthest_uptime_ = std::max(farthest_uptime_.value_or(0), *pulse_.uptime_ns);
  for (const auto &range : unseen_.advance(pulse_))
    given_out_.push_back(range);
  return {};
}

// Brings seen_ up to now, and says whether anything changed. Only processes whose marks are new are read.
Result<bool> GuestWatcher::take_processes() {
  TRY_ASSIGN(auto now, system_.process_marks());
  const bool whole = !now.status.raced && !now.status.truncated;
  if (whole && now.items == marks_)
    return false;
  std::unordered_map<std::int32_t, std::size_t> before;
  for (std::size_t i = 0; i < marks_.size(); ++i)
    before.emplace(marks_[i].pid, i);
  ProcessQuery query{.memory = false, .only_pids = {}};
  for (const ProcessMark &mark : now.items)
    if (const auto known = before.find(mark.pid); known == before.end() || marks_[known->second] != mark)
      query.only_pids.push_back(mark.pid);
  View<Process> changed;
  if (!query.only_pids.empty()) {
    auto read = system_.processes(query);
    if (read)
      changed = std::move(*read);
    else if (read.error().code != ErrorCode::not_found) // else all of them ended
      return std::unexpected(read.error());
  }
  std::unordered_map<std::int32_t, Process *> fresh;
  for (Process &process : changed.items)
    fresh.emplace(process.tgid, &process);

  View<Process> seen;
  std::vector<ProcessMark> marks;
  for (const ProcessMark &mark : now.items) {
    const auto known = before.find(mark.pid);
    if (const auto read = fresh.find(mark.pid); read != fresh.end()) {
      seen.items.push_back(std::move(*read->second));
      fresh.erase(read);
    } else if (known != before.end()) { // or it ended a moment ago: the next look says so
      seen.items.push_back(std::move(seen_.items[known->second]));
    } else {
      continue; // it came and went
    }
    marks.push_back(mark);
  }
  seen.status = std::move(now.status);
  seen.status.raced |= changed.status.raced;
  seen.status.truncated |= changed.status.truncated;
  seen_ = std::move(seen);
  marks_ = whole && !changed.status.raced && !changed.status.truncated ? std::move(marks) : std::vector<ProcessMark>();
  return true;
}

Result<void> GuestWatcher::look_at_processes(Records &records) {
  const auto is_this_boot = [&] {
    const Process *first = first_process(seen_.items);
    return first != nullptr && first->start_since_boot_ns == identity_.first_process_start_ns;
  };
  TRY_ASSIGN(bool changed, take_processes());
  if (!is_this_boot()) {
    system_.refresh(); // a race would not show the same twice
    marks_.clear();
    TRY_ASSIGN(changed, take_processes());
    if (!is_this_boot())
      return fail(ErrorCode::gone, "the guest's first process is another one");
  }
  if (!changed && !processes_.any_missing()) {
    processes_.nothing_changed();
  } else {
    processes_.update(seen_, [this](std::int32_t pid) { return system_.start_of_pid(pid); }, records);
    mount_namespaces_.clear();
    std::ranges::for_each(seen_.items, forget_texts);
    for (const Process &process : seen_.items)
      if (process.namespaces.mnt != 0 && mount_namespaces_.size() < namespace_limit)
        mount_namespaces_.emplace(process.namespaces.mnt, process.tgid);
  }
  count_unseen(records);
  return {};
}

void GuestWatcher::count_unseen(Records &records) {
  if (given_out_.empty())
    return;
  const auto ranges = std::exchange(given_out_, {});
  std::vector<std::uint32_t> in_use;
  for (const auto &range : ranges) {
    const auto view = system_.allocated_pids(range.begin, range.end);
    if (!view)
      return;
    in_use.insert(in_use.end(), view->items.begin(), view->items.end());
  }
  const std::uint64_t unseen = UnseenProcesses::count(ranges, in_use, processes_.seen());
  if (unseen == 0)
    return;
  counts_.unseen += unseen;
  records
      .add("processes_unseen", fmt::format("{} {} came and went between two looks", unseen,
                                           unseen == 1 ? "process or thread" : "processes or threads"))
      .with("count", unseen);
}

Result<View<Mount>> GuestWatcher::mounts_of_all_namespaces() {
  View<Mount> all;
  for (const auto &[number, pid] : mount_namespaces_) {
    auto view = system_.mounts(pid);
    if (!view) {
      all.status.raced = true; // the process ended: what is there is not known now
      continue;
    }
    all.status.raced |= view->status.raced;
    all.status.truncated |= view->status.truncated;
    for (Mount &mount : view->items)
      all.items.push_back(std::move(mount));
  }
  return all;
}

Result<void> GuestWatcher::look_at_the_rest(Clock::time_point now, Records &records) {
  const ActorByPid actor = [this](std::int32_t pid) { return processes_.actor(pid); };
  // A view that cannot be had (a kernel without BPF, a broken list) is none that changed.
  if (is_due(now, plan_.modules, last_.modules))
    if (const auto view = system_.modules())
      modules_.update(*view, records);
  if (is_due(now, plan_.sockets, last_.sockets))
    if (const auto view = system_.sockets())
      sockets_.update(*view, actor, records);
  if (is_due(now, plan_.mounts, last_.mounts))
    if (const auto view = mounts_of_all_namespaces())
      mounts_.update(*view, records);
  if (is_due(now, plan_.interfaces, last_.interfaces))
    if (const auto view = system_.interfaces())
      interfaces_.update(*view, records);
  if (is_due(now, plan_.bpf, last_.bpf))
    if (const auto view = system_.bpf())
      bpf_.update(*view, actor, records);
  return {};
}

void GuestWatcher::tell_left_out(Records &records) {
  const std::size_t not_followed = processes_.take_left_out() + modules_.take_left_out() + sockets_.take_left_out() +
                                   mounts_.take_left_out() + interfaces_.take_left_out() + bpf_.take_left_out() +
                                   findings_.take_left_out();
  const std::size_t not_told = records.left_out();
  if (not_followed == 0 && not_told == 0)
    return;
  // It takes the place of the last record where there is no other.
  if (not_told != 0 && !records.items().empty())
    records.items().pop_back();
  records
      .add("watch_notice", fmt::format("more happened than is followed: {} records left out, {} objects not followed",
                                       not_told + (not_told != 0 ? 1 : 0), not_followed))
      .with("records_left_out", std::uint64_t{not_told + (not_told != 0 ? 1U : 0U)})
      .with("objects_not_followed", std::uint64_t{not_followed});
}

} // namespace lararium::watch
