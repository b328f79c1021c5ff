#include "lararium/gate/gate.h"

#include "area_place.h"
#include "call_sites.h"
#include "running_kernel.h"
#include "sim/ring.h"
#include "trampoline.h"
#include "watched_functions.h"

#include "lararium/os/linux.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <fmt/format.h>
#include <map>
#include <thread>
#include <tuple>

namespace lararium::gate {
namespace {

using namespace std::chrono_literals;
using linux_guest::Kernel;
using Clock = std::chrono::steady_clock;

constexpr std::size_t faults_at_once = 32;
constexpr std::uint32_t cpu_limit = 256, most_bells = 2;
constexpr std::size_t banner_bytes = 64;
// For a write that was let go to be done: on a busy host its thread may wait for a processor.
constexpr std::chrono::milliseconds landing_limit = 2ms, longest_landing_limit = 64ms;
constexpr std::chrono::milliseconds registers_limit = 2s, registers_pause = 2s, kernel_pause = 100ms;
constexpr auto ringing_limit = 20ms; // for whoever rings with no event
constexpr int removal_tries = 50, storm_factor = 4;
constexpr std::uint64_t most_ring = 64 << 10, least_ring = 8 << 10, largest_ring = 1 << 20; // a CPU's
constexpr auto sim_patience = 2s; // without a sign of life of ours
constexpr std::chrono::milliseconds beat_pause = 250ms, ring_pause = 5ms;
constexpr std::uint64_t top_entries = 512, free_top_entry = 256; // "guard hole, also reserved for hypervisor"

struct Slot {
  std::uint64_t number;
  std::array<std::uint64_t, 6> arguments;
  std::uint64_t stack, caller;
  std::uint32_t stub, abandoned;
};
static_assert(offsetof(Slot, stack) == SLOT_STACK && offsetof(Slot, caller) == SLOT_CALLER &&
              offsetof(Slot, stub) == SLOT_STUB && offsetof(Slot, abandoned) == SLOT_ABANDONED);

// How many cycles of the guest's clock that is.
std::uint64_t cycles_in(const Kernel &kernel, std::chrono::microseconds time) {
  constexpr std::uint32_t fallback_khz = 2'000'000;
  const auto symbol = kernel.symbol("tsc_khz");
  const std::uint32_t khz = symbol ? kernel.read<std::uint32_t>(*symbol).value_or(0) : 0;
  return static_cast<std::uint64_t>(time.count()) * (khz == 0 ? fallback_khz : khz) / 1000;
}

// A gate's pages as they lie in a guest, whoever put them there, and however far they got.
struct Found {
  Gva window;
  Gpa entry, table;
  std::vector<Gpa> frames;
  std::vector<PatchedSite> sites;
  std::uint32_t generation = 0;
  std::uint32_t pages = 0; // of the area, from the first frame on; more than `frames` where SIM has its own space
  bool is_foreign = false; // of a version that has another layout

  [[nodiscard]] bool holds(Gva address) const {
    return std::ranges::any_of(frames, [&](Gpa frame) {
      return address >= window + frame.value && address - (window + frame.value) < page_size;
    });
  }
};

// Ours is an entry of these whose table lies in low memory and maps nothing but low memory at its own place.
std::optional<Found> find_area(const Kernel &kernel) {
  constexpr Gpa low_end{1 << 20};
  constexpr std::uint64_t low_pages = low_end.value / page_size;
  for (const Gva window : area_windows()) {
    const auto entry = window_entry(kernel, window);
    std::uint64_t value = 0;
    if (!entry || !kernel.memory().read(*entry, writable_bytes_of(value)) || (value & x86_64::entry::present) == 0 ||
        (value & x86_64::entry::large) != 0)
      continue;
    Found found{.window = window,
                .entry = *entry,
                .table = Gpa{value & x86_64::entry::address_mask},
                .frames = {},
                .sites = {}};
    std::array<std::uint64_t, page_size / 8> table{};
    if (found.table >= low_end || !kernel.memory().read(found.table, std::as_writable_bytes(std::span(table))))
      continue;
    bool is_ours = true;
    for (std::uint64_t i = 0; i < table.size(); ++i) {
      if (table[i] == 0)
        continue;
      is_ours = is_ours && i < low_pages && (table[i] & x86_64::entry::present) != 0 &&
                (table[i] & x86_64::entry::address_mask) == i * page_size;
      found.frames.push_back(Gpa{i * page_size});
    }
    if (!is_ours)
      continue;
    if (found.frames.empty())
      return found;
    const auto at = [&]<class T>(std::uint64_t offset, T &out) {
      return kernel.memory().read(found.frames.front() + offset, writable_bytes_of(out));
    };
    std::uint64_t magic = 0;
    std::uint32_t version = 0, count = 0;
    const bool has_board =
        at(GATE_BOARD + BOARD_MAGIC, magic) && magic == area_magic && at(GATE_BOARD + BOARD_VERSION, version);
    found.is_foreign = has_board && version != area_version;
    if (has_board && !found.is_foreign && at(GATE_BOARD + BOARD_GENERATION, found.generation) &&
        at(GATE_BOARD + BOARD_PAGES, found.pages) && at(GATE_BOARD + BOARD_SITE_COUNT, count))
      for (std::uint32_t i = 0; i < std::min<std::uint32_t>(count, site_limit); ++i)
        if (PatchedSite site; at(GATE_SITES + i * sizeof site, site))
          found.sites.push_back(site);
    return found;
  }
  return std::nullopt;
}

// Puts the original calls back. A call that is not as it was left is not touched; the area must stay then.
bool restore_sites(const Kernel &kernel, CodeSession &session, const Found &area, std::vector<std::string> &left,
                   Result<void> &done) {
  bool all = true;
  const auto &location = kernel.location();
  for (const PatchedSite &site : area.sites) {
    std::array<std::byte, 5> now{};
    // The journal lies in the guest: what it names must be a call of this kernel that leads to us.
    const Gva leads_to = site.address + 5 + static_cast<std::uint64_t>(std::int64_t{site.patched});
    const bool is_text = site.address >= location.base && site.address - location.base < location.size &&
                         site.physical == location.physical_base + (site.address - location.base) &&
                         area.holds(leads_to);
    if (!is_text || !kernel.memory().read(site.physical, now)) {
      left.push_back(fmt::format("the call at {:#x} cannot be read: it is left alone", site.address.value));
      all = false;
      continue;
    }
    std::int32_t distance = 0;
    std::memcpy(&distance, now.data() + 1, sizeof distance);
    if (now[0] == std::byte{0xcc}) {
      left.push_back(fmt::format("a probe of the guest's stands on the call at {:#x} and has a copy of it: the hooks' "
                                 "pages stay in the guest, and do nothing",
                                 site.address.value));
      all = false;
    }
    if (distance == site.original)
      continue;
    if (distance != site.patched) {
      left.push_back(
          fmt::format("the call at {:#x} was changed by somebody else: it is left alone", site.address.value));
      all = false;
      continue;
    }
    if (done)
      done = session.write(site.physical + 1, std::as_bytes(std::span(&site.original, 1)));
  }
  return all && done.has_value();
}

constexpr std::uint32_t low_pages = 256; // of the first MiB

// Two stops: after the first nobody enters the area any more; at the second nobody is inside.
Result<void> take_out(OperatingSystem &system, const Kernel &kernel, CodeWriter &writer, const Found &area,
                      std::chrono::microseconds grace, std::vector<std::string> &left) {
  if (area.is_foreign)
    return fail(ErrorCode::unsupported, "another version of Lararium left hooks in this guest: only that version can "
                                        "take them out");
  bool all = false;
  {
    TRY_ASSIGN(const auto session, writer.begin());
    system.refresh();
    Result<void> done;
    all = restore_sites(kernel, *session, area, left, done);
    TRY(session->end());
    TRY(std::move(done));
  }
  if (!all)
    return {};
  for (int i = 0; i < removal_tries; ++i) {
    std::this_thread::sleep_for(grace);
    TRY_ASSIGN(const auto session, writer.begin());
    TRY_ASSIGN(const auto pointers, session->instruction_pointers());
    if (std::ranges::any_of(pointers, [&](Gva pointer) { return area.holds(pointer); }))
      continue;
    // In this order what is left can still be recognised, wherever it ends.
    const std::vector<std::byte> zeros(page_size);
    std::array<std::byte, page_size> now{};
    std::vector<Gpa> pages = area.frames;
    for (std::uint64_t n = area.frames.size(); !area.frames.empty() && n < std::min(area.pages, low_pages); ++n)
      if (const Gpa frame = area.frames.front() + n * page_size; frame != area.table)
        pages.push_back(frame);
    pages.push_back(area.table);
    for (const Gpa page : pages)
      if (!kernel.memory().read(page, now) || !std::ranges::equal(now, zeros))
        TRY(session->write(page, zeros));
    const std::uint64_t nothing = 0;
    TRY(session->write(area.entry, std::as_bytes(std::span(&nothing, 1))));
    return session->end();
  }
  left.emplace_back("a vCPU stands inside the hooks' pages: they stay in the guest, and do nothing");
  return {};
}

} // namespace

class Gate::State {
public:
  State(OperatingSystem &system, const Kernel &kernel, PhysicalMemory &memory, WriteProtection &protection,
        CodeWriter &writer, GateOptions options, CallReader reader)
      : system_(system), kernel_(kernel), memory_(memory), protection_(protection), writer_(writer),
        options_(std::move(options)), reader_(reader) {}

