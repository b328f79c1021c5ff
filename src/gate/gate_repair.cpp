#include "gate_state.h"

#include "held_pages.h"
#include "running_kernel.h"
#include "whole_word.h"

#include <algorithm>
#include <cstring>
#include <fmt/format.h>

namespace lararium::gate {

using namespace std::chrono_literals;

namespace {

constexpr std::chrono::milliseconds registers_limit = 2s, registers_pause = 2s;
constexpr std::chrono::milliseconds longest_landing_limit =
    64ms; // on a busy host a vCPU's thread waits for a processor

} // namespace

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
  if (const auto symbol = kernel_.symbol("max_pfn")) {
    const std::uint64_t past = kernel_.read<std::uint64_t>(*symbol).value_or(0);
    memory_grew =
        past != 0 && std::ranges::none_of(memory_.ranges(), [&](const RamRange &range) {
          return (past - 1) * page_size >= range.base.value && (past - 1) * page_size - range.base.value < range.size;
        });
  }
  if (shape_.space_tables != 0)
    follow_kernel();
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
  if (place_.rings_memory) {
    const std::uint64_t rings = rings_directory_entry(place_.rings_memory);
    compare(
        place_.rings_entry, std::as_bytes(std::span(&rings, 1)),
        [] { return std::string("the kernel's page table entry that leads to the rings"); }, place_.rings_window);
  }
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
  if (!registers || registers->empty())
    return true;
  const Sight sight = look_for(kernel_, *registers, readings_without_kernel_);
  if (sight == Sight::unclear)
    next_registers_ = {};
  return sight != Sight::gone;
}

// Puts back what was changed, once it is clear that the hooked kernel still runs: a guest that boots anew writes where
// it likes.
void Gate::State::settle(std::vector<Tampering> &tamperings) {
  finish_repair(tamperings);
  std::erase_if(spurious_, [&](const std::pair<Gpa, Clock::time_point> &each) {
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
  const Sight sight = registers.empty() ? Sight::running : look_for(kernel_, registers, readings_without_kernel_);
  if (!kernel_is_there() || sight == Sight::gone) {
    lost_ = true;
    changed_.clear();
    return;
  }
  if (sight == Sight::unclear)
    return;
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
  const auto took = [&] { return std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - changed.seen); };
  if (!changed.is_held) {
    changed.right = changed.tampering.expected;
    // A ring's state is for the CPU alone, which must not be in the middle of it.
    const auto page = changed.ring ? std::span<std::byte>() : protection_.page_in_place(changed.place.page());
    if (!changed.tampering.in_memory_after &&
        replace_as_a_whole(page, changed.place.page_offset(), changed.tampering.found, changed.right)) {
      if (changed.place == place_.entry || changed.place == place_.rings_entry || protection_.may_hold_code()) {
        changed.tampering.put_back = true;
        return Outcome::done;
      }
      changed.tampering.in_memory_after = took();
    }
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
  // The bytes first, wherever that is enough; a VM that translates code must be told of it, too.
  const PageRepair repair = gate::put_back(protection_, memory_, changed.place, expected);
  changed.tampering.address += repair.offset;
  const auto shown = static_cast<std::ptrdiff_t>(std::min<std::size_t>(repair.right.size(), 64));
  changed.tampering.expected.assign(repair.right.begin(), repair.right.begin() + shown);
  changed.tampering.found.assign(repair.found.begin(), repair.found.begin() + shown);
  changed.tampering.put_back = repair.done;
  if (!by_code_writer || repair.right.empty())
    return Outcome::done;
  changed.tampering.in_memory_after = took();
  changed.place += repair.offset;
  changed.right.assign(repair.right.begin(), repair.right.end());
  return Outcome::by_code_writer;
}

} // namespace lararium::gate
