#include "../context.h"
#include "../exit_codes.h"
#include "../live_records.h"
#include "../record_output.h"
#include "../table.h"
#include "../text.h"

#include "lararium/gate/breakpoint_module.h"
#include "lararium/gate/gate.h"
#include "lararium/gate/security_driver.h"
#include "lararium/gate/shared_protection.h"
#include "lararium/policy/rules.h"
#include "lararium/policy/sim_rules.h"
#include "lararium/policy/tool_process.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <ctime>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <future>
#include <mutex>
#include <thread>

namespace lararium::cli {
namespace {

using namespace std::chrono_literals;
using gate::HookEntry;
using gate::Verdict;

// Decides by the rules of the command line, in our own process, before anybody else is asked.
class RuleTool final : public gate::SecurityTool, public gate::RecordFilter {
public:
  RuleTool(std::vector<policy::Rule> rules, int error, gate::SecurityTool *next)
      : rules_(std::move(rules)), error_(error), next_(next) {}
  Verdict decide(const HookEntry &hook, const Record &record) override {
    const policy::Rule *rule = policy::first_match(rules_, hook.name, record);
    if (rule == nullptr)
      return next_ == nullptr ? Verdict() : next_->decide(hook, record);
    return {rule->action == policy::Action::deny ? error_ : 0, fmt::format("the rule \"{}\"", rule->text)};
  }

  bool is_recorded(const HookEntry &hook, const Record &record) override {
    return policy::is_recorded(rules_, hook.name, record);
  }
  [[nodiscard]] std::string rule_name(std::uint32_t number) const override {
    return number - 1 < rules_.size() ? fmt::format("the rule \"{}\"", rules_[number - 1].text) : "an unknown rule";
  }

private:
  std::vector<policy::Rule> rules_;
  int error_;
  gate::SecurityTool *next_; // asked where no rule fits; null: nobody
};

// Serves the hooks of one VM in a thread of its own, which waits for nothing but them.
class Server {
public:
  // `memory`: how the kernel's memory is protected, too; nothing: it is not.
  Server(Host &host, Target &target, GuestOptions guest, gate::GateOptions options, bool breakpoints,
         std::optional<gate::GuardOptions> memory, RuleTool &tool, policy::ToolProcess *process, Outbox &outbox)
      : host_(host), target_(target), guest_options_(std::move(guest)), options_(std::move(options)),
        breakpoints_(breakpoints), memory_(std::move(memory)), tool_(tool), process_(process), outbox_(outbox) {
    guest_options_.running_only = true;
  }
  Server(const Server &) = delete;
  Server &operator=(const Server &) = delete;
  ~Server() { stop(); }

  void keep(gate::Budget budget) { budget_ = budget; }

