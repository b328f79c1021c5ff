#include "lararium/gate/breakpoint_module.h"

#include "watched_functions.h"

#include "lararium/arch/x86_64_code_step.h"
#include "lararium/os/linux.h"

#include <algorithm>
#include <cstring>
#include <fmt/format.h>

namespace lararium::gate {

namespace {
constexpr std::chrono::milliseconds cpus_pause{100}; // between looks at how many there are
}

struct BreakpointModule::Functions {
  std::vector<WatchedFunction> items;
};

BreakpointModule::BreakpointModule(OperatingSystem &system, const linux_guest::Kernel &kernel, Debugger &debugger,
                                   const CallReader &reader)
    : system_(system), kernel_(kernel), debugger_(debugger), reader_(reader),
      functions_(std::make_unique<Functions>()) {}
BreakpointModule::~BreakpointModule() = default;

Result<std::unique_ptr<BreakpointModule>> BreakpointModule::install(OperatingSystem &system, Debugger &debugger,
                                                                    const std::vector<const HookEntry *> &hooks) {
  const linux_guest::Kernel *kernel = linux_guest::kernel_of(system);
  if (kernel == nullptr)
    return fail(ErrorCode::unsupported, "only Linux guests can be hooked so far");
  system.refresh();
  TRY_ASSIGN(auto reader, CallReader::create(*kernel));
  std::unique_ptr<BreakpointModule> module(new BreakpointModule(system, *kernel, debugger, reader));
  TRY_ASSIGN(module->functions_->items, watched_functions(*kernel, hooks));
  for (const WatchedFunction &function : module->functions_->items) {
    TRY(module->step_over({.vcpu = 0, .address = function.address, .stack = {}, .arguments = {}}, nullptr));
    module->addresses_.push_back(function.address);
    module->sites_.push_back({function.watchers.front().hook, function.name, function.address});
  }
  const auto begin = std::chrono::steady_clock::now();
  TRY_ASSIGN(module->breakpoints_, debugger.begin(module->addresses_));
  module->stopped_ = std::chrono::steady_clock::now() - begin;
  module->cpus_ = module->online_cpus();
  return module;
}

std::uint32_t BreakpointModule::online_cpus() const {
  const auto symbol = kernel_.symbol("__num_online_cpus"); // 5.4, 0c09ab96fc82
  return symbol ? kernel_.read<std::uint32_t>(*symbol).value_or(0) : 0;
}

Result<void> BreakpointModule::follow_cpus() {
  if (const auto now = std::chrono::steady_clock::now(); now < next_look_)
    return {};
  else
    next_look_ = now + cpus_pause;
  system_.refresh();
  const std::uint32_t before = std::exchange(cpus_, online_cpus());
  if (breakpoints_ && cpus_ <= before)
    return {};
  if (const auto old = std::move(breakpoints_))
    TRY(old->end());
  TRY_ASSIGN(breakpoints_, debugger_.begin(addresses_));
  return {};
}

// A function begins with something that does nothing (endbr64, the place for a call to a tracer), or with the call to a
// tracer. The latter is carried out here: its return address goes onto the stack.
Result<BreakpointStep> BreakpointModule::step_over(const BreakpointHit &hit, Breakpoints *breakpoints) {
  std::array<std::byte, 16> code{};
  if (!kernel_.space().read(hit.address, code))
    return fault(hit.address);
  const auto step = x86_64::step_at(code);
  const Gva next = hit.address + step.length;
  if (step.length != 0 && (step.kind == x86_64::StepKind::entry || step.kind == x86_64::StepKind::pad))
    return BreakpointStep{next, hit.stack, std::nullopt};
  if (step.length != 0 && step.kind == x86_64::StepKind::call) {
    const Gva stack = hit.stack - 8;
    if (breakpoints != nullptr)
      TRY(breakpoints->write(hit, stack, std::as_bytes(std::span(&next.value, 1))));
    return BreakpointStep{next + static_cast<std::uint64_t>(step.value), stack, std::nullopt};
  }
  return fail(
      ErrorCode::unsupported,
      fmt::format("the function at {:#x} begins with an instruction that is not stepped over", hit.address.value));
}

Result<void> BreakpointModule::wait(std::chrono::microseconds timeout, std::vector<GateEvent> &events,
                                    std::vector<Tampering> & /*tamperings*/) {
  const auto end = std::chrono::steady_clock::now() + timeout;
  while (!hit_) {
    const auto left = std::chrono::ceil<std::chrono::microseconds>(end - std::chrono::steady_clock::now());
    if (left.count() <= 0)
      return {};
    TRY(follow_cpus());
    if (!breakpoints_)
      return fail(ErrorCode::protocol, "the VM has lost its breakpoints");
    TRY_ASSIGN(hit_, breakpoints_->wait(std::min(left, std::chrono::microseconds(cpus_pause))));
  }
  ++counts_.faults;
  const auto function = std::ranges::find(functions_->items, hit_->address, &WatchedFunction::address);
  system_.refresh();
  GateEvent event;
  event.cpu = hit_->vcpu;
  event.number = ++number_;
  const HookEntry *hook = function == functions_->items.end() ? nullptr : function->hook_for(hit_->arguments);
  if (hook == nullptr)
    return answer(event, 0);
  event.hook = hook;
  event.call = {function->name, hit_->arguments};
  event.stack = hit_->stack;
  event.caller = kernel_.read_pointer(hit_->stack).value_or(Gva{});
  event.rang = true;
  event.seen = std::chrono::steady_clock::now();
  events.push_back(event);
  return {};
}

Result<void> BreakpointModule::answer(const GateEvent &event, int verdict) {
  if (!hit_ || event.number != number_)
    return {};
  const BreakpointHit hit = *std::exchange(hit_, std::nullopt);
  counts_.events += event.hook != nullptr ? 1 : 0;
  if (verdict != 0) {
    // Back to the caller, as if it had returned that.
    const auto caller = kernel_.read_pointer(hit.stack);
    if (!caller)
      return fault(hit.stack);
    return breakpoints_->go_on(hit, {*caller, hit.stack + 8, static_cast<std::uint64_t>(-std::int64_t{verdict})});
  }
  TRY_ASSIGN(const auto step, step_over(hit, breakpoints_.get()));
  return breakpoints_->go_on(hit, step);
}

Result<void> BreakpointModule::remove(std::vector<std::string> & /*left*/) {
  if (!breakpoints_)
    return {};
  if (hit_) {
    GateEvent event;
    event.number = number_;
    static_cast<void>(answer(event, 0));
  }
  const auto breakpoints = std::move(breakpoints_);
  return breakpoints->end();
}

} // namespace lararium::gate
