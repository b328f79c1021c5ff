#include "gate_state.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <fmt/format.h>
#include <thread>

namespace lararium::gate {

using namespace std::chrono_literals;

namespace {

constexpr std::uint64_t most_ring = 64 << 10, least_ring = 8 << 10, largest_ring = 1 << 20; // a CPU's
constexpr auto sim_patience = 2s;                                // without a sign of life of ours
constexpr std::uint64_t top_entries = 512, free_top_entry = 256; // "guard hole, also reserved for hypervisor"

} // namespace

// As large as what is there, where that is what is asked for.
void Gate::State::shape_of_sim(Gpa first) {
  shape_.sim = {.cpus = shape_.cpus, .ring_size = least_ring, .rings_elsewhere = !options_.sim->ring_block.empty()};
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
  const std::uint64_t first_ring = shape_.sim_data() + (shape_.sim.ring_size == 0 ? 0 : shape_.sim.rings());
  for (const auto &[from, to] : {std::pair{shape_.sim_data(), first_ring}, std::pair{shape_.space(), shape_.size()}})
    for (std::uint64_t offset = from; offset < to; offset += page_size)
      TRY(session.write(frame_of(offset), Bytes(expected_).subspan(offset, page_size)));
  return {};
}

// Reserved memory is little: what was asked for, or the most that there is room for.
Result<void> Gate::State::choose_ring() {
  const SimOptions &sim = *options_.sim;
  shape_.space_tables = space_tables();
  const std::uint64_t wanted = sim.ring_bytes == 0 ? most_ring : sim.ring_bytes;
  shape_.sim = {.cpus = shape_.cpus, .ring_size = wanted, .rings_elsewhere = !sim.ring_block.empty()};
  if (shape_.sim.rings_elsewhere) {
    const std::uint64_t room = std::bit_floor(rings_room / shape_.cpus);
    if (sim.ring_bytes > room)
      return fail(ErrorCode::usage, fmt::format("the rings of {} CPUs have 2 MiB together: at most {} KiB each",
                                                shape_.cpus, room >> 10));
    shape_.sim.ring_size = sim.ring_bytes == 0 ? std::min(room, largest_ring) : sim.ring_bytes;
    return {};
  }
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

Result<void> Gate::State::place_sim_data() {
  settings_.sim_data = place_.base() + shape_.sim_data();
  if (options_.sim->address_space) {
    constexpr std::uint64_t pcid_enabled = 1 << 17, keep_translations = 1ULL << 63;
    constexpr std::uint64_t pcid = 0x7fe; // the kernel's own are the first few, and 0x800 more for processes
    const auto registers = options_.registers ? options_.registers().get()
                                              : Result<std::vector<VcpuRegisters>>(std::vector<VcpuRegisters>());
    if (!registers || registers->empty())
      return fail(ErrorCode::unsupported, "the vCPUs' registers cannot be read: whether they tag their translations is "
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
  return {};
}

Result<void> Gate::State::make_sim_pages() {
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

// What the kernel maps anew, SIM's page tables map, too.
void Gate::State::follow_kernel() {
  const auto top = kernel_top();
  for (std::uint64_t i = free_top_entry + 1; i < top.size(); ++i) {
    const std::uint64_t offset = space_root_ - place_.first + 8 * i;
    if (load<std::uint64_t>(expected_, offset) != top[i])
      static_cast<void>(write_area(offset, std::as_bytes(std::span(&top[i], 1))));
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
  const auto tell = [&](std::string what, Gva address) {
    ++counts.forged;
    tamperings.push_back({.what = std::move(what), .address = address, .expected = {}, .found = {}, .vcpu = {}});
  };
  if (state.forged != ring.forged) {
    tell(fmt::format("the hooks of CPU {} were called from where no hook is", cpu), place_.base() + place);
    ring.forged = state.forged;
  }
  if (state.head == ring.reader.tail())
    return;
  if (!memory_.read(ring_memory(cpu), ring_bytes_))
    return;
  std::vector<sim::Record> records;
  std::vector<std::string> wrong;
  ring.reader.read(ring_bytes_, state.head, records, wrong);
  ring.counts.records += records.size();
  for (const sim::Record &record : records)
    seen.push_back(seen_call(cpu, record));
  for (const std::string &sentence : wrong)
    tell(fmt::format("the ring of CPU {} {}", cpu, sentence), *load<Gva>(expected_, shape_.cpu_entry(cpu) + CPU_RING));
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
  call.group = Gva{head.group};
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

} // namespace lararium::gate