  Result<bool> adopt();
  Result<void> find_sites();
  Result<void> find_place();
  Result<void> put_in();
  Result<void> hold();
  Result<void> wait(std::chrono::microseconds timeout, std::vector<GateEvent> &events,
                    std::vector<Tampering> &tamperings);
  Result<void> answer(const GateEvent &event, int verdict);
  Result<void> remove(std::vector<std::string> &left);
  void let_go();

  std::vector<SeenCall> seen;
  [[nodiscard]] std::vector<SimHookCost> hook_costs() const;
  Result<void> set_depth(const HookEntry &hook, Depth depth);
  [[nodiscard]] std::uint64_t cycles_per_second() const { return cycles_per_microsecond_ * 1'000'000; }
  [[nodiscard]] SimCounts sim_counts() const;
  std::vector<GateSite> sites;
  std::vector<std::string> limitations;
  GateCounts counts;
  std::chrono::nanoseconds stopped{};
  [[nodiscard]] const CallReader &reader() const { return reader_; }
  [[nodiscard]] Remains remains() const;
  Remains before;
  bool adopted = false, memory_grew = false;

private:
  struct StubPlace {
    std::size_t function = 0; // of functions_
    std::vector<Gva> returns; // behind its calls
    bool has_jump = false;    // it returns to its caller's caller
  };
  struct Cpu {
    std::uint64_t answered = 0; // number of the last event
    std::uint64_t pending = 0;  // 0: none waits
    std::uint64_t forged = 0;   // of one that was told as made up
    bool pending_rang = false;
    std::optional<std::uint64_t> open_bell; // of that event
    std::optional<std::uint32_t> vcpu;      // that rings for it
  };
  struct Ring { // a CPU's
    sim::RingReader reader;
    std::uint64_t forged = 0;
    std::optional<std::array<std::uint64_t, 2>> next_key; // that it is being given
    std::optional<Gpa> open_doorbell;
    SimCounts counts;
    std::array<std::uint64_t, sim::hook_limit> calls{}, cycles{}; // by hook
  };
  struct Changed { // an area page, or a call, that somebody wrote to
    Tampering tampering;
    Gpa place;
    Clock::time_point seen;
    bool is_held = false, is_code = false;
    std::uint64_t page = 0;              // offset of the page in the area, where it is one
    std::vector<std::byte> right;        // what is to be there
    std::optional<std::uint32_t> ring{}; // of this CPU, which begins anew
  };
  struct Repair { // under way
    std::vector<Changed> changes;
    std::future<bool> done;
  };
  enum class Outcome : std::uint8_t {
    done,
    unchanged,
    later, // the write has not landed yet, or another repair is under way
    by_code_writer,
  };

  [[nodiscard]] Gpa frame_of(std::uint64_t offset) const { return place_.first + offset; }
  [[nodiscard]] bool is_held(std::uint64_t offset) const {
    return !shape_.is_slot(offset) && !shape_.is_bell(offset) && !shape_.is_doorbell(offset) && !shape_.is_ring(offset);
  }
  Result<void> number_stubs();
  Result<void> choose_ring();
  void shape_of_sim(Gpa first);
  [[nodiscard]] std::uint32_t space_tables() const;
  Result<void> renew_sim();
  Result<void> write_sim(CodeSession &session) const;
  [[nodiscard]] Found here() const;
  Result<void> make_pages(std::uint32_t generation);
  Result<void> make_space();
  [[nodiscard]] std::vector<std::uint64_t> kernel_top() const;
  void drain(std::uint32_t cpu, std::vector<Tampering> &tamperings);
  void take_doorbell(std::uint64_t offset, std::vector<Tampering> &tamperings);
  [[nodiscard]] SeenCall seen_call(std::uint32_t cpu, const sim::Record &record);
  [[nodiscard]] std::optional<std::vector<CallSite>> calls_of(const Found &area) const;
  Result<void> write_board(std::uint64_t offset, Bytes bytes);
  Result<void> write_area(std::uint64_t offset, Bytes bytes);
  [[nodiscard]] bool read_slot(std::uint32_t cpu, Slot &slot) const;
  void take_fault(const WriteFault &fault, std::vector<GateEvent> &events, std::vector<Tampering> &tamperings);
  void take_event(std::uint32_t cpu, bool rang, std::optional<std::uint32_t> vcpu, std::vector<GateEvent> &events,
                  std::vector<Tampering> &tamperings);
  Result<void> open_bell(std::uint32_t cpu, std::uint64_t number);
  void hold_bell(std::uint32_t cpu);
  void let_ring(std::uint32_t cpu, std::uint64_t number);
  void scan(std::vector<GateEvent> &events, std::vector<Tampering> &tamperings);
  void take_write(std::uint64_t offset, const WriteFault &fault);
  void look_at_kernel();
  void look_at_calls();
  void look_at_slots(std::vector<Tampering> &tamperings);
  void settle(std::vector<Tampering> &tamperings);
  [[nodiscard]] Outcome put_back(Changed &changed);
  void begin(Repair repair);
  void finish_repair(std::vector<Tampering> &tamperings);
  void tell(Changed changed, std::vector<Tampering> &tamperings);
  [[nodiscard]] bool kernel_is_there() const;
  [[nodiscard]] bool kernel_is_running() const;
  [[nodiscard]] bool look_at_registers();
  [[nodiscard]] bool was_reset() const { return options_.not_reset && options_.not_reset() == false; }
  [[nodiscard]] std::string place_name(std::uint64_t offset) const;

  OperatingSystem &system_;
  const Kernel &kernel_;
  PhysicalMemory &memory_;
  WriteProtection &protection_;
  CodeWriter &writer_;
  GateOptions options_;
  CallReader reader_;

