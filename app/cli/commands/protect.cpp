#include "../context.h"
#include "../exit_codes.h"
#include "../record_output.h"
#include "../text.h"

#include "lararium/gate/memory_guard.h"

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <deque>
#include <fmt/format.h>
#include <mutex>
#include <thread>
#include <utility>

namespace lararium::cli {
namespace {

using namespace std::chrono_literals;
using gate::GuardCounts;
using gate::MemoryGuard;

std::uint64_t host_time() {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch())
          .count());
}

// What the guard found, on its way to whoever prints it. Bounded: a reader that does not read must not grow us, and the
// guard never waits for it.
class Outbox {
public:
  void put(std::vector<Record> &records) {
    const std::lock_guard lock(mutex_);
    for (Record &record : records) {
      if (queue_.size() < limit)
        queue_.push_back(std::move(record));
      else
        ++left_out_;
    }
    records.clear();
  }
  [[nodiscard]] std::deque<Record> take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(queue_, {});
  }
  [[nodiscard]] std::uint64_t left_out() const {
    const std::lock_guard lock(mutex_);
    return left_out_;
  }

private:
  static constexpr std::size_t limit = 4096;
  mutable std::mutex mutex_;
  std::deque<Record> queue_;
  std::uint64_t left_out_ = 0;
};

// Serves the faults of one VM, from the first protected page to the last: in a thread of its own, which waits for
// nothing but them, so that no vCPU ever waits for a terminal, a pipe or a monitor.
class Keeper {
public:
  Keeper(Host &host, Target &target, GuestOptions guest, gate::GuardOptions options, Outbox &outbox)
      : host_(host), target_(target), guest_options_(std::move(guest)), options_(std::move(options)), outbox_(outbox) {
    guest_options_.running_only = true;
  }
  Keeper(const Keeper &) = delete;
  Keeper &operator=(const Keeper &) = delete;
  ~Keeper() { stop(); }

