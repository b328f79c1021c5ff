#include "guard_server.h"

#include "lararium/gate/breakpoint_module.h"

#include <algorithm>
#include <ctime>
#include <fmt/format.h>
#include <future>
#include <iterator>

namespace lararium::cli {

using namespace std::chrono_literals;

GuardServer::GuardServer(Host &host, Target &target, GuardSetup setup, Outbox &outbox)
    : ServedVm(target, outbox), host_(host), setup_(std::move(setup)) {
  setup_.guest.running_only = true;
  if (!target_.vcpus)
    return;
  setup_.gate.registers = [this] {
    return std::async(std::launch::async, [this] {
      const std::lock_guard lock(asking_);
      return target_.vcpus->registers();
    });
  };
  if (setup_.memory)
    setup_.memory->registers = setup_.gate.registers;
}

Result<void> GuardServer::start() {
  if (setup_.breakpoints && !target_.debugger)
    return fail(ErrorCode::unsupported,
                fmt::format("{} has no monitor that can be reached: breakpoints cannot be set", target_.identity.name));
  if (!setup_.breakpoints && !target_.protector)
    return fail(ErrorCode::unsupported,
                fmt::format("{} is no running VM of QEMU's: there is nothing to guard", target_.identity.name));
  if (!setup_.breakpoints && !target_.code_writer)
    return fail(ErrorCode::unsupported,
                fmt::format("{} has no monitor that can be reached: hooks cannot be put in", target_.identity.name));
  return ServedVm::start();
}

Result<void> GuardServer::take_up() {
  target_.memory->refresh();
  TRY_ASSIGN(guest_, host_.attach(target_, setup_.guest));
  setup_.gate.not_reset = {};
  if (target_.vcpus && target_.vcpus->registers_with_msrs())
    setup_.gate.not_reset = [vcpus = target_.vcpus.get()] { return vcpus->not_reset_since(); };
  bool adopted = false;
  if (setup_.breakpoints) {
    TRY_ASSIGN(gate_, gate::BreakpointModule::install(*guest_.system, *target_.debugger, setup_.gate.hooks));
  } else {
    if (setup_.memory)
      TRY(gate::MemoryGuard::check_ready(*guest_.system));
    TRY_ASSIGN(protection_, target_.protector->begin());
    shared_ = std::make_unique<gate::SharedProtection>(*protection_.protection);
    TRY_ASSIGN(auto gate, gate::Gate::install(*guest_.system, *target_.memory, *shared_, *target_.code_writer,
                                              setup_.gate, before_));
    adopted = gate->adopted();
    if (setup_.gate.sim && setup_.depth != gate::Depth::full)
      for (const gate::SimHookCost &hook : gate->hook_costs())
        if (!hook.decides)
          TRY(gate->set_depth(*hook.hook, setup_.depth));
    gate_ = std::move(gate);
    if (setup_.memory)
      if (auto done = shared_->guard(*guest_.system, *target_.memory, *setup_.memory); !done) {
        std::vector<std::string> left;
        static_cast<void>(gate_->remove(left));
        return done;
      }
  }
  driver_ = std::make_unique<gate::SecurityDriver>(*gate_, *guest_.system, *setup_.tool, setup_.filter);
  if (setup_.process != nullptr)
    setup_.process->attach({guest_.system.get(), target_.memory.get()},
                           {target_.identity.name, target_.identity.uuid, target_.identity.pid});
  Record record;
  record.type = "guard_started";
  record.sentence =
      fmt::format("{} calls in the kernel of {} are hooked; its vCPUs stood still for {:.1f} ms", gate_->sites().size(),
                  target_.identity.name, static_cast<double>(gate_->stopped().count()) / 1e6);
  if (adopted)
    record.sentence =
        fmt::format("{} hooked calls in the kernel of {} were adopted", gate_->sites().size(), target_.identity.name);
  record.with("adopted", adopted)
      .with("sites", std::uint64_t{gate_->sites().size()})
      .with("stopped_microseconds", static_cast<std::uint64_t>(gate_->stopped().count() / 1000));
  if (setup_.gate.sim)
    record.with("address_space", setup_.gate.sim->address_space);
  tell(std::move(record));
  if (shared_ && shared_->memory_guard() != nullptr)
    tell_protection(*shared_->memory_guard());
  for (const std::string &limitation : protection_.limitations)
    notice(limitation);
  for (const std::string &limitation : gate_->limitations())
    notice(limitation);
  return {};
}

void GuardServer::tell_protection(const gate::MemoryGuard &guard) {
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

Result<void> GuardServer::step() {
  std::vector<Record> records;
  auto stepped = driver_->step(50ms, records);
  if (shared_)
    std::ranges::move(shared_->take_records(), std::back_inserter(records));
  put(records);
  if (setup_.process != nullptr)
    for (std::string &news : setup_.process->take_news())
      notice(std::move(news));
  if (stepped) {
    keep_budget();
    take_new_memory();
  }
  return stepped;
}

void GuardServer::lose() {
  add_counts();
  add_memory_counts();
  if (const auto *gate = dynamic_cast<const gate::Gate *>(gate_.get()))
    before_ = gate->remains();
}

Record GuardServer::paused(const Error &why) const {
  Record record;
  record.type = "guard_notice";
  record.sentence = fmt::format("{}; nothing is hooked until its guest is up again", why.describe());
  return record;
}

void GuardServer::take_out() {
  std::vector<std::string> left;
  add_memory_counts();
  if (shared_) // what comes now is ours
    shared_->end_guard();
  if (const auto removed = gate_->remove(left); !removed)
    notice(fmt::format("the hooks could not be taken out ({}): they stay, and do nothing", removed.error().describe()));
  std::vector<Record> records;
  driver_->tell_seen(records); // what came meanwhile
  put(records);
  add_counts();
  for (const std::string &sentence : left)
    notice(sentence);
}

// Once a second, with what that second cost.
void GuardServer::keep_budget() {
  auto *gate = dynamic_cast<gate::Gate *>(gate_.get());
  const auto now = std::chrono::steady_clock::now();
  if (!setup_.budget || gate == nullptr || !setup_.gate.sim || now - measured_ < 1s)
    return;
  const auto costs = gate->hook_costs();
  std::vector<gate::HookCost> hooks;
  hooks.reserve(costs.size());
  for (const gate::SimHookCost &cost : costs)
    hooks.push_back({cost.hook->name, !cost.decides, cost.calls, cost.cycles});
  if (!keeper_)
    keeper_.emplace(*setup_.budget, gate->cycles_per_second(),
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

// The VM is opened anew, with the memory that was plugged in. Until then calls by whom lies there cannot be judged.
void GuardServer::take_new_memory() {
  const auto *gate = dynamic_cast<gate::Gate *>(gate_.get());
  if (gate == nullptr || !gate->memory_grew())
    return;
  auto fresh = host_.open(std::to_string(target_.identity.pid));
  if (!fresh)
    return;
  notice("memory was plugged in: the hooks are put in anew");
  take_out();
  let_go();
  target_ = std::move(*fresh);
  take_up_again();
}

void GuardServer::let_go() {
  keeper_.reset();
  if (setup_.process != nullptr)
    setup_.process->attach({}, {});
  driver_.reset();
  gate_.reset();
  shared_.reset();
  protection_ = {};
  guest_ = {};
}

void GuardServer::add_counts() {
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
  sim_counts_.cycles_per_second = sim.cycles_per_second;
}

void GuardServer::add_memory_counts() {
  if (!shared_ || shared_->memory_guard() == nullptr)
    return;
  const gate::GuardCounts memory = shared_->memory_guard()->counts();
  memory_counts_.pages = memory.pages;
  memory_counts_.lawful += memory.lawful;
  memory_counts_.unlawful += memory.unlawful;
  memory_counts_.reverted += memory.reverted;
  memory_counts_.left_out += memory.left_out + shared_->left_out();
}

void GuardServer::notice(std::string sentence) {
  Record record;
  record.type = "guard_notice";
  record.sentence = std::move(sentence);
  tell(std::move(record));
}

} // namespace lararium::cli