  AreaPlace place_;
  AreaShape shape_;
  BoardSettings settings_;
  std::vector<WatchedFunction> functions_;
  std::vector<CallSite> calls_;
  std::vector<Stub> stubs_;
  std::vector<StubPlace> stub_places_;
  std::vector<PatchedSite> patched_;
  std::vector<std::byte> expected_;      // the area as it should be, but for slots and bells
  std::vector<std::byte> table_;         // the page table
  std::map<Gpa, std::uint64_t> offsets_; // of our frames; the table's is beyond the area
  std::vector<Cpu> cpus_;
  std::vector<std::byte> banner_;
  std::vector<Changed> changed_;
  std::vector<std::pair<Gpa, Clock::time_point>> spurious_; // bells that somebody wrote to, held again then
  std::optional<Repair> repair_;
  std::future<Result<std::vector<VcpuRegisters>>> registers_;
  sim::Keys keys_;
  Gpa space_root_; // of SIM's address space
  std::vector<Ring> rings_;
  std::vector<std::byte> ring_bytes_;
  std::uint64_t cycles_per_microsecond_ = 0;
  std::int64_t clock_offset_ns_ = INT64_MAX; // host's clock - guest's, at least
  std::uint64_t beat_ = 1;
  Clock::time_point next_beat_, next_drain_;
  Clock::time_point next_poll_, next_look_, next_registers_, awake_until_;
  std::chrono::milliseconds landing_ = landing_limit;
  bool awake_ = false, lost_ = false, in_guest_ = false;
};

// ---- putting in

Result<void> Gate::State::find_sites() {
  TRY_ASSIGN(functions_, watched_functions(kernel_, options_.hooks));
  std::vector<Gva> addresses;
  addresses.reserve(functions_.size());
  for (const WatchedFunction &function : functions_)
    addresses.push_back(function.address);
  TRY_ASSIGN(auto found, find_call_sites(kernel_, addresses));
  if (!found.probed.empty()) {
    const CallSite &call = found.probed.front();
    const auto symbol = system_.symbolize(call.address);
    return fail(ErrorCode::unsupported,
                fmt::format("a kprobe of the guest's stands on the call of {} at {:#x}{}: it cannot be hooked",
                            functions_[call.function].name, call.address.value,
                            symbol ? fmt::format(" in {}", symbol->first.name) : std::string()));
  }
  calls_ = std::move(found.sites);
  for (std::size_t i = 0; i < functions_.size(); ++i)
    if (std::ranges::none_of(calls_, [&](const CallSite &call) { return call.function == i; }))
      return fail(ErrorCode::unsupported,
                  fmt::format("the hook {}: no direct call of {} was found in the kernel's text",
                              functions_[i].watchers.front().hook->name, functions_[i].name));
  return number_stubs();
}

Result<void> Gate::State::number_stubs() {
  // Those that lead to one stub, together.
  std::ranges::sort(calls_, {},
                    [](const CallSite &call) { return std::tuple(call.function, call.target, call.address); });
  std::map<std::pair<std::size_t, Gva>, std::uint32_t> numbers; // of stubs, by function and target
  for (const CallSite &call : calls_) {
    const WatchedFunction &function = functions_[call.function];
    const auto [entry, is_new] =
        numbers.try_emplace({call.function, call.target}, static_cast<std::uint32_t>(stubs_.size()));
    if (is_new) {
      const auto hook = std::ranges::find(options_.hooks, function.watchers.front().hook) - options_.hooks.begin();
      Stub stub{call.target, static_cast<std::uint8_t>(hook),
                function.watchers.size() == 1 ? function.watchers.front().filter : ArgumentFilter{}};
      if (options_.sim && function.watchers.size() == 1) {
        const auto names = [&](const std::vector<const HookEntry *> &list) {
          return std::ranges::find(list, options_.hooks[static_cast<std::size_t>(hook)]) != list.end();
        };
        stub.sim = names(options_.sim->ask) ? STUB_SIM_ASK : STUB_SIM_RECORD;
        stub.plan = static_cast<std::uint8_t>(call.function);
        stub.only_by_rules = names(options_.sim->only);
        stub.may_deny = function.watchers.front().hook->may_deny;
        stub.first_site = static_cast<std::uint8_t>(patched_.size());
      }
      stubs_.push_back(stub);
      stub_places_.push_back({call.function, {}, false});
    }
    if (stubs_[entry->second].sim != 0)
      ++stubs_[entry->second].site_count;
    StubPlace &place = stub_places_[entry->second];
    if (call.is_jump)
      place.has_jump = true;
    else
      place.returns.push_back(call.behind());
    patched_.push_back({call.address, call.physical, call.distance, 0, entry->second, 0});
    sites.push_back({function.watchers.front().hook, function.name, call.address});
  }
  for (std::size_t i = 0; i < stubs_.size(); ++i)
    if (stub_places_[i].has_jump)
      stubs_[i].site_count = 0;
  if (stubs_.size() > stub_room() || patched_.size() > site_limit)
    return fail(ErrorCode::unsupported, fmt::format("{} calls are too many to hook at once", patched_.size()));
  return {};
}

// The hooked calls as they were, where each is one of what is to be hooked now.
std::optional<std::vector<CallSite>> Gate::State::calls_of(const Found &area) const {
  std::vector<CallSite> calls;
  const auto &location = kernel_.location();
  for (const PatchedSite &site : area.sites) {
    std::array<std::byte, 5> now{};
    std::int32_t distance = 0;
    if (site.address < location.base || site.address - location.base >= location.size ||
        site.physical != location.physical_base + (site.address - location.base) || !memory_.read(site.physical, now))
      return std::nullopt;
    std::memcpy(&distance, now.data() + 1, sizeof distance);
    const Gva target = site.address + 5 + static_cast<std::uint64_t>(std::int64_t{site.original});
    const auto function = std::ranges::find_if(
        functions_, [&](const WatchedFunction &each) { return leads_to_function(kernel_, target, each.address); });
    if ((now[0] & std::byte{0xfe}) != std::byte{0xe8} || distance != site.patched || function == functions_.end())
      return std::nullopt;
    calls.push_back({site.address, site.physical, site.original, now[0] == std::byte{0xe9}, target,
                     static_cast<std::size_t>(function - functions_.begin())});
  }
  return calls;
}

// False: there is nothing that is just what would be put in.
Result<bool> Gate::State::adopt() {
  const auto area = find_area(kernel_);
  if (!area || area->sites.empty())
    return false;
  TRY_ASSIGN(functions_, watched_functions(kernel_, options_.hooks));
  auto calls = calls_of(*area);
  std::vector<Gva> addresses;
  addresses.reserve(functions_.size());
  for (const WatchedFunction &function : functions_)
    addresses.push_back(function.address);
  const auto others = find_call_sites(kernel_, addresses);
  shape_ = {.cpus = kernel_.cpu_count(), .bells = most_bells};
  if (options_.sim)
    shape_of_sim(area->frames.front());
  const std::uint64_t mapped = shape_.is_everywhere(shape_.size()) ? shape_.size() : shape_.sim_data();
  const bool all_calls = calls && others && others->sites.empty() && shape_.pages() == area->pages &&
                         area->frames.size() == mapped / page_size &&
                         area->frames.back() - area->frames.front() == mapped - page_size;
  bool same = false;
  if (all_calls) {
    calls_ = std::move(*calls);
    TRY(number_stubs());
    place_ = {.window = area->window, .entry = area->entry, .table = area->table, .first = area->frames.front()};
    TRY(make_pages(area->generation + 1));
    std::vector<std::byte> now(shape_.slots()), table(page_size);
    same = memory_.read(place_.first, now) && memory_.read(place_.table, table) && table == table_;
    if (same) {
      // What changes from one monitor to the next, and from event to event.
      const auto take = [&](std::uint64_t offset, std::uint64_t size) {
        std::copy_n(expected_.begin() + static_cast<std::ptrdiff_t>(offset), size,
                    now.begin() + static_cast<std::ptrdiff_t>(offset));
      };
      take(GATE_BOARD + BOARD_ON, BOARD_CPU_COUNT - BOARD_ON);
      take(GATE_BOARD + BOARD_SPIN, BOARD_SIM_DATA - BOARD_SPIN);
      take(GATE_BOARD + BOARD_OFF, BOARD_SIZE - BOARD_OFF);
      for (std::uint32_t cpu = 0; cpu < shape_.cpus; ++cpu) {
        const std::uint64_t answer = *load<std::uint64_t>(now, shape_.cpu_entry(cpu) + CPU_ANSWER);
        std::memcpy(expected_.data() + shape_.cpu_entry(cpu) + CPU_ANSWER, &answer, sizeof answer);
        cpus_[cpu].answered = answer >> 8;
        take(shape_.cpu_entry(cpu) + CPU_TAIL, sizeof answer);
      }
      same = std::ranges::equal(now, Bytes(expected_).first(now.size()));
      std::vector<std::byte> code(shape_.sim_data() - shape_.sim_code());
      same = same && memory_.read(frame_of(shape_.sim_code()), code) &&
             std::ranges::equal(code, Bytes(expected_).subspan(shape_.sim_code(), code.size()));
    }
  }
  if (!same) {
    calls_.clear();
    stubs_.clear();
    stub_places_.clear();
    patched_.clear();
    sites.clear();
    rings_.clear();
    return false;
  }
  const auto banner = kernel_.symbol("linux_banner");
  banner_.resize(banner_bytes);
  if (!banner || !kernel_.space().read(*banner, banner_))
    return fail(ErrorCode::not_found, "the kernel's banner cannot be read");
  for (std::uint64_t offset = 0; offset < shape_.size(); offset += page_size)
    offsets_.emplace(frame_of(offset), offset);
  offsets_.emplace(place_.table, shape_.size());
  in_guest_ = adopted = true;
  return true;
}

// As large as what is there, where that is what is asked for.
void Gate::State::shape_of_sim(Gpa first) {
  shape_.sim = {.cpus = shape_.cpus, .ring_size = least_ring};
  sim::Config config{};
  std::uint64_t space = 0;
  const bool is_there = memory_.read(first + shape_.sim_data(), writable_bytes_of(config)) &&
                        memory_.read(first + GATE_BOARD + BOARD_SIM_SPACE, writable_bytes_of(space));
  const std::uint64_t wanted = options_.sim->ring_bytes == 0 ? config.ring_size : options_.sim->ring_bytes;
  if (!is_there || config.ring_size != wanted || !std::has_single_bit(wanted) || wanted < least_ring ||
      wanted > largest_ring || (space != 0) != options_.sim->address_space)
    shape_.sim.ring_size = 0; // fits nothing
  else
    shape_.sim.ring_size = wanted;
  shape_.space_tables = space_tables();
}

std::uint32_t Gate::State::space_tables() const {
  return options_.sim && options_.sim->address_space ? static_cast<std::uint32_t>(kernel_.location().root.levels) + 1
                                                     : 0;
}

// The keys of another monitor's rings are spent: rules, keys and rings begin anew, while no vCPU is in the middle of
// them.
Result<void> Gate::State::renew_sim() {
  const Found area = here();
  for (int i = 0; i < removal_tries; ++i) {
    TRY_ASSIGN(const auto session, writer_.begin());
    TRY_ASSIGN(const auto pointers, session->instruction_pointers());
    if (std::ranges::any_of(pointers, [&](Gva pointer) { return area.holds(pointer); })) {
      TRY(session->end());
      std::this_thread::sleep_for(1ms);
      continue;
    }
    TRY(write_sim(*session));
    const std::uint64_t nothing = 0;
    for (std::uint32_t cpu = 0; cpu < shape_.cpus; ++cpu)
      TRY(session->write(frame_of(shape_.cpu_entry(cpu) + CPU_TAIL), std::as_bytes(std::span(&nothing, 1))));
    limitations.emplace_back("what stood unread in the rings of the monitor before is lost");
    return session->end();
  }
  return fail(ErrorCode::unsupported, "a vCPU does not leave the hooks' pages: they cannot be taken over");
}

Result<void> Gate::State::write_sim(CodeSession &session) const {
  const std::uint64_t first_ring =
      shape_.sim.ring_size == 0 ? shape_.sim_data() : shape_.sim_data() + shape_.sim.ring(0);
  for (const auto &[from, to] : {std::pair{shape_.sim_data(), first_ring}, std::pair{shape_.space(), shape_.size()}})
    for (std::uint64_t offset = from; offset < to; offset += page_size)
      TRY(session.write(frame_of(offset), Bytes(expected_).subspan(offset, page_size)));
  return {};
}

Found Gate::State::here() const {
  Found area{.window = place_.window,
             .entry = place_.entry,
             .table = place_.table,
             .frames = {},
             .sites = patched_,
             .generation = settings_.generation,
             .pages = static_cast<std::uint32_t>(shape_.pages())};
  for (std::uint64_t offset = 0; offset < shape_.size(); offset += page_size)
    if (shape_.is_everywhere(offset))
      area.frames.push_back(frame_of(offset));
  return area;
}

Remains Gate::State::remains() const { return {place_.first, expected_, place_.table, table_}; }

Result<void> Gate::State::find_place() {
  shape_.cpus = kernel_.cpu_count();
  shape_.bells = most_bells;
  if (shape_.cpus == 0 || shape_.cpus > cpu_limit)
    return fail(ErrorCode::unsupported, fmt::format("a guest with {} CPUs is not hooked so far", shape_.cpus));
  if (options_.sim)
    TRY(choose_ring());
  TRY_ASSIGN(place_, find_area_place(kernel_, shape_.pages(), before));
  for (std::uint64_t offset = 0; offset < shape_.size(); offset += page_size)
    offsets_.emplace(frame_of(offset), offset);
  offsets_.emplace(place_.table, shape_.size());
  for (const auto &[frame, offset] : offsets_)
    if (protection_.unit_at(frame) != page_size)
      return fail(ErrorCode::unsupported,
                  "the VM's memory is made of huge pages of the host's: writes to a single page "
                  "of it cannot be held, so there can be no gate");
  return {};
}

// Reserved memory is little: what was asked for, or the most that there is room for.
Result<void> Gate::State::choose_ring() {
  const SimOptions &sim = *options_.sim;
  shape_.space_tables = space_tables();
  const std::uint64_t wanted = sim.ring_bytes == 0 ? most_ring : sim.ring_bytes;
  shape_.sim = {.cpus = shape_.cpus, .ring_size = wanted};
  while (true) {
    auto place = find_area_place(kernel_, shape_.pages(), before);
    if (place)
      break;
    if (shape_.sim.ring_size <= least_ring)
      return std::unexpected(std::move(place).error());
    shape_.sim.ring_size /= 2;
  }
  if (sim.ring_bytes != 0 && shape_.sim.ring_size != wanted)
    limitations.push_back(fmt::format("the guest's reserved memory has room for a ring of {} KiB a CPU, not of {} KiB",
                                      shape_.sim.ring_size >> 10, wanted >> 10));
  return {};
}

std::vector<std::uint64_t> Gate::State::kernel_top() const {
  std::vector<std::uint64_t> top(top_entries);
  if (!memory_.read(kernel_.location().root.table, std::as_writable_bytes(std::span(top))))
    return {};
  std::fill_n(top.begin(), free_top_entry, 0); // of processes
  return top;
}

// SIM's own page tables: all of the kernel's, and in an entry that the kernel leaves to hypervisors the pages of SIM's
// data, each at its physical address. The root lies where bit 12 is clear: with page table isolation that bit tells the
// kernel's entry code a process' tables from its own.
Result<void> Gate::State::make_space() {
  using namespace x86_64;
  constexpr std::uint64_t flags = 0x063; // present, writable, accessed, dirty
  std::vector<Gpa> pages;
  pages.reserve(shape_.space_tables);
  for (std::uint32_t i = 0; i < shape_.space_tables; ++i)
    pages.push_back(frame_of(shape_.space() + i * page_size));
  const bool first_is_odd = (pages[0].value & page_size) != 0;
  std::swap(pages[0], pages[first_is_odd ? 1 : 0]);
  space_root_ = pages[0];
  auto top = kernel_top();
  if (top.empty() || top[free_top_entry] != 0)
    return fail(ErrorCode::unsupported, "the entry of the kernel's page tables that is left to hypervisors is taken");
  const auto put = [&](Gpa table, std::uint64_t index, std::uint64_t entry) {
    std::memcpy(expected_.data() + (table - place_.first) + 8 * index, &entry, sizeof entry);
  };
  top[free_top_entry] = pages[1].value | flags;
  for (std::uint64_t i = free_top_entry; i < top_entries; ++i)
    put(space_root_, i, top[i]);
  const auto levels = static_cast<std::size_t>(kernel_.location().root.levels);
  for (std::size_t i = 1; i + 1 < levels; ++i)
    put(pages[i], 0, pages[i + 1].value | flags);
  for (std::uint64_t offset = shape_.sim_data(); offset < shape_.space(); offset += page_size)
    put(pages[levels - 1], frame_of(offset).value / page_size,
        area_table_entry(frame_of(offset), false, !is_held(offset)));
  return {};
}

Result<void> Gate::State::make_pages(std::uint32_t generation) {
  for (PatchedSite &site : patched_)
    site.patched = static_cast<std::int32_t>((place_.base() + stub_offset(site.stub)) - (site.address + 5));
  settings_ = {.on = false,
               .default_verdict = static_cast<std::uint8_t>(options_.default_verdict),
               .generation = generation,
               .spin_cycles = cycles_in(kernel_, options_.awake),
               .patience_cycles = cycles_in(kernel_, options_.patience)};
  if (options_.sim) {
    settings_.sim_data = place_.base() + shape_.sim_data();
    if (options_.sim->address_space) {
      constexpr std::uint64_t pcid_enabled = 1 << 17, keep_translations = 1ULL << 63;
      constexpr std::uint64_t pcid = 0x7fe; // the kernel's own are the first few, and 0x800 more for processes
      const auto registers = options_.registers ? options_.registers().get()
                                                : Result<std::vector<VcpuRegisters>>(std::vector<VcpuRegisters>());
      if (!registers || registers->empty())
        return fail(ErrorCode::unsupported,
                    "the vCPUs' registers cannot be read: whether they tag their translations is "
                    "not known, so SIM can have no address space");
      const bool tagged =
          std::ranges::any_of(*registers, [](const auto &vcpu) { return (vcpu.cr4 & pcid_enabled) != 0; });
      const int bits = 12 + 9 * (kernel_.location().root.levels - 1);
      const Gva base{~std::uint64_t{0} << (bits + 8)}; // the upper half's first address
      settings_.sim_data = base + place_.first.value + shape_.sim_data();
      const Gpa first = frame_of(shape_.space());
      settings_.space_cr3 = (first.value + (first.value & page_size)) | (tagged ? pcid : 0);
      settings_.cr3_keep = tagged ? keep_translations : 0;
    }
  }
  expected_ = make_area(place_.base(), shape_, settings_, stubs_, patched_);
  table_.resize(page_size);
  for (std::uint64_t offset = 0; offset < shape_.size(); offset += page_size) {
    if (!shape_.is_everywhere(offset))
      continue;
    const std::uint64_t entry = area_table_entry(frame_of(offset), shape_.is_code(offset), !is_held(offset));
    std::memcpy(table_.data() + 8 * (frame_of(offset).value / page_size), &entry, sizeof entry);
  }
  cpus_.resize(shape_.cpus);
  if (!options_.sim)
    return {};
  std::vector<sim::Plan> plans;
  plans.reserve(functions_.size());
  for (const WatchedFunction &function : functions_) {
    auto plan = sim::plan_of(kernel_, {function.name, {}, function.watchers.front().keeps});
    if (!plan)
      return wrap(std::move(plan).error(), fmt::format("the hook {}", function.watchers.front().hook->name));
    plans.push_back(*plan);
  }
  keys_ = sim::new_keys(shape_.cpus);
  TRY_ASSIGN(const auto pages, sim::make_pages(kernel_, shape_.sim, *options_.sim, cycles_in(kernel_, sim_patience),
                                               options_.hooks, plans, keys_));
  std::ranges::copy(pages, expected_.begin() + static_cast<std::ptrdiff_t>(shape_.sim_data()));
  for (std::uint32_t cpu = 0; cpu < shape_.cpus; ++cpu)
    rings_.push_back({.reader = {shape_.sim.ring_size, keys_.cpus[cpu], keys_.hash},
                      .next_key = {},
                      .open_doorbell = {},
                      .counts = {}});
  ring_bytes_.resize(shape_.sim.ring_size);
  cycles_per_microsecond_ = std::max<std::uint64_t>(cycles_in(kernel_, 1us), 1);
  return options_.sim->address_space ? make_space() : Result<void>();
}

Result<void> Gate::State::put_in() {
  const auto banner = kernel_.symbol("linux_banner");
  banner_.resize(banner_bytes);
  if (!banner || !kernel_.space().read(*banner, banner_))
    return fail(ErrorCode::not_found, "the kernel's banner cannot be read");

  TRY(make_pages(1));
  const auto begin = Clock::now();
  TRY_ASSIGN(const auto session, writer_.begin());
  system_.refresh();
  // Nothing is replaced that is not what it was taken for.
  std::uint64_t entry = 1;
  if (!memory_.read(place_.entry, writable_bytes_of(entry)) || entry != 0)
    return fail(ErrorCode::unsupported, "the free entry of the kernel's page tables was taken meanwhile");
  std::array<std::byte, page_size> page{};
  for (const auto &[frame, offset] : offsets_)
    if (!memory_.read(frame, page) ||
        (std::ranges::any_of(page, [](std::byte byte) { return byte != std::byte{0}; }) && !before.has(frame, page)))
      return fail(ErrorCode::unsupported, "a page that the kernel has set aside was written to meanwhile");
  for (const CallSite &call : calls_) {
    std::array<std::byte, 5> now{};
    std::int32_t distance = 0;
    if (!memory_.read(call.physical, now))
      return fault(call.address);
    std::memcpy(&distance, now.data() + 1, sizeof distance);
    if (now[0] != (call.is_jump ? std::byte{0xe9} : std::byte{0xe8}) || distance != call.distance)
      return fail(ErrorCode::unsupported,
                  fmt::format("the call at {:#x} was changed meanwhile: nothing was hooked", call.address.value));
  }
  const auto write = [&](std::uint64_t offset) {
    return session->write(frame_of(offset), Bytes(expected_).subspan(offset, page_size));
  };
  // In this order what is there can be recognised, wherever it ends. The calls come last.
  in_guest_ = true;
  const std::uint64_t directory = area_directory_entry(place_.table);
  TRY(session->write(place_.entry, std::as_bytes(std::span(&directory, 1))));
  TRY(session->write(place_.table, table_));
  for (const auto &[from, to] :
       {std::pair{std::uint64_t{0}, shape_.slots()}, std::pair{shape_.sim_code(), shape_.sim_data()}})
    for (std::uint64_t offset = from; offset < to; offset += page_size)
      TRY(write(offset));
  TRY(write_sim(*session));
  for (const PatchedSite &site : patched_)
    TRY(session->write(site.physical + 1, std::as_bytes(std::span(&site.patched, 1))));
  TRY(session->end());
  stopped = Clock::now() - begin;
  return {};
}

Result<void> Gate::State::hold() {
  if (adopted && options_.sim)
    TRY(renew_sim());
  for (const auto &[frame, offset] : offsets_)
    if (offset >= shape_.size() || (!shape_.is_slot(offset) && !shape_.is_ring(offset)))
      TRY(protection_.protect(frame, page_size));
  if (adopted) {
    // Events that nobody answered are over: their CPUs took the default verdict.
    for (std::uint32_t cpu = 0; cpu < shape_.cpus; ++cpu) {
      Slot slot{};
      if (!read_slot(cpu, slot) || slot.number != cpus_[cpu].answered + 1)
        continue;
      const std::uint64_t word = slot.number << 8;
      TRY(write_area(shape_.cpu_entry(cpu) + CPU_ANSWER, std::as_bytes(std::span(&word, 1))));
      cpus_[cpu].answered = slot.number;
    }
    const auto board = Bytes(expected_).subspan(GATE_BOARD, BOARD_SIZE);
    for (const auto &[offset, size] :
         {std::pair{BOARD_DEFAULT, 1}, std::pair{BOARD_AWAKE, 4}, std::pair{BOARD_SPIN, 16},
          std::pair{BOARD_HEARTBEAT, 8}, std::pair{BOARD_OFF, 8}, std::pair{BOARD_GENERATION, 4}}) {
      const std::vector<std::byte> value(board.begin() + offset, board.begin() + offset + size);
      TRY(write_board(static_cast<std::uint64_t>(offset), value));
    }
  }
  settings_.on = true;
  const std::byte on{1};
  TRY(write_board(BOARD_ON, std::span(&on, 1)));
  next_poll_ = Clock::now() + options_.poll;
  return {};
}

// ---- events

Result<void> Gate::State::write_area(std::uint64_t offset, Bytes bytes) {
  std::ranges::copy(bytes, expected_.begin() + static_cast<std::ptrdiff_t>(offset));
  const Gpa frame = frame_of(offset);
  if (const auto page = protection_.page_in_place(frame.page()); !page.empty()) {
    std::byte *const target = page.data() + frame.page_offset();
    if (bytes.size() == sizeof(std::uint64_t)) { // whole, for a CPU that looks at it
      std::uint64_t value = 0;
      std::memcpy(&value, bytes.data(), sizeof value);
      std::atomic_ref(*reinterpret_cast<std::uint64_t *>(target)).store(value, std::memory_order_release);
    } else {
      std::memcpy(target, bytes.data(), bytes.size());
    }
    return {};
  }
  return protection_.overwrite(frame, bytes);
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

// ---- what the code in the guest tells

void Gate::State::drain(std::uint32_t cpu, std::vector<Tampering> &tamperings) {
  Ring &ring = rings_[cpu];
  sim::CpuState state{};
  const std::uint64_t place = shape_.sim_data() + shape_.sim.cpu_page(cpu);
  if (ring.next_key || !memory_.read(frame_of(place), writable_bytes_of(state)))
    return;
  ring.counts.calls = ring.counts.cycles = 0;
  for (std::size_t i = 0; i < sim::hook_limit; ++i) {
    ring.counts.calls += state.calls[i];
    ring.counts.cycles += state.cycles[i];
    ring.calls[i] = state.calls[i];
    ring.cycles[i] = state.cycles[i];
  }
  ring.counts.lost = state.lost;
  ring.counts.doorbells = state.doorbells;
  const auto tell = [&](std::string what, std::uint64_t offset) {
    ++counts.forged;
    tamperings.push_back(
        {.what = std::move(what), .address = place_.base() + offset, .expected = {}, .found = {}, .vcpu = {}});
  };
  if (state.forged != ring.forged) {
    tell(fmt::format("the hooks of CPU {} were called from where no hook is", cpu), place);
    ring.forged = state.forged;
  }
  if (state.head == ring.reader.tail())
    return;
  const std::uint64_t bytes_at = shape_.sim_data() + shape_.sim.ring(cpu);
  if (!memory_.read(frame_of(bytes_at), ring_bytes_))
    return;
  std::vector<sim::Record> records;
  std::vector<std::string> wrong;
  ring.reader.read(ring_bytes_, state.head, records, wrong);
  ring.counts.records += records.size();
  for (const sim::Record &record : records)
    seen.push_back(seen_call(cpu, record));
  for (const std::string &sentence : wrong)
    tell(fmt::format("the ring of CPU {} {}", cpu, sentence), bytes_at);
  const std::uint64_t tail = ring.reader.tail();
  static_cast<void>(write_area(shape_.cpu_entry(cpu) + CPU_TAIL, std::as_bytes(std::span(&tail, 1))));
  if (!ring.reader.is_out_of_step())
    return;
  // Both sides go on with a new key, once nobody writes.
  ring.next_key = sim::new_keys(1).cpus.front();
  const std::uint64_t sequence = ring.reader.next_sequence() - 1;
  Changed changed;
  changed.place = frame_of(place) + offsetof(sim::CpuState, sequence);
  changed.seen = Clock::now();
  changed.ring = cpu;
  changed.tampering.expected.resize(sizeof sequence + sizeof *ring.next_key);
  std::memcpy(changed.tampering.expected.data(), &sequence, sizeof sequence);
  std::memcpy(changed.tampering.expected.data() + sizeof sequence, ring.next_key->data(), sizeof *ring.next_key);
  changed_.push_back(std::move(changed));
}

// A ring fills. Its CPU waits until there is room.
void Gate::State::take_doorbell(std::uint64_t offset, std::vector<Tampering> &tamperings) {
  const auto cpu = static_cast<std::uint32_t>((offset - shape_.first_doorbell()) / page_size / AreaShape::doorbells);
  memory_.refresh();
  drain(cpu, tamperings);
  Ring &ring = rings_[cpu];
  const Gpa frame = frame_of(offset);
  if (ring.open_doorbell && *ring.open_doorbell != frame)
    static_cast<void>(protection_.protect(*ring.open_doorbell, page_size));
  ring.open_doorbell = frame;
  static_cast<void>(protection_.release(frame, page_size));
}

SeenCall Gate::State::seen_call(std::uint32_t cpu, const sim::Record &record) {
  const sim::RecordHead &head = record.head;
  SeenCall call;
  call.cpu = cpu;
  if (head.stub < stubs_.size()) {
    const WatchedFunction &function = functions_[stub_places_[head.stub].function];
    call.hook = function.watchers.front().hook;
    call.call.function = function.name;
  }
  std::ranges::copy(head.arguments, call.call.arguments.begin());
  call.caller = Gva{head.caller};
  call.task = Gva{head.task};
  call.start_time = head.start_time;
  call.program = head.program;
  call.thread = static_cast<std::int32_t>(head.pid);
  call.pid = static_cast<std::int32_t>(head.tgid);
  call.ppid = static_cast<std::int32_t>(head.parent);
  call.uid = head.euid;
  call.cgroup = head.cgroup;
  call.comm = std::string(head.comm, ::strnlen(head.comm, sizeof head.comm));
  call.verdict = head.verdict;
  call.rule = head.rule;
  call.is_cut = (head.flags & sim::flag_cut) != 0;
  for (const sim::KeptBytes &kept : sim::captures_of(record)) {
    KeepKind kind = KeepKind::bytes;
    switch (kept.head.kind) {
    case sim::CaptureKind::text: kind = KeepKind::text; break;
    case sim::CaptureKind::path: kind = KeepKind::path; break;
    case sim::CaptureKind::path_below: kind = KeepKind::path_below; break;
    case sim::CaptureKind::user_strings: kind = KeepKind::user_arguments; break;
    case sim::CaptureKind::bytes:
    case sim::CaptureKind::counted: break;
    }
    call.kept.push_back({kind, Gva{kept.head.key}, {kept.bytes.begin(), kept.bytes.end()}});
  }
  // The two clocks are nearest to each other in the record that was read soonest.
  const auto host =
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch());
  const auto guest = static_cast<std::int64_t>(head.cycles / cycles_per_microsecond_ * 1000 +
                                               head.cycles % cycles_per_microsecond_ * 1000 / cycles_per_microsecond_);
  clock_offset_ns_ = std::min(clock_offset_ns_, host.count() - guest);
  call.host_time_ns = static_cast<std::uint64_t>(guest + clock_offset_ns_);
  return call;
}

std::vector<SimHookCost> Gate::State::hook_costs() const {
  std::vector<SimHookCost> costs;
  costs.reserve(options_.hooks.size());
  for (std::size_t i = 0; i < options_.hooks.size(); ++i) {
    const HookEntry *hook = options_.hooks[i];
    SimHookCost cost{.hook = hook};
    const auto names = [&](const SimRule &rule) { return std::ranges::find(rule.hooks, hook) != rule.hooks.end(); };
    cost.decides = std::ranges::any_of(options_.sim->verdicts, names) ||
                   std::ranges::find(options_.sim->ask, hook) != options_.sim->ask.end();
    for (const Ring &ring : rings_) {
      cost.calls += ring.calls[i];
      cost.cycles += ring.cycles[i];
    }
    costs.push_back(cost);
  }
  return costs;
}

Result<void> Gate::State::set_depth(const HookEntry &hook, Depth depth) {
  const auto number = std::ranges::find(options_.hooks, &hook) - options_.hooks.begin();
  for (const auto &[offset, wanted] : {std::pair{BOARD_OFF, Depth::off}, std::pair{BOARD_BRIEF, Depth::brief}}) {
    std::uint32_t mask = *load<std::uint32_t>(expected_, static_cast<std::size_t>(GATE_BOARD + offset));
    const std::uint32_t bit = 1U << number;
    mask = depth == wanted ? mask | bit : mask & ~bit;
    TRY(write_board(static_cast<std::uint64_t>(offset), std::as_bytes(std::span(&mask, 1))));
  }
  return {};
}

SimCounts Gate::State::sim_counts() const {
  SimCounts all;
  all.cycles_per_second = cycles_per_second();
  for (const Ring &ring : rings_) {
    all.records += ring.counts.records;
    all.lost += ring.counts.lost;
    all.doorbells += ring.counts.doorbells;
    all.calls += ring.counts.calls;
    all.cycles += ring.counts.cycles;
  }
  return all;
}

// ---- what protects itself

void Gate::State::take_fault(const WriteFault &fault, std::vector<GateEvent> &events,
                             std::vector<Tampering> &tamperings) {
  ++counts.faults;
  const auto found = offsets_.find(fault.address.page());
  if (found == offsets_.end()) {
    static_cast<void>(protection_.release(fault.address.page(), page_size));
    return;
  }
  const std::uint64_t offset = found->second;
  if (offset < shape_.size() && shape_.is_doorbell(offset)) {
    take_doorbell(offset, tamperings);
    return;
  }
  if (offset >= shape_.size() || !shape_.is_bell(offset)) {
    take_write(offset, fault);
    return;
  }
  const std::uint64_t number = (offset - shape_.first_bell()) / page_size, bell = number % shape_.bells;
  const auto cpu = static_cast<std::uint32_t>(number / shape_.bells);
  take_event(cpu, true, fault.vcpu, events, tamperings);
  // Whoever rings a bell that is not the event's waits for nobody's answer.
  const auto is_bell_of = [&](std::uint64_t event) { return event % shape_.bells == bell; };
  const Cpu &state = cpus_[cpu];
  if (!(state.pending != 0 && is_bell_of(state.pending)) && !(state.open_bell && is_bell_of(*state.open_bell)))
    let_ring(cpu, bell);
}

std::string Gate::State::place_name(std::uint64_t offset) const {
  if (offset >= shape_.size())
    return "the hooks' page table";
  if (shape_.is_code(offset))
    return "the trampoline";
  if (offset < GATE_SITES)
    return "the hooks' configuration";
  if (offset < GATE_CPUS)
    return "the list of hooked calls";
  if (offset < shape_.slots())
    return "the monitor's answers";
  return offset < shape_.space() ? "the rules in the guest" : "the page tables of the hooks' address space";
}

void Gate::State::take_write(std::uint64_t offset, const WriteFault &fault) {
  const Gpa frame = offset >= shape_.size() ? place_.table : frame_of(offset);
  Changed changed;
  changed.place = frame;
  changed.seen = Clock::now();
  changed.is_held = true;
  changed.is_code = offset < shape_.size() && shape_.is_code(offset);
  changed.page = offset;
  changed.tampering.what = place_name(offset);
  changed.tampering.address = place_.base() + offset;
  changed.tampering.vcpu = fault.vcpu;
  system_.refresh();
  changed.tampering.task = fault.vcpu ? linux_guest::running_task(kernel_, *fault.vcpu) : std::nullopt;
  static_cast<void>(protection_.release(frame, page_size));
  if (std::ranges::none_of(changed_, [&](const Changed &each) { return each.is_held && each.place == frame; }))
    changed_.push_back(std::move(changed));
}

void Gate::State::look_at_kernel() {
  system_.refresh();
  if (const auto highest = kernel_.symbol("max_pfn"); highest && !memory_.ranges().empty()) {
    const RamRange &last = memory_.ranges().back();
    memory_grew = kernel_.read<std::uint64_t>(*highest).value_or(0) > (last.base.value + last.size) / page_size;
  }
  if (shape_.space_tables != 0) { // what the kernel maps anew
    const auto top = kernel_top();
    for (std::uint64_t i = free_top_entry + 1; i < top.size(); ++i) {
      const std::uint64_t offset = space_root_ - place_.first + 8 * i;
      if (load<std::uint64_t>(expected_, offset) != top[i])
        static_cast<void>(write_area(offset, std::as_bytes(std::span(&top[i], 1))));
    }
  }
  lost_ = lost_ || was_reset() || !kernel_is_there() || !look_at_registers();
}

// A slot is the guest's to write to, and says that its CPU waits for us no more: nobody but who plays with slots and
// bells can bring a CPU to that while we are there. All CPUs are told that there is a monitor again.
void Gate::State::look_at_slots(std::vector<Tampering> &tamperings) {
  memory_.refresh();
  const std::uint32_t given_up = settings_.generation;
  for (std::uint32_t cpu = 0; cpu < shape_.cpus; ++cpu) {
    Slot slot{};
    if (!read_slot(cpu, slot) || slot.abandoned != given_up)
      continue;
    system_.refresh();
    if (was_reset() || !kernel_is_running()) {
      lost_ = true;
      return;
    }
    const std::uint32_t fresh = given_up + 1;
    const bool done =
        settings_.generation == fresh || write_board(BOARD_GENERATION, std::as_bytes(std::span(&fresh, 1))).has_value();
    settings_.generation = done ? fresh : given_up;
    ++counts.tampered;
    tamperings.push_back({.what = fmt::format("the slot of CPU {}, which said that there is no monitor", cpu),
                          .address = place_.base() + shape_.slot_of(cpu) + SLOT_ABANDONED,
                          .expected = std::vector<std::byte>(sizeof slot.abandoned),
                          .found = {reinterpret_cast<const std::byte *>(&slot.abandoned),
                                    reinterpret_cast<const std::byte *>(&slot.abandoned) + sizeof slot.abandoned},
                          .put_back = done,
                          .vcpu = {}});
  }
}

// What leads to us, and is not held: compared, often, as it is little.
void Gate::State::look_at_calls() {
  memory_.refresh();
  const auto compare = [&](Gpa place, Bytes expected, auto &&what, Gva address) {
    std::array<std::byte, 8> now{};
    const auto part = std::span(now).first(expected.size());
    if (!memory_.read(place, part) || std::ranges::equal(part, expected) ||
        std::ranges::any_of(changed_, [&](const Changed &each) { return each.place == place; }) ||
        (repair_ && std::ranges::any_of(repair_->changes, [&](const Changed &each) { return each.place == place; })))
      return;
    Changed changed;
    changed.place = place;
    changed.seen = Clock::now();
    changed.tampering.what = what();
    changed.tampering.address = address;
    changed.tampering.expected.assign(expected.begin(), expected.end());
    changed.tampering.found.assign(part.begin(), part.end());
    changed_.push_back(std::move(changed));
  };
  const std::uint64_t directory = area_directory_entry(place_.table);
  compare(
      place_.entry, std::as_bytes(std::span(&directory, 1)),
      [] { return std::string("the kernel's page table entry that leads to the hooks"); }, place_.base());
  for (std::size_t i = 0; i < patched_.size(); ++i) {
    std::array<std::byte, 5> expected{calls_[i].is_jump ? std::byte{0xe9} : std::byte{0xe8}};
    std::memcpy(expected.data() + 1, &patched_[i].patched, sizeof patched_[i].patched);
    std::array<std::byte, 1> first{};
    // The guest's own probe on that very call: it is in effect, and runs the call from a copy.
    if (memory_.read(patched_[i].physical, first) && first[0] == std::byte{0xcc})
      continue;
    compare(
        patched_[i].physical, expected,
        [&] {
          std::string in;
          if (const auto symbol = system_.symbolize(patched_[i].address))
            in = fmt::format(" in {}", symbol->first.name);
          return fmt::format("the call of {}{}", sites[i].function, in);
        },
        patched_[i].address);
  }
}

bool Gate::State::kernel_is_there() const {
  const auto banner = kernel_.symbol("linux_banner");
  std::vector<std::byte> now(banner_.size());
  return banner && kernel_.space().read(*banner, now) && now == banner_;
}

// The kernel itself says that it is on its way out, before it writes anything for what comes after it (kexec, too).
bool Gate::State::kernel_is_running() const {
  const auto state = kernel_.symbol("system_state");
  const auto running = kernel_.types().enumerator("SYSTEM_RUNNING");
  return state && running && kernel_is_there() &&
         kernel_.read<std::uint32_t>(*state) == static_cast<std::uint32_t>(*running);
}

// Under KVM a kernel that another one started leaves no trace in what is known at once.
bool Gate::State::look_at_registers() {
  if (!options_.registers || !changed_.empty())
    return true;
  if (!registers_.valid()) {
    if (Clock::now() < next_registers_)
      return true;
    next_registers_ = Clock::now() + registers_pause;
    registers_ = options_.registers();
    return true;
  }
  if (registers_.wait_for(0s) != std::future_status::ready)
    return true;
  const auto registers = registers_.get();
  return !registers || registers->empty() || some_vcpu_maps(kernel_, *registers);
}

// Puts back what was changed, once it is clear that the hooked kernel still runs: a guest that boots anew writes where
// it likes.
void Gate::State::settle(std::vector<Tampering> &tamperings) {
  finish_repair(tamperings);
  std::erase_if(spurious_, [&](const auto &each) {
    if (Clock::now() < each.second)
      return false;
    static_cast<void>(protection_.protect(each.first, page_size));
    return true;
  });
  if (changed_.empty())
    return;
  if (was_reset()) {
    lost_ = true;
    changed_.clear();
    return;
  }
  std::vector<VcpuRegisters> registers;
  system_.refresh();
  if (options_.registers && !(kernel_is_running() && options_.not_reset && options_.not_reset().value_or(false))) {
    if (!registers_.valid())
      registers_ = options_.registers();
    const bool ready = registers_.wait_for(0s) == std::future_status::ready;
    if (!ready && Clock::now() - changed_.front().seen < registers_limit)
      return;
    if (ready)
      if (auto answer = registers_.get())
        registers = std::move(*answer);
  }
  system_.refresh();
  if (!kernel_is_there() || (!registers.empty() && !some_vcpu_maps(kernel_, registers))) {
    lost_ = true;
    changed_.clear();
    return;
  }
  std::vector<Changed> later;
  Repair repair;
  for (Changed &changed : std::exchange(changed_, {}))
    switch (put_back(changed)) {
    case Outcome::done: tell(std::move(changed), tamperings); break;
    case Outcome::unchanged: break;
    case Outcome::later: later.push_back(std::move(changed)); break;
    case Outcome::by_code_writer: repair.changes.push_back(std::move(changed)); break;
    }
  changed_ = std::move(later);
  if (!repair.changes.empty())
    begin(std::move(repair));
}

void Gate::State::tell(Changed changed, std::vector<Tampering> &tamperings) {
  ++counts.tampered;
  changed.tampering.after = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - changed.seen);
  tamperings.push_back(std::move(changed.tampering));
}

