#include "../context.h"
#include "../guard_server.h"
#include "../record_output.h"
#include "../text.h"
#include "../vm_watch.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <fmt/format.h>
#include <map>
#include <set>

namespace lararium::cli {
namespace {

using namespace std::chrono_literals;
using std::chrono::milliseconds;
using watch::Clock;

struct EventGroup {
  std::string_view name;
  std::vector<std::string_view> types;
};
const std::vector<EventGroup> &event_groups() {
  static const std::vector<EventGroup> groups = {
      {"processes", {"process_started", "process_ended", "process_executed", "process_renamed", "processes_unseen"}},
      {"credentials", {"credentials_changed"}},
      {"modules", {"module_loaded", "module_unloaded"}},
      {"sockets", {"listening_started", "listening_stopped", "connection_opened", "connection_closed"}},
      {"mounts", {"mounted", "unmounted"}},
      {"interfaces", {"interface_appeared", "interface_changed", "interface_gone"}},
      {"bpf", {"bpf_program_loaded", "bpf_program_unloaded"}},
      {"findings", {"finding_appeared", "finding_cleared"}},
  };
  return groups;
}

constexpr std::string_view hook_group = "sim"; // of what hooks tell

// Which records are printed. What concerns the VM as a whole and the watching itself always is.
class EventChoice {
public:
  [[nodiscard]] static Result<EventChoice> parse(const std::optional<std::string> &text) {
    EventChoice choice;
    if (!text)
      return choice;
    choice.chosen_.emplace();
    for (const std::string &name : split_names(*text)) {
      bool known = name == hook_group;
      choice.hooks_ = choice.hooks_ || known;
      for (const EventGroup &group : event_groups()) {
        for (const std::string_view type : group.types)
          if (name == group.name || name == type) {
            choice.chosen_->emplace(type);
            known = true;
          }
      }
      if (!known)
        return fail(ErrorCode::usage,
                    fmt::format("--events: no events are called {}; there are {}", visible(name), names()));
    }
    return choice;
  }
  [[nodiscard]] bool wants(std::string_view type) const {
    return !chosen_ || (hooks_ && is_of_hooks(type)) || type.starts_with("vm_") || type.starts_with("guest_") ||
           type.starts_with("watch_") || chosen_->contains(type);
  }
  [[nodiscard]] bool wants_group(std::string_view name) const {
    const auto &groups = event_groups();
    const auto group = std::ranges::find(groups, name, &EventGroup::name);
    return std::ranges::any_of(group->types, [&](std::string_view type) { return wants(type); });
  }
  [[nodiscard]] bool wants_hooks() const { return hooks_; }
  static std::string names() {
    std::vector<std::string_view> all;
    for (const EventGroup &group : event_groups())
      all.push_back(group.name);
    all.push_back(hook_group);
    return fmt::format("{}", fmt::join(all, ", "));
  }

private:
  static bool is_of_hooks(std::string_view type) {
    return type.starts_with("guard_") || type == "gate_tampered" ||
           std::ranges::any_of(gate::all_hooks(), [&](const gate::HookEntry *hook) { return type == hook->name; });
  }

