#include "../context.h"
#include "../exit_codes.h"
#include "../live_records.h"
#include "../plugged_memory.h"
#include "../record_output.h"
#include "../served_vm.h"
#include "../text.h"

#include "lararium/gate/memory_guard.h"
#include "lararium/gate/nic_guard.h"
#include "lararium/gate/register_guard.h"
#include "lararium/os/linux.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <deque>
#include <fmt/format.h>
#include <future>
#include <iterator>
#include <mutex>
#include <set>
#include <utility>

namespace lararium::cli {
namespace {

using namespace std::chrono_literals;
using gate::GuardCounts;
using gate::MemoryGuard;
using gate::NicGuard;
using gate::RegisterGuard;

std::uint64_t host_time() {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch())
          .count());
}

enum class NicPolicy : std::uint8_t { off, report, deny };

struct KeeperOptions {
  GuestOptions guest;
  gate::GuardOptions memory;
  std::chrono::milliseconds interval{1000}; // between looks at registers and NICs
  NicPolicy nics = NicPolicy::report;
  bool nic_events = false; // a monitor of the VM's is kept for them
};

// What is asked of the VM's monitor, each in a thread of its own: a monitor may be slow, or somebody else's.
class MonitorDesk {
public:
  explicit MonitorDesk(Target &target) : target_(target) {}

  [[nodiscard]] std::future<Result<std::vector<VcpuRegisters>>> registers() {
    return std::async(std::launch::async, [this] {
      const std::lock_guard lock(mutex_);
      return target_.vcpus->registers();
    });
  }
  // With those that no monitor tells, where they can be had.
  [[nodiscard]] std::future<Result<std::vector<VcpuRegisters>>> all_registers() {
    return std::async(std::launch::async, [this]() -> Result<std::vector<VcpuRegisters>> {
      const std::lock_guard lock(mutex_);
      if (auto all = target_.vcpus->registers_with_msrs())
        return all;
      return target_.vcpus->registers();
    });
  }
  // When something changed, or after `wait` at the latest.
  [[nodiscard]] std::future<Result<std::vector<Nic>>> nics(std::chrono::milliseconds wait) {
    return std::async(std::launch::async, [this, wait]() -> Result<std::vector<Nic>> {
      if (wait.count() != 0)
        TRY(target_.nics->wait_for_change(wait));
      return target_.nics->list();
    });
  }
  [[nodiscard]] std::future<Result<void>> set_link(std::string nic, bool up) {
    return std::async(std::launch::async, [this, nic = std::move(nic), up] { return target_.nics->set_link(nic, up); });
  }

private:
  Target &target_;
  std::mutex mutex_; // of the vCPUs: two of us ask for registers
};

template <class T> bool is_ready(const std::future<T> &future) {
  return future.valid() && future.wait_for(0s) == std::future_status::ready;
}

// Serves the faults of one VM, from the first protected page to the last. In between it judges what the monitor told
// meanwhile of registers and NICs.
class Keeper final : public ServedVm {
public:
  Keeper(Host &host, Target &target, KeeperOptions options, Outbox &outbox)
      : ServedVm(target, outbox), host_(host), options_(std::move(options)), desk_(target) {
    options_.guest.running_only = true;
    if (target_.vcpus)
      options_.memory.registers = [this] { return desk_.registers(); };
  }
  ~Keeper() override { stop(); }