// The VM stops for it, for which all that its vCPUs wait for must go on being served: by us, while a thread does that.
void Gate::State::begin(Repair repair) {
  std::vector<std::pair<Gpa, std::vector<std::byte>>> writes;
  for (const Changed &changed : repair.changes) {
    if (changed.is_held)
      static_cast<void>(protection_.release(changed.place.page(), page_size));
    writes.emplace_back(changed.place, changed.right);
  }
  repair.done = std::async(std::launch::async, [&writer = writer_, writes = std::move(writes)] {
    auto session = writer.begin();
    bool all = session.has_value();
    for (const auto &[place, bytes] : writes)
      all = all && (*session)->write(place, bytes);
    return all && (*session)->end();
  });
  repair_ = std::move(repair);
}

void Gate::State::finish_repair(std::vector<Tampering> &tamperings) {
  if (!repair_ || repair_->done.wait_for(0s) != std::future_status::ready)
    return;
  const bool done = repair_->done.get();
  memory_.refresh();
  for (Changed &changed : repair_->changes) {
    if (changed.is_held)
      static_cast<void>(protection_.protect(changed.place.page(), page_size));
    std::vector<std::byte> now(changed.right.size());
    changed.tampering.put_back = done && memory_.read(changed.place, now) && now == changed.right;
    if (changed.ring) {
      Ring &ring = rings_[*changed.ring];
      std::uint64_t head = 0;
      if (done &&
          memory_.read(frame_of(shape_.sim_data() + shape_.sim.cpu_page(*changed.ring)), writable_bytes_of(head)))
        ring.reader.restart(*ring.next_key, head);
      ring.next_key.reset();
      continue; // it was told of
    }
    tell(std::move(changed), tamperings);
  }
  repair_.reset();
}

