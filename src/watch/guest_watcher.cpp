#include "lararium/watch/guest_watcher.h"

#include <algorithm>
#include <fmt/format.h>

namespace lararium::watch {
namespace {

using namespace std::chrono_literals;

constexpr ProcessQuery cheap{
    .threads = false, .paths = false, .arguments = false, .memory = false, .current_directory = false, .only_pid = {}};
constexpr std::size_t namespace_limit = 16;        // mount namespaces that are looked at
constexpr std::uint64_t jump_back = 2'000'000'000; // ns: less can be a torn read of the guest's clock

const Process *first_process(const std::vector<Process> &processes) {
  const auto found = std::ranges::find(processes, 1, &Process::tgid);
  return found == processes.end() ? nullptr : &*found;
}

} // namespace

Result<BootIdentity> identify(OperatingSystem &system) {
  TRY(system.pulse());
  TRY_ASSIGN(const auto view, system.processes(cheap));
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

Result<void> GuestWatcher::look_at_processes(Records &records) {
  TRY_ASSIGN(auto view, system_.processes(cheap));
  const Process *first = first_process(view.items);
  if (first == nullptr || first->start_since_boot_ns != identity_.first_process_start_ns) {
    system_.refresh(); // a race would not show the same twice
    TRY_ASSIGN(view, system_.processes(cheap));
    first = first_process(view.items);
    if (first == nullptr || first->start_since_boot_ns != identity_.first_process_start_ns)
      return fail(ErrorCode::gone, "the guest's first process is another one");
  }
  if (processes_.wants_details(view.items)) {
    auto detailed = system_.processes({});
    if (detailed) {
      // Who ended between the two is told of with what was seen before.
      std::set<std::pair<std::int32_t, std::uint64_t>> there;
      for (const Process &process : detailed->items)
        there.emplace(process.tgid, process.start_since_boot_ns);
      for (Process &process : view.items)
        if (!there.contains({process.tgid, process.start_since_boot_ns}) && !processes_.knows(process.tgid))
          detailed->items.push_back(std::move(process));
      view = std::move(*detailed);
    }
  }
  processes_.update(view, [this](std::int32_t pid) { return system_.start_of_pid(pid); }, records);
  mount_namespaces_.clear();
  for (const Process &process : view.items)
    if (process.namespaces.mnt != 0 && mount_namespaces_.size() < namespace_limit)
      mount_namespaces_.emplace(process.namespaces.mnt, process.tgid);
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