  // Protects the guest that runs now, and from then on whatever it boots into.
  [[nodiscard]] Result<void> start() {
    if (!target_.protector)
      return fail(ErrorCode::unsupported,
                  fmt::format("{} is no running VM of QEMU's: there is nothing to protect", target_.identity.name));
    return ServedVm::start();
  }
  // When it stands.
  [[nodiscard]] const GuardCounts &counts() const { return sum_; }
  [[nodiscard]] const gate::RegisterCounts &register_counts() const { return register_sum_; }
  [[nodiscard]] const std::vector<std::string> &pulled() const { return pulled_; }

private:
  // A protection of its own for each guest: what was protected in the memory of the one before is nobody's business.
  Result<void> take_up() override {
    target_.memory->refresh();
    TRY_ASSIGN(guest_, host_.attach(target_, options_.guest));
    TRY(MemoryGuard::check_ready(*guest_.system)); // before QEMU is touched
    TRY_ASSIGN(protection_, target_.protector->begin());
    TRY_ASSIGN(guard_, MemoryGuard::create(*guest_.system, *target_.memory, *protection_.protection, options_.memory));
    if (const auto *kernel = linux_guest::kernel_of(*guest_.system); kernel != nullptr && target_.vcpus)
      registers_ =
          std::make_unique<RegisterGuard>(*guest_.system, *kernel, gate::RegisterTiming{.interval = options_.interval});
    if (options_.nics != NicPolicy::off && target_.nics)
      nics_ = std::make_unique<NicGuard>(*guest_.system, options_.nics == NicPolicy::deny,
                                         gate::NicTiming{.interval = options_.interval});
    const GuardCounts counts = guard_->counts();
    Record record;
    record.type = "protection_started";
    record.sentence =
        fmt::format("{} pages ({:.1f} MiB) of {} are protected, {} compared; QEMU was stopped for {} us",
                    counts.pages - counts.compared_pages, static_cast<double>(counts.pages * page_size) / (1 << 20),
                    target_.identity.name, counts.compared_pages, protection_.stopped.count() / 1000);
    record.with("pages", counts.pages)
        .with("compared_pages", counts.compared_pages)
        .with("stopped_microseconds", static_cast<std::uint64_t>(protection_.stopped.count() / 1000))
        .with("interval_milliseconds", static_cast<std::uint64_t>(options_.interval.count()));
    tell(std::move(record));
    auto limitations = protection_.limitations;
    limitations.insert(limitations.end(), guard_->limitations().begin(), guard_->limitations().end());
    for (std::string &limitation : limitations) {
      Record notice;
      notice.type = "protection_notice";
      notice.sentence = std::move(limitation);
      tell(std::move(notice));
    }
    return {};
  }

  Result<void> step() override {
    std::vector<Record> records;
    const bool is_waiting =
        register_answer_.valid() || link_answer_.valid() || (registers_ && registers_->suspects_tables());
    auto stepped = guard_->step(is_waiting ? 10ms : 50ms, records);
    if (stepped) {
      look_at_registers(records);
      look_at_nics(records);
    }
    put(records);
    if (stepped)
      take_new_memory();
    return stepped;
  }
  // Modules that are loaded there could not be protected.
  void take_new_memory() {
    const auto now = std::chrono::steady_clock::now();
    if (now < next_memory_)
      return;
    next_memory_ = now + memory_interval;
    guest_.system->refresh();
    const auto pulse = guest_.system->pulse();
    auto fresh = pulse ? plugged_.look(host_, target_, pulse->last_ram_page) : std::nullopt;
    if (!fresh)
      return;
    Record notice;
    notice.type = "protection_notice";
    notice.sentence = "memory was plugged in: the protection is made anew";
    tell(std::move(notice));
    add_counts();
    let_go();
    target_ = std::move(*fresh);
    take_up_again();
  }
  void lose() override { add_counts(); }
  [[nodiscard]] Record paused(const Error &why) const override {
    Record record;
    record.type = "protection_paused";
    record.sentence = fmt::format("{}; nothing is protected until its guest is up again", why.describe());
    return record;
  }
  void finish() override { add_counts(); }

  void look_at_registers(std::vector<Record> &records) {
    if (!registers_)
      return;
    const auto now = RegisterGuard::Clock::now();
    registers_->look_between(now);
    if (is_ready(register_answer_)) {
      const auto answer = register_answer_.get();
      const bool has_entry =
          answer && std::ranges::any_of(*answer, [](const auto &vcpu) { return vcpu.msrs.has_value(); });
      if (answer)
        registers_->look(*answer, RegisterGuard::Clock::now(), records);
      next_registers_ = answer ? registers_->due() : now + options_.interval;
      if (!answer)
        note("registers", fmt::format("the CPUs' registers are not seen: {}", answer.error().describe()), records);
      else if (!has_entry)
        note("LSTAR", "LSTAR is not seen: it is not found in QEMU's memory, or no CPU runs the kernel", records);
    } else if (!register_answer_.valid() && now >= next_registers_) {
      register_answer_ = desk_.all_registers();
    }
  }