Gate::State::Outcome Gate::State::put_back(Changed &changed) {
  if (!changed.is_held) {
    changed.right = changed.tampering.expected;
    return repair_ ? Outcome::later : Outcome::by_code_writer;
  }
  std::array<std::byte, page_size> now{};
  const Bytes expected =
      changed.page >= shape_.size() ? Bytes(table_) : Bytes(expected_).subspan(changed.page, page_size);
  if (!memory_.read(changed.place, now))
    return Outcome::done;
  if (std::ranges::equal(now, expected)) {
    if (Clock::now() - changed.seen < landing_)
      return Outcome::later;
    // What was written is what stood there, or the write has not been done: then it meets a held page again.
    static_cast<void>(protection_.protect(changed.place, page_size));
    landing_ = std::min(landing_ * 2, longest_landing_limit);
    return Outcome::unchanged;
  }
  landing_ = landing_limit;
  const bool by_code_writer = changed.is_code && !protection_.may_hold_code();
  if (by_code_writer && repair_)
    return Outcome::later;
  // From here on nobody writes there, and what was written is looked at.
  static_cast<void>(protection_.protect(changed.place, page_size));
  memory_.refresh();
  static_cast<void>(memory_.read(changed.place, now));
  std::size_t first = 0, last = page_size;
  while (first < page_size && now[first] == expected[first])
    ++first;
  while (last > first && now[last - 1] == expected[last - 1])
    --last;
  changed.tampering.address += first;
  const std::size_t shown = std::min<std::size_t>(last - first, 64);
  changed.tampering.expected.assign(expected.begin() + static_cast<std::ptrdiff_t>(first),
                                    expected.begin() + static_cast<std::ptrdiff_t>(first + shown));
  changed.tampering.found.assign(now.begin() + static_cast<std::ptrdiff_t>(first),
                                 now.begin() + static_cast<std::ptrdiff_t>(first + shown));
  const Bytes part = expected.subspan(first, last - first);
  // The bytes first, wherever that is enough; a VM that translates code must be told of it, too.
  changed.tampering.put_back = protection_.overwrite(changed.place + first, part).has_value();
  memory_.refresh();
  if (!by_code_writer)
    return Outcome::done;
  changed.place += first;
  changed.right.assign(part.begin(), part.end());
  return Outcome::by_code_writer;
}