  [[nodiscard]] Result<void> start() {
    if (breakpoints_ && !target_.debugger)
      return fail(
          ErrorCode::unsupported,
          fmt::format("{} has no monitor that can be reached: breakpoints cannot be set", target_.identity.name));
    if (!breakpoints_ && !target_.protector)
      return fail(ErrorCode::unsupported,
                  fmt::format("{} is no running VM of QEMU's: there is nothing to guard", target_.identity.name));
    if (!breakpoints_ && !target_.code_writer)
      return fail(ErrorCode::unsupported,
                  fmt::format("{} has no monitor that can be reached: hooks cannot be put in", target_.identity.name));
    TRY(take_up());
    thread_ = std::thread([this] { serve(); });
    return {};
  }
  void stop() {
    stopping_ = true;
    if (thread_.joinable())
      thread_.join();
  }
  [[nodiscard]] bool ended() const { return ended_; }
  // When it stands.
  [[nodiscard]] const gate::DriverCounts &driver_counts() const { return driver_counts_; }
  [[nodiscard]] const gate::GateCounts &gate_counts() const { return gate_counts_; }
  [[nodiscard]] const gate::SimCounts &sim_counts() const { return sim_counts_; }
  [[nodiscard]] const gate::GuardCounts &memory_counts() const { return memory_counts_; }

private:
  Result<void> take_up() {
    target_.memory->refresh();
    TRY_ASSIGN(guest_, host_.attach(target_, guest_options_));
    options_.not_reset = {};
    if (target_.vcpus && target_.vcpus->registers_with_msrs())
      options_.not_reset = [vcpus = target_.vcpus.get()] { return vcpus->not_reset_since(); };
    bool adopted = false;
    if (breakpoints_) {
      TRY_ASSIGN(gate_, gate::BreakpointModule::install(*guest_.system, *target_.debugger, options_.hooks));
    } else {
      if (memory_)
        TRY(gate::MemoryGuard::check_ready(*guest_.system));
      TRY_ASSIGN(protection_, target_.protector->begin());
      shared_ = std::make_unique<gate::SharedProtection>(*protection_.protection);
      TRY_ASSIGN(auto gate, gate::Gate::install(*guest_.system, *target_.memory, *shared_, *target_.code_writer,
                                                options_, before_));
      adopted = gate->adopted();
      gate_ = std::move(gate);
      if (memory_)
        if (auto done = shared_->guard(*guest_.system, *target_.memory, *memory_); !done) {
          std::vector<std::string> left;
          static_cast<void>(gate_->remove(left));
          return done;
        }
    }
    driver_ = std::make_unique<gate::SecurityDriver>(*gate_, *guest_.system, tool_, &tool_);
    if (process_ != nullptr)
      process_->attach({guest_.system.get(), target_.memory.get()},
                       {target_.identity.name, target_.identity.uuid, target_.identity.pid});
    Record record;
    record.type = "guard_started";
    record.sentence =
        fmt::format("{} calls in the kernel of {} are hooked; its vCPUs stood still for {:.1f} ms",
                    gate_->sites().size(), target_.identity.name, static_cast<double>(gate_->stopped().count()) / 1e6);
    if (adopted)
      record.sentence =
          fmt::format("{} hooked calls in the kernel of {} were adopted", gate_->sites().size(), target_.identity.name);
    record.with("adopted", adopted)
        .with("sites", std::uint64_t{gate_->sites().size()})
        .with("stopped_microseconds", static_cast<std::uint64_t>(gate_->stopped().count() / 1000));
    if (options_.sim)
      record.with("address_space", options_.sim->address_space);
    tell(std::move(record));
    if (shared_ && shared_->memory_guard() != nullptr)
      tell_protection(*shared_->memory_guard());
    for (const std::string &limitation : protection_.limitations)
      notice(limitation);
    for (const std::string &limitation : gate_->limitations())
      notice(limitation);
    return {};
  }

  void tell_protection(const gate::MemoryGuard &guard) {
    const gate::GuardCounts counts = guard.counts();
    Record record;
    record.type = "protection_started";
    record.sentence = fmt::format("{} pages of the kernel of {} are protected, {} compared",
                                  counts.pages - counts.compared_pages, target_.identity.name, counts.compared_pages);
    record.with("pages", counts.pages).with("compared_pages", counts.compared_pages);
    tell(std::move(record));
    for (const std::string &limitation : guard.limitations())
      notice(limitation);
  }

  void serve() {
    while (!stopping_ && !ended_) {
      if (!driver_) {
        if (!target_.liveness->alive())
          end();
        else if (!take_up()) {
          let_go();
          std::this_thread::sleep_for(300ms);
        }
        continue;
      }
      std::vector<Record> records;
      const auto stepped = driver_->step(50ms, records);
      if (shared_)
        std::ranges::move(shared_->take_records(), std::back_inserter(records));
      for (Record &record : records)
        name_record(record, target_.identity);
      outbox_.put(records);
      if (process_ != nullptr)
        for (std::string &news : process_->take_news())
          notice(std::move(news));
      if (stepped) {
        keep_budget();
        continue;
      }
      add_counts();
      if (const auto *gate = dynamic_cast<const gate::Gate *>(gate_.get()))
        before_ = gate->remains();
      let_go();
      if (!target_.liveness->alive())
        end();
      else
        notice(fmt::format("{}; nothing is hooked until its guest is up again", stepped.error().describe()));
    }
    if (gate_) {
      add_counts();
      std::vector<std::string> left;
      if (shared_) // what comes now is ours
        shared_->end_guard();
      if (const auto removed = gate_->remove(left); !removed)
        notice(fmt::format("the hooks could not be taken out ({}): they stay, and do nothing",
                           removed.error().describe()));
      for (const std::string &sentence : left)
        notice(sentence);
    }
    let_go();
  }