  void look_at_nics(std::vector<Record> &records) {
    if (!nics_)
      return;
    const auto now = NicGuard::Clock::now();
    if (link_answer_.valid()) {
      if (!is_ready(link_answer_))
        return;
      nics_->finish(std::move(orders_.front()), link_answer_.get(), records);
      orders_.pop_front();
    }
    if (is_ready(nic_answer_)) {
      const auto answer = nic_answer_.get();
      next_nics_ = now + options_.interval;
      if (answer) {
        nics_->look(*answer, now, records);
        next_nics_ = nics_->due();
        std::ranges::move(nics_->take_orders(), std::back_inserter(orders_));
        for (const Nic &nic : *answer)
          if (!nic.promiscuous && !nic.mac.empty())
            note("NIC " + nic.name,
                 fmt::format(
                     "whether NIC {} is promiscuous is not told: by its model, its driver, or as the VM has no QMP "
                     "socket",
                     nic.name),
                 records);
      } else if (answer.error().code == ErrorCode::unsupported && std::exchange(options_.nic_events, false)) {
        note("events", fmt::format("changes of NICs are polled for: {}", answer.error().describe()), records);
        next_nics_ = now;
      } else {
        note("NICs", fmt::format("the VM's NICs are not seen: {}", answer.error().describe()), records);
      }
    }
    pulled_ = nics_->pulled();
    if (!orders_.empty())
      link_answer_ = desk_.set_link(orders_.front().nic, orders_.front().up);
    else if (!nic_answer_.valid() && (options_.nic_events || now >= next_nics_))
      nic_answer_ = desk_.nics(std::max(std::chrono::ceil<std::chrono::milliseconds>(next_nics_ - now), 0ms));
  }

  // Once for each subject.
  void note(const std::string &subject, std::string sentence, std::vector<Record> &records) {
    if (!noted_.insert(subject).second)
      return;
    Record notice;
    notice.type = "protection_notice";
    notice.sentence = std::move(sentence);
    records.push_back(std::move(notice));
  }

  // Memory first: nobody shall wait for us while we wait for a monitor.
  void let_go() override {
    guard_.reset();
    protection_ = {};
    if (registers_) {
      register_sum_.looks += registers_->counts().looks;
      register_sum_.deviations += registers_->counts().deviations;
    }
    register_answer_ = {};
    nic_answer_ = {};
    link_answer_ = {};
    orders_.clear();
    registers_.reset();
    nics_.reset();
    guest_ = {};
  }
  void add_counts() {
    const GuardCounts now = guard_->counts();
    sum_.pages = now.pages;
    sum_.compared_pages = now.compared_pages;
    sum_.faults += now.faults;
    sum_.lawful += now.lawful;
    sum_.unlawful += now.unlawful;
    sum_.reverted += now.reverted;
    sum_.unchanged += now.unchanged;
    sum_.restored += now.restored;
    sum_.left_out += now.left_out;
    sum_.open += now.open;
    sum_.longest_open = std::max(sum_.longest_open, now.longest_open);
  }

  static constexpr std::chrono::milliseconds memory_interval{500};
  Host &host_;
  KeeperOptions options_;
  MonitorDesk desk_;
  PluggedMemory plugged_;
  std::chrono::steady_clock::time_point next_memory_{};
  Guest guest_;
  ProtectionStart protection_;
  std::unique_ptr<MemoryGuard> guard_;
  std::unique_ptr<RegisterGuard> registers_;
  std::unique_ptr<NicGuard> nics_;
  std::future<Result<std::vector<VcpuRegisters>>> register_answer_;
  std::future<Result<std::vector<Nic>>> nic_answer_;
  std::future<Result<void>> link_answer_; // of the first order
  std::deque<NicGuard::Order> orders_;
  RegisterGuard::Clock::time_point next_registers_{}, next_nics_{};
  std::set<std::string> noted_;
  std::vector<std::string> pulled_;
  GuardCounts sum_;
  gate::RegisterCounts register_sum_;
};

class Protect final : public Command {
public:
  void describe(Syntax &syntax) override {
    syntax.option("--on-write", "WHAT",
                  "when something is written that the kernel may not write: report it; revert it, too; or pause the VM "
                  "(resume it with its monitor's cont). report if left out",
                  on_write_, {"report", "revert", "pause"});
    syntax.flag("--lawful", "tell of lawful writes, too: jump labels, static calls, function tracing, kprobes",
                lawful_);
    syntax.option("--interval", "TIME", "between looks at registers and network interfaces (1s)", interval_);
    syntax.option(
        "--nic", "WHAT",
        "when a network interface is made promiscuous or gets another address: report it; deny it, by pulling "
        "its cable until that is taken back; or off. report if left out",
        nic_, {"report", "deny", "off"});
    syntax.flag("--nic-events", "keep one of the VM's QMP sockets, so that such changes are told of at once",
                nic_events_);
    syntax.option("--for", "TIME", "end after that time", for_);
  }

