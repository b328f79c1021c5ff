#include "../context.h"
#include "../exit_codes.h"
#include "../guard_server.h"
#include "../live_records.h"
#include "../record_output.h"
#include "../table.h"
#include "../text.h"

#include "lararium/gate/security_driver.h"
#include "lararium/policy/rules.h"
#include "lararium/policy/sim_rules.h"
#include "lararium/policy/tool_process.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <fmt/format.h>
#include <fmt/ranges.h>
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
    syntax.option("--ring-memory", "ID",
                  "sim: records lie in the memory of an ivshmem-plain device of the VM's that nobody uses, named by "
                  "the id of its memdev; of 2 MiB or more, with room for rings of up to 1M",
                  ring_memory_);
    syntax.option(
        "--depth", "DEPTH",
        "sim: tell of calls with what they are about (full), or only who makes which (brief). full if left out", depth_,
        {"full", "brief"});
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
    GuardSetup setup{.guest = context.options.guest,
                     .gate = std::move(options),
                     .breakpoints = mode_ == "breakpoint",
                     .depth = depth_ == "brief" ? gate::Depth::brief : gate::Depth::full,
                     .tool = &tool,
                     .filter = &tool,
                     .process = process.get()};
    if (!protect_.empty())
      setup.memory = {.timing = {}, .revert = protect_ == "revert", .registers = {}};
    if (budget_) {
      TRY_ASSIGN(setup.budget, gate::parse_budget(*budget_));
    }
    const auto begin = std::chrono::steady_clock::now();
    Outbox outbox;
    GuardServer server(context.host, *target, std::move(setup), outbox);
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
      if (!ask_.empty() || ring_ || ring_memory_ || address_space_ || budget_ || depth_ != "full")
        return fail(ErrorCode::usage,
                    "--ask, --ring, --ring-memory, --depth, --budget and --address-space belong to --mode sim");
      return std::nullopt;
    }
    gate::SimOptions sim;
    sim.error = error;
    sim.address_space = address_space_;
    sim.ring_block = ring_memory_.value_or("");
    if (ring_memory_ && (ring_memory_->empty() || address_space_))
      return fail(ErrorCode::usage, "--ring-memory names a device's memory, which --address-space cannot hide");
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

  Result<void> print_summary(Context &context, const Target &target, const GuardServer &server,
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
      const double calls = static_cast<double>(std::max<std::uint64_t>(sim.calls, 1)),
                   per_second = static_cast<double>(std::max<std::uint64_t>(sim.cycles_per_second, 1));
      record.sentence +=
          fmt::format("; {} told of by the guest's rings, {} lost for lack of room, {:.1f} us of the guest a call",
                      driver.seen, sim.lost, static_cast<double>(sim.cycles) / calls / per_second * 1e6);
      record.with("seen", driver.seen)
          .with("lost", sim.lost)
          .with("doorbells", sim.doorbells)
          .with("calls", sim.calls)
          .with("cycles", sim.cycles)
          .with("cycles_per_second", sim.cycles_per_second);
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
  std::string ask_, depth_ = "full";
  bool address_space_ = false;
  std::vector<std::string> deny_, allow_, only_, skip_;
  std::optional<std::string> for_, ring_, ring_memory_, budget_;
  std::optional<std::int32_t> tool_limit_, awake_;
};

LARARIUM_COMMAND(Guard, "guard", security, vm, "sees what programs do as they do it, and denies what rules forbid")

} // namespace
} // namespace lararium::cli