  // Once a second, with what that second cost.
  void keep_budget() {
    auto *gate = dynamic_cast<gate::Gate *>(gate_.get());
    const auto now = std::chrono::steady_clock::now();
    if (!budget_ || gate == nullptr || !options_.sim || now - measured_ < 1s)
      return;
    const auto costs = gate->hook_costs();
    std::vector<gate::HookCost> hooks;
    for (const gate::SimHookCost &cost : costs)
      hooks.push_back({cost.hook->name, !cost.decides, cost.calls, cost.cycles});
    if (!keeper_)
      keeper_.emplace(*budget_, gate->cycles_per_second(),
                      std::max<std::uint32_t>(gate->reader().kernel().cpu_count(), 1));
    timespec used{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    const auto own = std::chrono::seconds(used.tv_sec) + std::chrono::nanoseconds(used.tv_nsec);
    const auto change = keeper_->step(hooks, now - measured_, own - own_time_);
    measured_ = now;
    own_time_ = own;
    if (!change)
      return;
    if (gate->set_depth(*costs[change->hook].hook, change->depth))
      notice(change->sentence);
  }

  void let_go() {
    keeper_.reset();
    if (process_ != nullptr)
      process_->attach({}, {});
    driver_.reset();
    gate_.reset();
    shared_.reset();
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
    const gate::DriverCounts &driver = driver_->counts();
    driver_counts_.events += driver.events;
    driver_counts_.denied += driver.denied;
    driver_counts_.waited += driver.waited;
    driver_counts_.longest_wait = std::max(driver_counts_.longest_wait, driver.longest_wait);
    const gate::GateCounts &counts = gate_->counts();
    gate_counts_.events += counts.events;
    gate_counts_.rings += counts.rings;
    gate_counts_.faults += counts.faults;
    gate_counts_.tampered += counts.tampered;
    gate_counts_.forged += counts.forged;
    driver_counts_.seen += driver.seen;
    const gate::SimCounts sim = gate_->sim_counts();
    sim_counts_.records += sim.records;
    sim_counts_.lost += sim.lost;
    sim_counts_.doorbells += sim.doorbells;
    sim_counts_.calls += sim.calls;
    sim_counts_.cycles += sim.cycles;
    if (!shared_ || shared_->memory_guard() == nullptr)
      return;
    const gate::GuardCounts memory = shared_->memory_guard()->counts();
    memory_counts_.pages = memory.pages;
    memory_counts_.lawful += memory.lawful;
    memory_counts_.unlawful += memory.unlawful;
    memory_counts_.reverted += memory.reverted;
    memory_counts_.left_out += memory.left_out + shared_->left_out();
  }
  void notice(std::string sentence) {
    Record record;
    record.type = "guard_notice";
    record.sentence = std::move(sentence);
    tell(std::move(record));
  }
  void tell(Record record) {
    name_record(record, target_.identity);
    std::vector<Record> one;
    one.push_back(std::move(record));
    outbox_.put(one);
  }

  Host &host_;
  Target &target_;
  GuestOptions guest_options_;
  gate::GateOptions options_;
  bool breakpoints_;
  std::optional<gate::GuardOptions> memory_;
  RuleTool &tool_;
  policy::ToolProcess *process_; // null: no tool of its own
  Outbox &outbox_;
  Guest guest_;
  ProtectionStart protection_;
  std::unique_ptr<gate::SharedProtection> shared_; // of that
  std::unique_ptr<gate::JumpModule> gate_;
  std::shared_ptr<const gate::Remains> before_; // of the guest's kernel before a reset
  std::unique_ptr<gate::SecurityDriver> driver_;
  std::thread thread_;
  std::atomic<bool> stopping_ = false, ended_ = false;
  gate::DriverCounts driver_counts_;
  gate::GateCounts gate_counts_;
  gate::SimCounts sim_counts_;
  std::optional<gate::Budget> budget_;
  std::optional<gate::BudgetKeeper> keeper_;
  std::chrono::steady_clock::time_point measured_ = std::chrono::steady_clock::now();
  std::chrono::nanoseconds own_time_{};
  gate::GuardCounts memory_counts_;
};

class Guard final : public Command {
public:
  void describe(Syntax &syntax) override {
    syntax.flag("--list-hooks", "list the hooks, and what each sees; needs no VM", list_);
    syntax.option(
        "--mode", "MODE",
        "how the guest's calls are met: each waits for us (lares); or code in the guest judges and tells of them, and "
        "only what a rule leaves open waits (sim); or by breakpoints, for which nothing is written into the guest and "
        "all of it stands still at each event. lares if left out",
        mode_, {"lares", "sim", "breakpoint"});
    syntax.option("--hooks", "NAMES", "only these hooks, separated by commas; all if left out", hooks_);
    syntax.option("--deny", "RULE",
                  "make what fits fail, such as 'exec path=/tmp/**' or 'connect port=4444 uid!=0'; can be given again",
                  deny_);
    syntax.option("--allow", "RULE", "let what fits happen although a --deny fits, too; can be given again", allow_);
    syntax.option("--only", "RULE", "of its hook, record only what fits; can be given again", only_);
    syntax.option("--skip", "RULE", "do not record what fits; can be given again", skip_);
    syntax.option("--ask", "HOOKS", "sim: calls of these hooks wait for the tool where no rule fits", ask_);
    syntax.option(
        "--ring", "SIZE",
        "sim: memory for records in the guest, for each CPU: a power of two from 8K on. Up to 64K, what there "
        "is room for, if left out",
        ring_);
    syntax.option("--budget", "BUDGET",
                  "sim: what the hooks may cost, of the guest's processors and of the host's, such as "
                  "'guest=2%,host=0.2'; what is over it is told of with less, or not at all, and that is said",
                  budget_);
    syntax.flag("--address-space", "sim: keep its data in page tables of its own, which no process has",
                address_space_);
    syntax.option("--error", "ERROR", "with what a denied call fails. EPERM if left out", error_, {"EPERM", "EACCES"});
    syntax.option("--tool", "PROGRAM",
                  "ask this program where no rule fits: by its full path; it runs as another user, with no rights "
                  "(docs/tool_protocol.md)",
                  tool_);
    syntax.option("--tool-user", "USER", "whom the tool runs as. nobody if left out", tool_user_);
    syntax.option("--tool-limit", "MS", "how long the tool may take for a verdict. 100 if left out", tool_limit_);
    syntax.option("--default", "VERDICT",
                  "what happens when nobody decides: the tool is silent, or Lararium was killed. allow if left out",
                  default_, {"allow", "deny"});
    syntax.option("--protect", "POLICY",
                  "protect the kernel's code and read-only data, too, as `protect` does: report writes to them that "
                  "are not lawful, or put back what was there (revert)",
                  protect_, {"report", "revert"});
    syntax.option(
        "--awake", "US",
        "after an event, look for the next so many microseconds before sleeping: the guest then need not wake us. "
        "It costs processor time of the host while events come. 0 if left out",
        awake_);
    syntax.option("--for", "TIME", "end after that time: 100ms, 10s, 5m, 1h", for_);
  }