  Result<void> run(Context &context) override {
    if (context.options.pause)
      return fail(ErrorCode::usage, "protect guards a guest that runs: leave out --pause");
    std::optional<std::chrono::milliseconds> limit;
    if (for_) {
      TRY_ASSIGN(limit, parse_duration(*for_, "--for"));
    }
    TRY_ASSIGN(const auto interval, parse_duration(interval_, "--interval"));
    if (interval < shortest_interval)
      return fail(ErrorCode::usage, fmt::format("--interval: at least {} ms", shortest_interval.count()));
    const SignalGuard guard; // so that the end can be told
    block_terminal_stops();
    TRY_ASSIGN(Target *const target, context.target());
    KeeperOptions options;
    options.guest = context.options.guest;
    options.memory.revert = on_write_ == "revert";
    options.memory.lawful = lawful_;
    options.interval = interval;
    options.nics = nic_ == "off" ? NicPolicy::off : nic_ == "deny" ? NicPolicy::deny : NicPolicy::report;
    options.nic_events = nic_events_;
    const auto begin = std::chrono::steady_clock::now();
    Outbox outbox;
    Keeper keeper(context.host, *target, std::move(options), outbox);
    TRY(keeper.start());
    bool interrupted = false;
    while (!interrupted && !keeper.ended()) {
      TRY(print(context, *target, outbox));
      if (limit && std::chrono::steady_clock::now() - begin > *limit)
        break;
      interrupted = interrupted_within(20ms);
    }
    keeper.stop();
    TRY(print(context, *target, outbox));
    return print_summary(context, *target, keeper, outbox.left_out());
  }

private:
  Result<void> print(Context &context, Target &target, Outbox &outbox) {
    for (const Record &record : outbox.take()) {
      if (record.finding) {
        context.exit_code = exit_findings;
        if (on_write_ == "pause" && !std::exchange(paused_, true))
          pause(context, target);
      }
      print_record(context.out, record, context.options.json);
    }
    return context.out.flush();
  }

  void pause(Context &context, Target &target) {
    Record record;
    record.type = "vm_paused";
    record.vm = {target.identity.name, target.identity.uuid, target.identity.pid};
    record.host_time_ns = host_time();
    constexpr int tries = 10; // another connection of ours may hold the monitor
    Result<void> done = fail(ErrorCode::unsupported, "it has no monitor that can be reached");
    for (int i = 0; target.run_control && i < tries && !done; ++i)
      done = target.run_control->pause();
    record.sentence = done ? fmt::format("{} was paused", target.identity.name)
                           : fmt::format("{} could not be paused: {}", target.identity.name, done.error().describe());
    if (!done) {
      record.type = "protection_notice";
      paused_ = false;
    }
    print_record(context.out, record, context.options.json);
  }

  Result<void> print_summary(Context &context, const Target &target, const Keeper &keeper,
                             std::uint64_t records_left_out) const {
    const GuardCounts &counts = keeper.counts();
    const auto microseconds = [](std::chrono::nanoseconds time) {
      return static_cast<std::uint64_t>(time.count() / 1000);
    };
    Record record;
    record.type = "protection_ended";
    record.vm = {target.identity.name, target.identity.uuid, target.identity.pid};
    record.host_time_ns = host_time();
    record.sentence =
        fmt::format("{} faults, {} lawful and {} other writes, {} reverted; pages stood open for {:.1f} ms "
                    "in all, at most {:.1f} ms at a time",
                    counts.faults, counts.lawful, counts.unlawful, counts.reverted,
                    static_cast<double>(microseconds(counts.open)) / 1e3,
                    static_cast<double>(microseconds(counts.longest_open)) / 1e3);
    std::string pulled;
    for (const std::string &nic : keeper.pulled())
      pulled += (pulled.empty() ? "" : ", ") + nic;
    if (!pulled.empty())
      record.sentence +=
          fmt::format("; the link of {} stays down: set_link NAME on, at the VM's monitor, brings it up", pulled);
    record.with("faults", counts.faults)
        .with("lawful", counts.lawful)
        .with("unlawful", counts.unlawful)
        .with("reverted", counts.reverted)
        .with("restored", counts.restored)
        .with("unchanged", counts.unchanged)
        .with("records_left_out", counts.left_out + records_left_out)
        .with("open_microseconds", microseconds(counts.open))
        .with("longest_open_microseconds", microseconds(counts.longest_open))
        .with("register_looks", keeper.register_counts().looks);
    if (!pulled.empty())
      record.with("links_down", pulled);
    print_record(context.out, record, context.options.json);
    return context.out.flush();
  }

  static constexpr std::chrono::milliseconds shortest_interval{100};
  std::string on_write_ = "report", interval_ = "1s", nic_ = "report";
  bool lawful_ = false, nic_events_ = false, paused_ = false;
  std::optional<std::string> for_;
};

LARARIUM_COMMAND(Protect, "protect", security, vm, "guards the kernel's code, data, registers and NICs against changes")

} // namespace
} // namespace lararium::cli
