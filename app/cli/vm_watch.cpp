#include "vm_watch.h"

#include <algorithm>
#include <ctime>
#include <fmt/format.h>

namespace lararium::cli {
namespace {

using namespace std::chrono_literals;
using watch::Clock;

constexpr auto search_pause = 200ms; // between looks for a kernel that is not there yet
constexpr auto hopeless_pause = 5s;  // for one that cannot be understood
constexpr auto stillness = 500ms;    // of the guest's clock, after which the vCPUs are asked what they run
constexpr auto longest_still_pause = 5s;
// Checks that one step makes at most, so that the next look at the processes is not late.
constexpr auto longest_checks = 20ms;

std::uint64_t host_time() {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch())
          .count());
}

std::chrono::nanoseconds thread_cpu_time() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
}

// Of this kernel, at this moment, nothing can be said; but wait for it.
bool may_pass(const Error &error) {
  return error.code != ErrorCode::no_types && error.code != ErrorCode::unsupported &&
         error.code != ErrorCode::permission_denied;
}

} // namespace

Result<std::unique_ptr<VmWatch>> VmWatch::open(Host &host, const WatchSettings &settings, const std::string &name) {
  TRY_ASSIGN(Target target, host.open(name));
  if (target.identity.kind != TargetKind::live)
    return fail(ErrorCode::unsupported, fmt::format("{} is a dump, which stands still: watch needs a VM", name));
  return std::unique_ptr<VmWatch>(new VmWatch(host, settings, std::move(target)));
}

watch::GuestCounts VmWatch::counts() const {
  watch::GuestCounts sum = earlier_;
  if (attached_) {
    const auto &now = attached_->watcher->counts();
    sum.polls += now.polls;
    sum.records += now.records;
    sum.left_out += now.left_out;
    sum.unseen += now.unseen;
  }
  return sum;
}

void VmWatch::step(Clock::time_point now, std::vector<Record> &out) {
  if (now < due_ || gone_)
    return;
  due_ = std::max(due_ + settings_.interval, now); // a tick that was missed is not made up for
  watch::Records records;
  if (target_.liveness && !target_.liveness->alive()) {
    gone_ = true;
  } else if (lost_) {
    if (now >= next_search_)
      look_for_kernel(now, records);
  } else {
    poll(now, records);
  }
  if (!gone_ && target_.liveness && !target_.liveness->alive())
    gone_ = true;
  if (gone_) {
    // What a VM's memory showed while it was torn down is no news.
    records = {};
    records.add("vm_gone", fmt::format("the VM {} ended", target_.identity.name));
    attached_.reset();
  }
  for (Record &record : records.items()) {
    record.vm = {target_.identity.name, target_.identity.uuid, target_.identity.pid};
    record.host_time_ns = host_time();
    if (attached_ && !gone_)
      record.guest_time_ns = attached_->watcher->pulse().time_ns;
    out.push_back(std::move(record));
  }
}

void VmWatch::waits_because(const Error &error, watch::Records &records) {
  const std::string why = may_pass(error) ? "no kernel runs in it (yet)" : error.describe();
  if (std::exchange(told_why_, why) == why)
    return;
  records.add("watch_notice", fmt::format("waiting for the guest of {}: {}", target_.identity.name, why))
      .with("reason", why);
}

void VmWatch::look_for_kernel(Clock::time_point now, watch::Records &records) {
  target_.memory->refresh();
  GuestOptions options = settings_.guest;
  options.running_only = true;
  auto guest = host_.attach(target_, options);
  if (!guest) {
    next_search_ = now + (may_pass(guest.error()) ? Clock::duration(search_pause) : Clock::duration(hopeless_pause));
    waits_because(guest.error(), records);
    return;
  }
  const auto identity = watch::identify(*guest->system);
  if (!identity) { // what was cached of a kernel that is being set up must not stay: attach anew
    next_search_ = now + search_pause;
    waits_because(identity.error(), records);
    return;
  }
  if (attached_ && *identity == attached_->watcher->identity()) {
    lost_ = false;
    return;
  }
  adopt(std::move(*guest), now, records);
}