  std::optional<std::set<std::string, std::less<>>> chosen_;
  bool hooks_ = false;
};

double cpu_seconds() {
  timespec time{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) / 1e9;
}

// Waits until then, or for a signal that ends the program; whether it was one. They must be blocked.
bool interrupted_before(Clock::time_point until) {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT})
    sigaddset(&set, signal);
  for (;;) {
    const auto left = std::max<Clock::duration>(until - Clock::now(), Clock::duration::zero());
    const auto nanoseconds = std::chrono::duration_cast<std::chrono::nanoseconds>(left).count();
    const timespec time{static_cast<time_t>(nanoseconds / 1'000'000'000),
                        static_cast<long>(nanoseconds % 1'000'000'000)};
    if (::sigtimedwait(&set, nullptr, &time) > 0)
      return true;
    if (errno != EINTR)
      return false;
  }
}

// Nobody is asked, and nothing is denied: calls are seen.
class NoTool final : public gate::SecurityTool {
public:
  gate::Verdict decide(const gate::HookEntry & /*hook*/, const Record & /*record*/) override { return {}; }
};

// The hooks of one VM, beside the polling of it.
struct HookedVm {
  Target target;
  std::unique_ptr<GuardServer> server;
};

class Watch final : public Command {
public:
  void describe(Syntax &syntax) override {
    syntax.argument("VM", "names, pids, uuids or QMP sockets of VMs; may be left out when one VM runs", names_);
    syntax.flag("-a,--all", "all VMs of this host, also those that come later", all_);
    syntax.option(
        "-i,--interval", "TIME",
        "between looks at processes and modules; 100ms if left out. Sockets, mounts and interfaces are looked "
        "at every second, BPF programs every two",
        interval_);
    syntax.option("--checks-cpu", "PERCENT",
                  "of one processor for the checks of a VM: each is made as often as what it costs allows; 0.5 if left "
                  "out",
                  checks_cpu_);
    syntax.option("--checks-every", "TIME", "between two looks of each check, whatever it costs", checks_every_);
    syntax.flag("--no-checks", "make no checks, so no findings", no_checks_);
    syntax.option("-e,--events", "KINDS",
                  "only these, separated by commas: " + EventChoice::names() +
                      ", or types of records (process_started). sim: what programs do, by hooks in the guest's kernel "
                      "that tell of each call (guard --mode sim), so that nothing is missed between two looks",
                  events_);
    syntax.option("--for", "TIME", "end after that time", for_);
  }

  Result<void> run(Context &context) override {
    if (context.options.pause)
      return fail(ErrorCode::usage, "watch looks at a guest that runs: leave out --pause");
    if (all_ && !names_.empty())
      return fail(ErrorCode::usage, "--all takes no names of VMs");
    WatchSettings settings;
    settings.guest = context.options.guest;
    TRY_ASSIGN(settings.interval, parse_duration(interval_, "--interval"));
    if (settings.interval < 10ms || settings.interval > 1h)
      return fail(ErrorCode::usage, "an interval lies between 10ms and 1h");
    TRY(parse_pace(settings.pace));
    TRY_ASSIGN(choice_, EventChoice::parse(events_));
    std::optional<milliseconds> length;
    if (for_) {
      TRY_ASSIGN(length, parse_duration(*for_, "--for"));
    }
    plan(settings);

    const SignalGuard guard; // so that the end of watching can be told
    const auto begin = Clock::now();
    const double cpu_before = cpu_seconds();
    std::vector<std::unique_ptr<VmWatch>> watches;
    if (!all_) {
      TRY(open_named(context, settings, watches));
    }
    many_ = all_ || watches.size() > 1;
    const auto end = length ? begin + *length : Clock::time_point::max();
    auto next_discovery = begin;
    for (;;) {
      const auto now = Clock::now();
      if (now >= end)
        break;
      if (all_ && now >= next_discovery) {
        discover(context, settings, watches);
        next_discovery = now + 500ms;
      }
      if (choice_.wants_hooks())
        hook(context, watches);
      std::vector<Record> records;
      for (const Record &record : hooked_records_.take())
        records.push_back(record);
      TRY(print(context, records));
      auto next = all_ ? std::min(end, next_discovery) : end;
      for (const auto &vm : watches) {
        vm->step(Clock::now(), records);
        if (!vm->gone())
          next = std::min(next, vm->due());
        TRY(print(context, records));
      }
      std::erase_if(watches, [&](const auto &vm) {
        if (vm->gone()) {
          add_counts(*vm);
          hooked_.erase(vm->identity().pid);
        }
        return vm->gone();
      });
      if (watches.empty() && !all_)
        break;
      if (interrupted_before(std::min(next, Clock::now() + (hooked_.empty() ? 1s : Clock::duration(20ms)))))
        break;
    }
    for (const auto &vm : watches)
      add_counts(*vm);
    hooked_.clear(); // the hooks come out
    std::vector<Record> last;
    for (const Record &record : hooked_records_.take())
      last.push_back(record);
    TRY(print(context, last));
    sum_.left_out += hooked_records_.left_out();
    return print_summary(context, std::chrono::duration<double>(Clock::now() - begin).count(),
                         cpu_seconds() - cpu_before);
  }

private:
  Result<void> parse_pace(detect::Pace &pace) const {
    if (checks_every_ && checks_cpu_)
      return fail(ErrorCode::usage, "--checks-every and --checks-cpu contradict each other: leave one out");
    if (checks_every_) {
      TRY_ASSIGN(pace.every, parse_duration(*checks_every_, "--checks-every"));
      if (pace.every < 100ms)
        return fail(ErrorCode::usage, "between two looks of a check lie at least 100ms");
    }
    if (checks_cpu_) {
      double percent = 0;
      const auto [end, error] =
          std::from_chars(checks_cpu_->data(), checks_cpu_->data() + checks_cpu_->size(), percent);
      if (error != std::errc() || end != checks_cpu_->data() + checks_cpu_->size() ||
          !(percent >= 0.01 && percent <= 100))
        return fail(ErrorCode::usage,
                    fmt::format("--checks-cpu: no percentage from 0.01 to 100: {}", visible(*checks_cpu_)));
      pace.share = percent / 100;
    }
    return {};
  }

  void plan(WatchSettings &settings) const {
    watch::Plan &plan = settings.plan;
    plan.processes = plan.modules = settings.interval;
    if (!choice_.wants_group("modules"))
      plan.modules = 0ms;
    if (!choice_.wants_group("sockets"))
      plan.sockets = 0ms;
    if (!choice_.wants_group("mounts"))
      plan.mounts = 0ms;
    if (!choice_.wants_group("interfaces"))
      plan.interfaces = 0ms;
    if (!choice_.wants_group("bpf"))
      plan.bpf = 0ms;
    if (no_checks_ || !choice_.wants_group("findings"))
      settings.checks = false;
  }

  Result<void> open_named(Context &context, const WatchSettings &settings,
                          std::vector<std::unique_ptr<VmWatch>> &watches) {
    if (names_.empty()) {
      TRY_ASSIGN(const auto vms, context.host.vms());
      if (vms.empty())
        return fail(ErrorCode::not_found, "no VM runs on this host that you can see");
      if (vms.size() > 1)
        return fail(ErrorCode::ambiguous, fmt::format("{} VMs run on this host: name some, or say --all", vms.size()));
      names_.push_back(std::to_string(vms.front().identity.pid));
    }
    for (const std::string &name : names_) {
      TRY_ASSIGN(auto vm, VmWatch::open(context.host, settings, name));
      const pid_t pid = vm->identity().pid;
      if (std::ranges::none_of(watches, [&](const auto &other) { return other->identity().pid == pid; }))
        watches.push_back(std::move(vm));
    }
    return {};
  }

  // Takes in what runs now and is not watched yet. A VM that cannot be opened is told of once, and not while it may
  // still be setting itself up.
  void discover(Context &context, const WatchSettings &settings, std::vector<std::unique_ptr<VmWatch>> &watches) {
    const auto vms = context.host.vm_processes();
    if (!vms)
      return;
    std::set<std::pair<pid_t, std::string>> there;
    for (const VmListing &vm : *vms) {
      const pid_t pid = vm.identity.pid;
      there.emplace(pid, vm.identity.name);
      if (std::ranges::any_of(watches, [&](const auto &other) { return other->identity().pid == pid; }))
        continue;
      auto opened = VmWatch::open(context.host, settings, std::to_string(pid));
      if (opened) {
        watches.push_back(std::move(*opened));
        continue;
      }
      const int times = ++refused_[{pid, vm.identity.name}];
      constexpr int patience = 6; // looks: three seconds
      if (opened.error().code != ErrorCode::gone && times == patience)
        context.note(fmt::format("{} (pid {}) cannot be watched: {}", visible(vm.identity.name), pid,
                                 visible(opened.error().describe())));
    }
    std::erase_if(refused_, [&](const auto &vm) { return !there.contains(vm.first); });
    static_cast<void>(context.err.flush());
  }

  // Hooks VMs that are not hooked yet, once their kernel is up. Why it cannot be done is told once.
  void hook(Context &context, const std::vector<std::unique_ptr<VmWatch>> &watches) {
    for (const auto &vm : watches) {
      const pid_t pid = vm->identity().pid;
      if (vm->gone() || hooked_.contains(pid) || not_before_[pid] > Clock::now())
        continue;
      auto target = context.host.open(std::to_string(pid));
      auto error = fail(ErrorCode::gone, "it is gone").error();
      if (target) {
        HookedVm hooked{std::move(*target), nullptr};
        auto &place = hooked_.emplace(pid, std::move(hooked)).first->second;
        GuardSetup setup{.guest = context.options.guest, .gate = {.hooks = gate::all_hooks()}, .tool = &tool_};
        setup.gate.poll = 1ms;
        setup.gate.sim.emplace();
        place.server = std::make_unique<GuardServer>(context.host, place.target, std::move(setup), hooked_records_);
        auto started = place.server->start();
        if (started)
          continue;
        error = std::move(started).error();
        hooked_.erase(pid);
      }
      not_before_[pid] = Clock::now() + 1s;
      if (hook_refused_.emplace(pid).second)
        context.note(fmt::format("{} is not hooked yet: {}", visible(vm->identity().name), visible(error.describe())));
    }
    static_cast<void>(context.err.flush());
  }

  void add_counts(const VmWatch &vm) {
    const watch::GuestCounts counts = vm.counts();
    sum_.polls += counts.polls;
    sum_.unseen += counts.unseen;
    sum_.left_out += counts.left_out;
  }

  Result<void> print(Context &context, std::vector<Record> &records) {
    for (const Record &record : records)
      if (choice_.wants(record.type)) {
        ++printed_;
        print(context, record);
      }
    records.clear();
    return context.out.flush();
  }

  void print(Context &context, const Record &record) const {
    if (context.options.json) {
      JsonWriter json(context.out.buffer());
      write_record(json, record);
      context.out.buffer() += '\n';
      return;
    }
    Output &out = context.out;
    out.styled(Style::dim, clock_time(record.host_time_ns));
    if (many_)
      out.buffer() += fmt::format(" {}", visible(record.vm.name));
    out.buffer() += ' ';
    const Style style = record.type == "finding_cleared" ? Style::green
                        : record.finding                 ? style_of(record.finding->severity)
                        : record.type.starts_with("watch_") || record.type == "processes_unseen" ? Style::yellow
                                                                                                 : Style::cyan;
    out.styled(style, fmt::format("{:<20}", record.type));
    out.buffer() += ' ';
    append_visible(out.buffer(), record.sentence);
    out.buffer() += '\n';
    if (record.finding && record.type == "finding_appeared")
      print_evidence(out, *record.finding);
  }

  // "12:03:04.567", UTC as all times.
  static std::string clock_time(std::uint64_t nanoseconds) {
    const std::uint64_t ms = nanoseconds / 1'000'000 % 86'400'000;
    return fmt::format("{:02}:{:02}:{:02}.{:03}", ms / 3'600'000, ms / 60'000 % 60, ms / 1000 % 60, ms % 1000);
  }

  Result<void> print_summary(Context &context, double seconds, double cpu) {
    const double percent = seconds > 0 ? 100 * cpu / seconds : 0;
    Record record;
    record.type = "watch_ended";
    record.host_time_ns = static_cast<std::uint64_t>(
        std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch())
            .count());
    record.sentence =
        fmt::format("{} records, {} polls in {:.1f} s at {:.2f} % of a core; {} processes or threads came and went {}",
                    printed_, sum_.polls, seconds, percent, sum_.unseen,
                    choice_.wants_hooks() ? "between two looks; hooks told of them" : "unseen");
    record.with("records", printed_)
        .with("polls", sum_.polls)
        .with("processes_unseen", sum_.unseen)
        .with("records_left_out", sum_.left_out)
        .with("milliseconds", static_cast<std::uint64_t>(seconds * 1e3))
        .with("cpu_microseconds", static_cast<std::uint64_t>(cpu * 1e6));
    print(context, record);
    return context.out.flush();
  }

  std::vector<std::string> names_;
  bool all_ = false, no_checks_ = false, many_ = false;
  std::string interval_ = "100ms";
  std::optional<std::string> checks_every_, checks_cpu_, events_, for_;
  EventChoice choice_;
  std::map<std::pair<pid_t, std::string>, int> refused_; // how often
  NoTool tool_;
  Outbox hooked_records_;
  std::map<pid_t, HookedVm> hooked_;
  std::map<pid_t, Clock::time_point> not_before_;
  std::set<pid_t> hook_refused_;
  watch::GuestCounts sum_;
  std::uint64_t printed_ = 0;
};

LARARIUM_COMMAND(Watch, "watch", security, none, "tells what happens in VMs, as it happens")

} // namespace
} // namespace lararium::cli
