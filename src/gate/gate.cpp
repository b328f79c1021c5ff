#include "gate_state.h"

#include "held_pages.h"
#include "running_kernel.h"

#include "lararium/os/linux.h"

#include <algorithm>
#include <fmt/format.h>

namespace lararium::gate {

using namespace std::chrono_literals;
using linux_guest::Kernel;

namespace {

constexpr std::size_t faults_at_once = 32;
constexpr std::chrono::milliseconds kernel_pause = 100ms;
constexpr auto ringing_limit = 20ms; // for whoever rings with no event
constexpr int storm_factor = 4;
constexpr std::chrono::milliseconds beat_pause = 250ms, ring_pause = 5ms;

} // namespace

Result<void> Gate::State::write_area(std::uint64_t offset, Bytes bytes) {
  std::ranges::copy(bytes, expected_.begin() + static_cast<std::ptrdiff_t>(offset));
  return write_held(protection_, frame_of(offset), bytes);
}

Result<void> Gate::State::write_board(std::uint64_t offset, Bytes bytes) {
  return write_area(GATE_BOARD + offset, bytes);
}

bool Gate::State::read_slot(std::uint32_t cpu, Slot &slot) const {
  return memory_.read(frame_of(shape_.slot_of(cpu)), writable_bytes_of(slot));
}

// The bell of the event before is held again: its CPU went on long ago.
void Gate::State::hold_bell(std::uint32_t cpu) {
  Cpu &state = cpus_[cpu];
  if (!state.open_bell)
    return;
  static_cast<void>(protection_.protect(frame_of(shape_.bell_of(cpu, *state.open_bell)), page_size));
  state.open_bell.reset();
}

Result<void> Gate::State::open_bell(std::uint32_t cpu, std::uint64_t number) {
  Cpu &state = cpus_[cpu];
  if (state.open_bell && *state.open_bell != number)
    hold_bell(cpu);
  state.open_bell = number;
  return protection_.release(frame_of(shape_.bell_of(cpu, number)), page_size);
}

// For whoever rings with no event of ours. Until the bell is held again, events are looked for (wait()).
void Gate::State::let_ring(std::uint32_t cpu, std::uint64_t number) {
  const Gpa frame = frame_of(shape_.bell_of(cpu, number));
  static_cast<void>(protection_.release(frame, page_size));
  std::erase_if(spurious_, [&](const auto &each) { return each.first == frame; });
  spurious_.emplace_back(frame, Clock::now() + ringing_limit);
}

void Gate::State::take_event(std::uint32_t cpu, bool rang, std::optional<std::uint32_t> vcpu,
                             std::vector<GateEvent> &events, std::vector<Tampering> &tamperings) {
  Cpu &state = cpus_[cpu];
  Slot slot{};
  memory_.refresh();
  if (!read_slot(cpu, slot))
    return;
  if (slot.number == state.answered + 1 && state.pending == slot.number) {
    state.pending_rang = state.pending_rang || rang; // told again, or it rang while it is being decided
    return;
  }
  if (slot.number != state.answered + 1) {
    if (!rang)
      return;
    if (slot.number == state.answered && state.answered != 0) { // it rang although it was answered just then
      static_cast<void>(open_bell(cpu, slot.number));
      return;
    }
    // Nobody of ours rings without an event: a kernel that boots in this one's place, a device, a snapshot that is
    // being loaded, or code in the guest that plays with it.
    for (std::uint64_t bell = 0; bell < shape_.bells; ++bell)
      let_ring(cpu, bell);
    state.open_bell.reset();
    system_.refresh();
    if (was_reset() || !kernel_is_running()) {
      lost_ = true;
      return;
    }
    if (vcpu) {
      ++counts.forged;
      tamperings.push_back({.what = fmt::format("the bell of CPU {} was rung with no event", cpu),
                            .address = place_.base() + shape_.bell_of(cpu, 0),
                            .expected = {},
                            .found = {},
                            .vcpu = vcpu,
                            .task = linux_guest::running_task(kernel_, *vcpu)});
    }
    return;
  }
  // What the slot says must be what the CPU's own stack says, and come from where a hook is.
  system_.refresh();
  const bool is_known = slot.stub < stubs_.size();
  const auto returns_to = kernel_.read<std::uint64_t>(Gva{slot.stack});
  const bool is_call =
      is_known && returns_to == slot.caller &&
      (stub_places_[slot.stub].has_jump ||
       std::ranges::find(stub_places_[slot.stub].returns, Gva{slot.caller}) != stub_places_[slot.stub].returns.end());
  if (!is_call || (vcpu && state.vcpu && *vcpu != *state.vcpu)) {
    if (was_reset() || !kernel_is_running()) {
      lost_ = true;
      return;
    }
    if (state.forged != slot.number) {
      ++counts.forged;
      tamperings.push_back({.what = fmt::format("an event of CPU {} that no hooked call made", cpu),
                            .address = place_.base() + shape_.slot_of(cpu),
                            .expected = {},
                            .found = {reinterpret_cast<const std::byte *>(&slot),
                                      reinterpret_cast<const std::byte *>(&slot) + sizeof slot},
                            .vcpu = vcpu,
                            .task = vcpu ? linux_guest::running_task(kernel_, *vcpu) : std::nullopt});
      state.forged = slot.number;
    }
    if (rang) // whoever it is goes on
      let_ring(cpu, slot.number);
    return;
  }
  state.vcpu = vcpu ? vcpu : state.vcpu;
  hold_bell(cpu);
  state.pending = slot.number;
  state.pending_rang = rang;
  GateEvent event;
  event.cpu = cpu;
  event.number = slot.number;
  const WatchedFunction &function = functions_[stub_places_[slot.stub].function];
  event.hook = function.hook_for(slot.arguments);
  if (event.hook == nullptr) {
    static_cast<void>(answer(event, 0));
    return;
  }
  event.call = {function.name, slot.arguments};
  event.stack = Gva{slot.stack};
  event.caller = Gva{slot.caller};
  event.rang = rang;
  event.seen = Clock::now();
  events.push_back(event);
}

Result<void> Gate::State::answer(const GateEvent &event, int verdict) {
  Cpu &state = cpus_[event.cpu];
  if (state.pending != event.number)
    return {};
  const std::uint64_t word = event.number << 8 | static_cast<std::uint8_t>(verdict);
  TRY(write_area(shape_.cpu_entry(event.cpu) + CPU_ANSWER, std::as_bytes(std::span(&word, 1))));
  state.answered = event.number;
  state.pending = 0;
  ++counts.events;
  if (!state.pending_rang)
    return {};
  ++counts.rings;
  return open_bell(event.cpu, event.number);
}

void Gate::State::scan(std::vector<GateEvent> &events, std::vector<Tampering> &tamperings) {
  memory_.refresh();
  for (std::uint32_t cpu = 0; cpu < shape_.cpus; ++cpu) {
    std::uint64_t number = 0;
    if (cpus_[cpu].pending == 0 && memory_.read(frame_of(shape_.slot_of(cpu)), writable_bytes_of(number)) &&
        number == cpus_[cpu].answered + 1)
      take_event(cpu, false, std::nullopt, events, tamperings);
  }
}

Result<void> Gate::State::wait(std::chrono::microseconds timeout, std::vector<GateEvent> &events,
                               std::vector<Tampering> &tamperings) {
  const auto end = Clock::now() + timeout;
  const auto set_awake = [&](bool awake) {
    if (awake_ == awake)
      return;
    awake_ = awake;
    const std::uint32_t word = awake ? 1 : 0;
    static_cast<void>(write_board(BOARD_AWAKE, std::as_bytes(std::span(&word, 1))));
  };
  while (true) {
    auto now = Clock::now();
    if (awake_ && now >= awake_until_)
      set_awake(false);
    if (options_.awake.count() != 0) {
      scan(events, tamperings);
      if (!events.empty()) {
        awake_until_ = Clock::now() + options_.awake;
        set_awake(true);
        return {};
      }
    }
    if (options_.sim) {
      if (now >= next_beat_) {
        ++beat_;
        static_cast<void>(write_board(BOARD_HEARTBEAT, std::as_bytes(std::span(&beat_, 1))));
        next_beat_ = now + beat_pause;
      }
      if (now >= next_drain_) {
        memory_.refresh();
        for (std::uint32_t cpu = 0; cpu < shape_.cpus; ++cpu)
          drain(cpu, tamperings);
        next_drain_ = now + ring_pause;
      }
      if (!seen.empty())
        return {};
    }
    auto until = std::min({end, next_poll_, next_look_});
    if (options_.sim)
      until = std::min(until, next_drain_);
    if (!changed_.empty() || repair_ || !spurious_.empty())
      until = std::min(until, now + 50us);
    const auto left =
        awake_ ? 0us : std::chrono::ceil<std::chrono::microseconds>(std::max(until - now, Clock::duration::zero()));
    std::array<WriteFault, faults_at_once> faults;
    TRY_ASSIGN(const std::size_t count, protection_.wait(faults, left));
    for (std::size_t i = 0; i < count; ++i)
      take_fault(faults[i], events, tamperings);
    now = Clock::now();
    if (!events.empty() && options_.awake.count() != 0) {
      awake_until_ = now + options_.awake;
      set_awake(true);
    }
    settle(tamperings);
    if (!spurious_.empty())
      scan(events, tamperings);
    // Events come first; in a storm of them the rest comes, too.
    if (now >= next_poll_ + (count == 0 ? 0us : storm_factor * options_.poll)) {
      look_at_calls();
      look_at_slots(tamperings);
      next_poll_ = now + options_.poll;
    }
    if (now >= next_look_ + (count == 0 ? 0ms : kernel_pause)) {
      look_at_kernel();
      next_look_ = now + kernel_pause;
    }
    if (lost_) {
      let_go();
      return fail(ErrorCode::unknown_os, "the kernel that was hooked runs no more");
    }
    if (!events.empty() || !tamperings.empty() || now >= end)
      return {};
  }
}

// ---- the interface

Gate::Gate(std::unique_ptr<State> state) : state_(std::move(state)) {}
Gate::~Gate() { state_->let_go(); }

Result<std::unique_ptr<Gate>> Gate::install(OperatingSystem &system, PhysicalMemory &memory,
                                            WriteProtection &protection, CodeWriter &writer, GateOptions options,
                                            const std::shared_ptr<const Remains> &before) {
  const Kernel *kernel = linux_guest::kernel_of(system);
  if (kernel == nullptr)
    return fail(ErrorCode::unsupported, "only Linux guests can be hooked so far");
  system.refresh();
  TRY_ASSIGN(auto reader, CallReader::create(*kernel));
  auto state = std::make_unique<State>(system, *kernel, memory, protection, writer, std::move(options), reader);
  if (before)
    state->before = *before;
  TRY_ASSIGN(const bool adopted, state->adopt());
  if (!adopted) {
    TRY(remove_left_gate(system, writer, state->limitations));
    TRY(state->find_sites());
    TRY(state->find_place());
  }
  if (auto done = adopted ? Result<void>() : state->put_in(); !done) {
    std::vector<std::string> left;
    static_cast<void>(state->remove(left));
    return std::unexpected(std::move(done).error());
  }
  if (auto done = state->hold(); !done) {
    std::vector<std::string> left;
    static_cast<void>(state->remove(left));
    return std::unexpected(std::move(done).error());
  }
  return std::unique_ptr<Gate>(new Gate(std::move(state)));
}

Result<void> Gate::wait(std::chrono::microseconds timeout, std::vector<GateEvent> &events,
                        std::vector<Tampering> &tamperings) {
  return state_->wait(timeout, events, tamperings);
}
void Gate::take_seen(std::vector<SeenCall> &seen) {
  seen = std::move(state_->seen);
  state_->seen.clear();
  std::ranges::sort(seen, {}, [](const SeenCall &call) { return std::pair(call.host_time_ns, call.cpu); });
}
SimCounts Gate::sim_counts() const { return state_->sim_counts(); }
std::vector<SimHookCost> Gate::hook_costs() const { return state_->hook_costs(); }
Result<void> Gate::set_depth(const HookEntry &hook, Depth depth) { return state_->set_depth(hook, depth); }
std::uint64_t Gate::cycles_per_second() const { return state_->cycles_per_second(); }
Result<void> Gate::answer(const GateEvent &event, int verdict) { return state_->answer(event, verdict); }
Result<void> Gate::remove(std::vector<std::string> &left) { return state_->remove(left); }
const std::vector<GateSite> &Gate::sites() const { return state_->sites; }
const std::vector<std::string> &Gate::limitations() const { return state_->limitations; }
const GateCounts &Gate::counts() const { return state_->counts; }
std::chrono::nanoseconds Gate::stopped() const { return state_->stopped; }
const CallReader &Gate::reader() const { return state_->reader(); }
bool Gate::memory_grew() const { return state_->memory_grew; }
bool Gate::adopted() const { return state_->adopted; }
std::shared_ptr<const Remains> Gate::remains() const { return std::make_shared<Remains>(state_->remains()); }

} // namespace lararium::gate