void VmWatch::adopt(Guest guest, Clock::time_point now, watch::Records &records) {
  Attached next{std::move(guest), nullptr, std::nullopt, std::nullopt};
  next.watcher = std::make_unique<watch::GuestWatcher>(*next.guest.system, settings_.plan);
  if (const auto started = next.watcher->start(now); !started) {
    next_search_ = now + search_pause;
    lost_ = true;
    return;
  }
  if (settings_.checks) {
    auto runner = detect::Runner::create(target_, *next.guest.system, {});
    if (runner) {
      next.schedule.emplace(runner->size(), settings_.pace, now);
      next.runner.emplace(std::move(*runner));
    } else
      records.add("watch_notice", "no checks are made: " + runner.error().describe());
  }
  const bool reboot = attached_.has_value();
  if (reboot) {
    earlier_ = counts();
    attached_->runner.reset(); // it refers to the guest
    attached_->watcher.reset();
  }
  attached_.emplace(std::move(next));
  lost_ = false;
  told_why_.clear();
  still_pause_ = 1s;
  const auto info = attached_->guest.system->info();
  const std::string release = info ? info->release : std::string();
  Record &record =
      reboot ? records.add("guest_rebooted",
                           fmt::format("the guest of {} booted again: Linux {}", target_.identity.name, release))
             : records.add("vm_appeared", fmt::format("watching {}: Linux {}", target_.identity.name, release));
  record.with("release", release).with("kernel_base", attached_->watcher->identity().kernel_base);
  if (info) {
    record.with("build_id", info->build_id);
    if (info->uptime_ns) {
      const std::uint64_t first = attached_->watcher->identity().first_process_start_ns;
      record.with("uptime_ns", *info->uptime_ns);
      record.with("kernel_up_ns", *info->uptime_ns > first ? *info->uptime_ns - first : 0);
    }
  }
  for (const std::string &note : attached_->guest.notes)
    records.add("watch_notice", note);
}

bool VmWatch::take_new_memory(watch::Records &records) {
  auto fresh = plugged_.look(host_, target_, attached_->watcher->pulse().last_ram_page);
  if (!fresh)
    return false;
  records.add("watch_notice",
              fmt::format("memory was plugged into {}: what runs there is looked at anew", target_.identity.name));
  earlier_ = counts();
  attached_.reset();
  target_ = std::move(*fresh);
  return true;
}

void VmWatch::poll(Clock::time_point now, watch::Records &records) {
  watch::GuestWatcher &watcher = *attached_->watcher;
  if (const auto polled = watcher.poll(now, records); !polled) {
    lost_ = true;
    next_search_ = now;
    return;
  }
  if (take_new_memory(records)) {
    lost_ = true;
    next_search_ = now;
    return;
  }
  if (watcher.still_since() == now) {
    still_pause_ = 1s;
    next_still_look_ = now + stillness;
    if (std::exchange(paused_, false))
      records.add("vm_resumed", fmt::format("{} goes on", target_.identity.name));
    run_checks(now, records);
  } else if (now >= next_still_look_) {
    look_into_stillness(now, records);
    still_pause_ = std::min<std::chrono::milliseconds>(2 * still_pause_, longest_still_pause);
    next_still_look_ = now + still_pause_;
  }
}

// The clock does not move: the guest idles, or is paused, or another kernel runs and this one only still lies in
// memory.
void VmWatch::look_into_stillness(Clock::time_point now, watch::Records &records) {
  if (target_.run_control)
    if (const auto state = target_.run_control->state();
        state && (*state == RunState::paused || *state == RunState::migrating)) {
      if (!std::exchange(paused_, true)) {
        if (*state == RunState::paused)
          records.add("vm_paused", fmt::format("{} is paused", target_.identity.name));
        else
          records.add("vm_migrated", fmt::format("the guest of {} goes on in another QEMU", target_.identity.name));
      }
      return;
    }
  lost_ = true; // unless the same is found again
  look_for_kernel(now, records);
}

void VmWatch::run_checks(Clock::time_point now, watch::Records &records) {
  if (!attached_->runner)
    return;
  detect::Runner &runner = *attached_->runner;
  detect::Schedule &schedule = *attached_->schedule;
  std::unique_ptr<detect::Scene> scene;
  std::vector<watch::CheckRound> rounds;
  while (const auto index = schedule.due(now)) {
    const auto before = thread_cpu_time();
    if (!scene) {
      attached_->guest.system->refresh();
      auto made = detect::Scene::create(target_, *attached_->guest.system);
      if (!made)
        return; // the next poll says why
      scene = std::move(*made);
    }
    const auto outcome = runner.look(*index, *scene);
    const auto after = Clock::now();
    if (outcome) {
      schedule.settled(*index, after, thread_cpu_time() - before);
      rounds.push_back({outcome->check->name, !outcome->error, outcome->findings});
    } else {
      schedule.again_at(*index, after + runner.again_after(*index));
    }
    if (after - now > longest_checks)
      break;
  }
  attached_->watcher->take_findings(rounds, records);
}

} // namespace lararium::cli