  // Protects the guest that runs now, and from then on whatever it boots into.
  [[nodiscard]] Result<void> start() {
    if (!target_.protector)
      return fail(ErrorCode::unsupported,
                  fmt::format("{} is no running VM of QEMU's: there is nothing to protect", target_.identity.name));
    TRY(take_up());
    thread_ = std::thread([this] { serve(); });
    return {};
  }
  void stop() {
    stopping_ = true;
    if (thread_.joinable())
      thread_.join();
    guard_.reset();
    protection_ = {};
  }
  [[nodiscard]] bool ended() const { return ended_; }
  // When it stands.
  [[nodiscard]] const GuardCounts &counts() const { return sum_; }

private:
  // A protection of its own for each guest: what was protected in the memory of the one before is nobody's business.
  Result<void> take_up() {
    target_.memory->refresh();
    TRY_ASSIGN(guest_, host_.attach(target_, guest_options_));
    TRY(MemoryGuard::check_ready(*guest_.system)); // before QEMU is touched
    TRY_ASSIGN(protection_, target_.protector->begin());
    TRY_ASSIGN(guard_, MemoryGuard::create(*guest_.system, *target_.memory, *protection_.protection, options_));
    const GuardCounts counts = guard_->counts();
    Record record;
    record.type = "protection_started";
    record.sentence =
        fmt::format("{} pages ({:.1f} MiB) of {} are protected, {} compared; QEMU was stopped for {} us",
                    counts.pages - counts.compared_pages, static_cast<double>(counts.pages * page_size) / (1 << 20),
                    target_.identity.name, counts.compared_pages, protection_.stopped.count() / 1000);
    record.with("pages", counts.pages)
        .with("compared_pages", counts.compared_pages)
        .with("stopped_microseconds", static_cast<std::uint64_t>(protection_.stopped.count() / 1000));
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

  void serve() {
    while (!stopping_ && !ended_) {
      if (!guard_) {
        if (!target_.liveness->alive())
          end();
        else if (!take_up()) {
          let_go();
          std::this_thread::sleep_for(300ms);
        }
        continue;
      }
      std::vector<Record> records;
      const auto stepped = guard_->step(50ms, records);
      for (Record &record : records)
        name(record);
      outbox_.put(records);
      if (stepped)
        continue;
      add_counts();
      let_go();
      if (!target_.liveness->alive()) {
        end();
      } else {
        Record record;
        record.type = "protection_paused";
        record.sentence =
            fmt::format("{}; nothing is protected until its guest is up again", stepped.error().describe());
        tell(std::move(record));
      }
    }
    if (guard_)
      add_counts();
  }

  void let_go() {
    guard_.reset();
    protection_ = {};
    guest_ = {};
  }
  void end() {
    Record record;
    record.type = "vm_gone";
    record.sentence = fmt::format("the VM {} ended", target_.identity.name);
    tell(std::move(record));
    ended_ = true;
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
  void name(Record &record) const {
    record.vm = {target_.identity.name, target_.identity.uuid, target_.identity.pid};
    if (record.host_time_ns == 0)
      record.host_time_ns = host_time();
  }
  void tell(Record record) {
    name(record);
    std::vector<Record> one;
    one.push_back(std::move(record));
    outbox_.put(one);
  }

  Host &host_;
  Target &target_;
  GuestOptions guest_options_;
  gate::GuardOptions options_;
  Outbox &outbox_;
  Guest guest_;
  ProtectionStart protection_;
  std::unique_ptr<MemoryGuard> guard_;
  std::thread thread_;
  std::atomic<bool> stopping_ = false, ended_ = false;
  GuardCounts sum_;
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
    syntax.option("--for", "TIME", "end after that time", for_);
  }

  Result<void> run(Context &context) override {
    if (context.options.pause)
      return fail(ErrorCode::usage, "protect guards a guest that runs: leave out --pause");
    std::optional<std::chrono::milliseconds> limit;
    if (for_) {
      TRY_ASSIGN(limit, parse_duration(*for_, "--for"));
    }
    const SignalGuard guard; // so that the end can be told
    block_stops();
    TRY_ASSIGN(Target *const target, context.target());
    gate::GuardOptions options;
    options.revert = on_write_ == "revert";
    options.lawful = lawful_;
    if (target->vcpus)
      options.registers = [vcpus = target->vcpus.get()] {
        return std::async(std::launch::async, [vcpus] { return vcpus->registers(); });
      };
    const auto begin = std::chrono::steady_clock::now();
    Outbox outbox;
    Keeper keeper(context.host, *target, context.options.guest, std::move(options), outbox);
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
    return print_summary(context, *target, keeper.counts(), outbox.left_out());
  }

private:
  // A stopped monitor would let vCPUs wait for as long as it is stopped: the terminal cannot do that. SIGSTOP can.
  static void block_stops() {
    sigset_t set;
    sigemptyset(&set);
    for (const int signal : {SIGTSTP, SIGTTOU, SIGTTIN})
      sigaddset(&set, signal);
    ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
  }
  static bool interrupted_within(std::chrono::milliseconds time) {
    sigset_t set;
    sigemptyset(&set);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT})
      sigaddset(&set, signal);
    const timespec limit{0, time.count() * 1'000'000};
    return ::sigtimedwait(&set, nullptr, &limit) > 0;
  }

  Result<void> print(Context &context, Target &target, Outbox &outbox) {
    for (const Record &record : outbox.take()) {
      if (record.finding) {
        context.exit_code = exit_findings;
        if (on_write_ == "pause" && !std::exchange(paused_, true))
          pause(context, target);
      }
      print(context, record);
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
    print(context, record);
  }

  void print(Context &context, const Record &record) const {
    Output &out = context.out;
    if (context.options.json) {
      JsonWriter json(out.buffer());
      write_record(json, record);
      out.buffer() += '\n';
      return;
    }
    const std::uint64_t ms = record.host_time_ns / 1'000'000 % 86'400'000;
    out.styled(Style::dim,
               fmt::format("{:02}:{:02}:{:02}.{:03}", ms / 3'600'000, ms / 60'000 % 60, ms / 1000 % 60, ms % 1000));
    out.buffer() += ' ';
    out.styled(record.finding ? style_of(record.finding->severity) : Style::cyan, fmt::format("{:<18}", record.type));
    out.buffer() += ' ';
    append_visible(out.buffer(), record.sentence);
    out.buffer() += '\n';
    if (!record.finding)
      return;
    for (const RecordField &field : record.fields)
      if (field.name == "expected_bytes" || field.name == "found_bytes" || field.name == "vcpu" ||
          field.name == "action") {
        out.styled(Style::dim, fmt::format("             {:<18}", field.name));
        out.buffer() += fmt::format(" {}\n", text_of(field.value));
      }
  }

  Result<void> print_summary(Context &context, const Target &target, const GuardCounts &counts,
                             std::uint64_t records_left_out) const {
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
    record.with("faults", counts.faults)
        .with("lawful", counts.lawful)
        .with("unlawful", counts.unlawful)
        .with("reverted", counts.reverted)
        .with("restored", counts.restored)
        .with("unchanged", counts.unchanged)
        .with("records_left_out", counts.left_out + records_left_out)
        .with("open_microseconds", microseconds(counts.open))
        .with("longest_open_microseconds", microseconds(counts.longest_open));
    print(context, record);
    return context.out.flush();
  }

  std::string on_write_ = "report";
  bool lawful_ = false, paused_ = false;
  std::optional<std::string> for_;
};

LARARIUM_COMMAND(Protect, "protect", security, vm, "guards the kernel's code and read-only data against writes")

} // namespace
} // namespace lararium::cli