// ---- taking out

void Gate::State::let_go() {
  for (const auto &[frame, offset] : offsets_)
    static_cast<void>(protection_.release(frame, page_size));
}

Result<void> Gate::State::remove(std::vector<std::string> &left) {
  if (!in_guest_)
    return {};
  system_.refresh();
  if (lost_ || !kernel_is_there()) {
    let_go();
    in_guest_ = false;
    return {};
  }
  // Whoever comes from here on goes on at once; whoever waits is let go. What is being put back is.
  const std::byte off{0};
  static_cast<void>(write_board(BOARD_ON, std::span(&off, 1)));
  std::vector<GateEvent> events;
  std::vector<Tampering> tamperings;
  scan(events, tamperings);
  for (const GateEvent &event : events)
    static_cast<void>(answer(event, 0));
  for (std::uint32_t cpu = 0; cpu < shape_.cpus; ++cpu)
    if (cpus_[cpu].pending != 0) {
      GateEvent event;
      event.cpu = cpu;
      event.number = cpus_[cpu].pending;
      static_cast<void>(answer(event, 0));
    }
  let_go();
  if (repair_)
    repair_->done.wait();
  repair_.reset();
  memory_.refresh();
  for (std::uint32_t cpu = 0; cpu < rings_.size(); ++cpu)
    drain(cpu, tamperings);
  TRY(take_out(system_, kernel_, writer_, here(), options_.patience + 5ms, left));
  in_guest_ = false;
  return {};
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

std::optional<LeftGate> find_left_gate(const Kernel &kernel) {
  const auto area = find_area(kernel);
  return area ? std::optional(LeftGate{area->window, area->sites.size()}) : std::nullopt;
}

bool is_code_of_gate(const Kernel &kernel, Gva address) {
  const auto area = find_area(kernel);
  return area && area->holds(address);
}

Result<void> remove_left_gate(OperatingSystem &system, CodeWriter &writer, std::vector<std::string> &left) {
  const Kernel *kernel = linux_guest::kernel_of(system);
  const auto area = kernel != nullptr ? find_area(*kernel) : std::nullopt;
  if (!area)
    return {};
  constexpr auto grace = 10ms;
  return take_out(system, *kernel, writer, *area, grace, left);
}

} // namespace lararium::gate