  Result<void> run(Context &context) override {
    if (list_)
      return list(context);
    if (context.options.pause)
      return fail(ErrorCode::usage, "guard works on a guest that runs: leave out --pause");
    if (!protect_.empty() && mode_ == "breakpoint")
      return fail(ErrorCode::usage, "--protect belongs to --mode lares: beside breakpoints, run protect");
    std::chrono::milliseconds limit{};
    if (for_) {
      TRY_ASSIGN(limit, parse_duration(*for_, "--for"));
    }
    gate::GateOptions options;
    options.awake = std::chrono::microseconds(std::clamp(awake_.value_or(0), 0, 100'000));
    options.poll = 1ms; // comparing some forty calls takes a few microseconds
    TRY_ASSIGN(options.hooks, chosen_hooks());
    std::vector<policy::Rule> rules;
    for (const auto &[texts, action] :
         {std::pair(&allow_, policy::Action::allow), std::pair(&deny_, policy::Action::deny),
          std::pair(&skip_, policy::Action::skip), std::pair(&only_, policy::Action::only)})
      for (const std::string &text : *texts) {
        auto rule = policy::parse_rule(text, action);
        if (!rule)
          return std::unexpected(std::move(rule).error());
        TRY(check(*rule, options.hooks));
        rules.push_back(std::move(*rule));
      }
    const int error = error_ == "EACCES" ? EACCES : EPERM;
    options.default_verdict = default_ == "deny" ? error : 0;
    TRY_ASSIGN(options.sim, sim_options(options, rules, error));

    const SignalGuard guard; // the hooks must come out
    block_terminal_stops();
    std::unique_ptr<policy::ToolProcess> process;
    if (!tool_.empty()) {
      policy::ToolOptions tool{.command = {tool_},
                               .user = tool_user_,
                               .limit = std::chrono::milliseconds(std::clamp(tool_limit_.value_or(100), 1, 10'000)),
                               .default_verdict = options.default_verdict,
                               .to_json = [](const Record &record) {
                                 std::string text;
                                 JsonWriter json(text);
                                 write_record(json, record);
                                 return text;
                               }};
      TRY_ASSIGN(process, policy::ToolProcess::start(std::move(tool)));
    }
    RuleTool tool(std::move(rules), error, process.get());
    TRY_ASSIGN(Target *const target, context.target());
    std::mutex asking; // for registers, one at a time
    if (target->vcpus)
      options.registers = [&asking, vcpus = target->vcpus.get()] {
        return std::async(std::launch::async, [&asking, vcpus] {
          const std::lock_guard lock(asking);
          return vcpus->registers();
        });
      };
    std::optional<gate::GuardOptions> memory;
    if (!protect_.empty())
      memory = {.timing = {}, .revert = protect_ == "revert", .registers = options.registers};
    const auto begin = std::chrono::steady_clock::now();
    Outbox outbox;
    Server server(context.host, *target, context.options.guest, std::move(options), mode_ == "breakpoint",
                  std::move(memory), tool, process.get(), outbox);
    if (budget_) {
      TRY_ASSIGN(const auto budget, gate::parse_budget(*budget_));
      server.keep(budget);
    }
    TRY(server.start());
    bool interrupted = false;
    while (!interrupted && !server.ended()) {
      TRY(print(context, outbox));
      if (for_ && std::chrono::steady_clock::now() - begin >= limit)
        break;
      interrupted = interrupted_within(20ms);
    }
    server.stop();
    TRY(print(context, outbox));
    return print_summary(context, *target, server, outbox.left_out());
  }

private:
  Result<std::optional<gate::SimOptions>> sim_options(const gate::GateOptions &options,
                                                      const std::vector<policy::Rule> &rules, int error) const {
    if (mode_ != "sim") {
      if (!ask_.empty() || ring_ || address_space_ || budget_)
        return fail(ErrorCode::usage, "--ask, --ring, --budget and --address-space belong to --mode sim");
      return std::nullopt;
    }
    gate::SimOptions sim;
    sim.error = error;
    sim.address_space = address_space_;
    if (ring_) {
      const auto size = parse_size(*ring_);
      constexpr std::uint64_t least = 8 << 10, most = 1 << 20;
      if (!size || *size < least || *size > most || !std::has_single_bit(*size))
        return fail(ErrorCode::usage, fmt::format("--ring is a power of two from 8K to 1M, not {}", visible(*ring_)));
      sim.ring_bytes = *size;
    }
    for (const std::string &name : split_names(ask_)) {
      const HookEntry *hook = find_hook(name);
      if (hook == nullptr || std::ranges::find(options.hooks, hook) == options.hooks.end())
        return fail(ErrorCode::usage, fmt::format("--ask: {} is no hook that was chosen", visible(name)));
      sim.ask.push_back(hook);
    }
    if (!tool_.empty() && sim.ask.empty())
      return fail(ErrorCode::usage, "--mode sim --tool: say with --ask which hooks' calls wait for the tool");
    policy::add_sim_rules(sim, rules, options.hooks);
    return sim;
  }

  static const HookEntry *find_hook(std::string_view name) {
    const auto hooks = gate::all_hooks();
    const auto found = std::ranges::find_if(hooks, [&](const HookEntry *hook) { return hook->name == name; });
    return found == hooks.end() ? nullptr : *found;
  }

  Result<std::vector<const HookEntry *>> chosen_hooks() const {
    if (hooks_.empty())
      return gate::all_hooks();
    std::vector<const HookEntry *> chosen;
    for (const std::string &name : split_names(hooks_)) {
      const HookEntry *hook = find_hook(name);
      if (hook == nullptr)
        return fail(ErrorCode::usage,
                    fmt::format("no hook is called {} (guard --list-hooks lists them)", visible(name)));
      if (std::ranges::find(chosen, hook) == chosen.end())
        chosen.push_back(hook);
    }
    if (chosen.empty())
      return fail(ErrorCode::usage, "--hooks names none");
    return chosen;
  }

  // A rule that can never do what it says is a mistake.
  static Result<void> check(const policy::Rule &rule, const std::vector<const HookEntry *> &hooks) {
    if (rule.hook == "*")
      return {};
    const HookEntry *hook = find_hook(rule.hook);
    if (hook == nullptr)
      return fail(ErrorCode::usage, fmt::format("the rule \"{}\" begins with no hook (guard --list-hooks lists them)",
                                                visible(rule.text)));
    if (std::ranges::find(hooks, hook) == hooks.end())
      return fail(ErrorCode::usage, fmt::format("the rule \"{}\" needs the hook {}, which --hooks leaves out",
                                                visible(rule.text), hook->name));
    if (rule.action == policy::Action::deny && !hook->may_deny)
      return fail(ErrorCode::usage, fmt::format("the rule \"{}\": what {} sees cannot be denied any more",
                                                visible(rule.text), hook->name));
    return {};
  }

  static Result<void> list(Context &context) {
    const auto hooks = gate::all_hooks();
    if (context.options.json) {
      JsonWriter json(context.out.buffer());
      json.begin_object().key("hooks").begin_array();
      for (const HookEntry *hook : hooks)
        json.begin_object()
            .member("name", std::string(hook->name))
            .member("summary", std::string(hook->summary))
            .member("explained", std::string(hook->explained))
            .member("may_deny", hook->may_deny)
            .end_object();
      json.end_array().end_object();
      context.out.buffer() += '\n';
      return context.out.flush();
    }
    for (const HookEntry *hook : hooks) {
      context.out.styled(Style::bold, hook->name);
      context.out.buffer() +=
          fmt::format("  {}{}\n    {}\n", hook->summary, hook->may_deny ? "" : " (cannot be denied)", hook->explained);
    }
    return context.out.flush();
  }

  Result<void> print(Context &context, Outbox &outbox) const {
    for (const Record &record : outbox.take()) {
      if (record.finding)
        context.exit_code = exit_findings;
      print_record(context.out, record, context.options.json);
    }
    return context.out.flush();
  }

  Result<void> print_summary(Context &context, const Target &target, const Server &server,
                             std::uint64_t left_out) const {
    const gate::DriverCounts &driver = server.driver_counts();
    const gate::GateCounts &counts = server.gate_counts();
    const gate::GuardCounts &memory = server.memory_counts();
    const auto microseconds = [](std::chrono::nanoseconds time) {
      return static_cast<std::uint64_t>(time.count() / 1000);
    };
    Record record;
    record.type = "guard_ended";
    name_record(record, target.identity);
    record.sentence = fmt::format("{} events, {} denied; decided in {:.1f} us on average, {:.1f} us at most; {} faults",
                                  driver.events, driver.denied,
                                  driver.events == driver.seen ? 0.0
                                                               : static_cast<double>(driver.waited.count()) / 1e3 /
                                                                     static_cast<double>(driver.events - driver.seen),
                                  static_cast<double>(driver.longest_wait.count()) / 1e3, counts.faults);
    record.with("events", driver.events)
        .with("denied", driver.denied)
        .with("faults", counts.faults)
        .with("rings", counts.rings)
        .with("tampered", counts.tampered)
        .with("forged", counts.forged)
        .with("waited_microseconds", microseconds(driver.waited))
        .with("longest_wait_microseconds", microseconds(driver.longest_wait))
        .with("records_left_out", left_out + memory.left_out);
    if (mode_ == "sim") {
      const gate::SimCounts &sim = server.sim_counts();
      record.sentence += fmt::format("; {} told of by the guest's rings, {} lost for lack of room, {} cycles a call",
                                     driver.seen, sim.lost, sim.calls == 0 ? 0 : sim.cycles / sim.calls);
      record.with("seen", driver.seen)
          .with("lost", sim.lost)
          .with("doorbells", sim.doorbells)
          .with("calls", sim.calls)
          .with("cycles", sim.cycles);
    }
    if (memory.pages != 0)
      record.with("lawful_writes", memory.lawful)
          .with("unlawful_writes", memory.unlawful)
          .with("reverted_writes", memory.reverted);
    print_record(context.out, record, context.options.json);
    return context.out.flush();
  }

  bool list_ = false;
  std::string mode_ = "lares", protect_, hooks_, error_ = "EPERM", default_ = "allow", tool_, tool_user_ = "nobody";
  std::string ask_;
  bool address_space_ = false;
  std::vector<std::string> deny_, allow_, only_, skip_;
  std::optional<std::string> for_, ring_, budget_;
  std::optional<std::int32_t> tool_limit_, awake_;
};

LARARIUM_COMMAND(Guard, "guard", security, vm, "sees what programs do as they do it, and denies what rules forbid")

} // namespace
} // namespace lararium::cli
