// The gate's own trampoline (src/gate/trampoline.S) in a bare-metal guest of the lab, where no kernel runs: the pages
// as `guard --mode lares` lays them out, in memory that the guest does not use, and the one call that the guest has for
// hooks. What Gate does about Linux is not here; how an event is answered and a bell held again is the same.
//
//   bare_hook PID [--deny ERRNO] [--default ERRNO] [--awake MICROSECONDS] [--patience MICROSECONDS] [--one-cpu]
//     Answers each event with 0 (go on) or ERRNO. --default: what the guest does when nobody answers. --one-cpu: the
//     code takes 0 for the CPU's number and does not ask for it, which takes an instruction (`lsl`) that a KVM which
//     emulates all of the guest's may not have.
//
// It prints "protected" when it is ready; on SIGTERM it puts the call back, clears its pages and prints what it
// counted. What another one left that was killed, it takes over.
#include "lararium/driver/qemu.h"
#include "lararium/gate/gate.h"

#include "bare_program.h"
#include "held_pages.h"
#include "layout.h"
#include "trampoline.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <fmt/ranges.h>
#include <future>
#include <iostream>
#include <thread>
#include <x86intrin.h>

namespace lararium::gate {
namespace {

struct Arguments {
  std::string vm;
  std::uint8_t verdict = 0, default_verdict = 0;
  microseconds awake{0}, patience = GateOptions{}.patience;
  bool one_cpu = false;
};

Result<Arguments> parse(const std::vector<std::string_view> &words) {
  Arguments arguments;
  if (words.empty())
    return fail(ErrorCode::usage, "bare_hook PID ... (see the source)");
  arguments.vm = words[0];
  for (std::size_t i = 1; i < words.size(); ++i) {
    if (words[i] == "--one-cpu") {
      arguments.one_cpu = true;
      continue;
    }
    TRY_ASSIGN(const auto value, number(i + 1 < words.size() ? words[i + 1] : ""));
    if (words[i] == "--deny")
      arguments.verdict = static_cast<std::uint8_t>(value);
    else if (words[i] == "--default")
      arguments.default_verdict = static_cast<std::uint8_t>(value);
    else if (words[i] == "--awake")
      arguments.awake = microseconds(value);
    else if (words[i] == "--patience")
      arguments.patience = microseconds(value);
    else
      return fail(ErrorCode::usage, fmt::format("no option: {}", words[i]));
    ++i;
  }
  return arguments;
}

// The guest's clock is the host's.
std::uint64_t cycles_in(microseconds time) {
  static const double rate = [] {
    const auto begin = Clock::now();
    const auto ticks = __rdtsc();
    std::this_thread::sleep_for(10ms);
    return static_cast<double>(__rdtsc() - ticks) /
           std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
  }();
  return static_cast<std::uint64_t>(static_cast<double>(time.count()) * rate);
}

struct Counts {
  std::uint64_t faults = 0, events = 0, rings = 0, strangers = 0, forged = 0, tampered = 0;
  // From a held write that is seen to where nothing is left of it; and of that, for how long it stood there at most.
  std::vector<double> put_back_us, stood_us;
  std::array<std::uint64_t, 6> arguments{};
};

class Hook {
public:
  Hook(const Arguments &arguments, Target &target, WriteProtection &protection)
      : arguments_(arguments), target_(target), memory_(*target.memory), protection_(protection) {}

  // Puts everything in, or takes over what is there.
  Result<void> install() {
    bare_control control{};
    TRY(read(Gpa{BARE_CONTROL}, control));
    if (control.magic != BARE_MAGIC)
      return fail(ErrorCode::unknown_os, "this is no bare-metal guest");
    shape_ = {.cpus = arguments_.one_cpu ? 1 : static_cast<std::uint32_t>(control.cpus), .bells = 2};
    if (base.value + shape_.size() > BARE_FREE_END)
      return fail(ErrorCode::unsupported, "no room for so many CPUs");
    if (protection_.unit_at(frame_of(0)) != page_size)
      return fail(ErrorCode::unsupported, "huge pages of the host's: a single page of it cannot be held");
    cpus_.resize(shape_.cpus);
    PatchedSite &site = site_;
    site.address = Gva{control.call_site};
    site.physical = Gpa{control.call_site};
    site.patched = static_cast<std::int32_t>(stub() - (site.address + 5));
    std::uint8_t opcode = 0;
    TRY(read(site.physical, opcode));
    TRY(read(site.physical + 1, site.original));
    if (opcode != 0xe8)
      return fail(ErrorCode::unsupported, "there is no call where the guest says so");
    std::uint32_t generation = 0;
    if (site.original == site.patched) {
      PatchedSite left;
      TRY(read(frame_of(GATE_SITES), left));
      TRY(read(frame_of(GATE_BOARD + BOARD_GENERATION), generation));
      site.original = left.original;
      adopted_ = true;
    }
    TRY(make_pages(generation + 1));
    return adopted_ ? take_over() : put_in();
  }

  // Everything that only we write to is held, and so are the bells; then the hook is switched on.
  Result<void> hold() {
    for (std::uint64_t offset = 0; offset < shape_.size(); offset += page_size)
      if (!shape_.is_slot(offset))
        TRY(protection_.protect(frame_of(offset), page_size));
    if (adopted_) {
      // Events that nobody answered are over: their CPUs took the default verdict.
      for (std::uint32_t cpu = 0; cpu < shape_.cpus; ++cpu)
        if (const auto slot = event_of(cpu))
          TRY(answer(cpu, slot->number, 0));
      for (const auto &[offset, size] : {std::pair{BOARD_DEFAULT, 1}, std::pair{BOARD_AWAKE, 4},
                                         std::pair{BOARD_SPIN, 16}, std::pair{BOARD_GENERATION, 4}}) {
        const auto first = expected_.begin() + GATE_BOARD + offset;
        TRY(write(GATE_BOARD + static_cast<std::uint64_t>(offset), std::vector<std::byte>(first, first + size)));
      }
    }
    return write_board(BOARD_ON, std::uint8_t{1});
  }

  Result<void> serve() {
    std::vector<WriteFault> faults(8);
    bool awake = false;
    Clock::time_point awake_until;
    while (!ended) {
      if (const bool now = Clock::now() < awake_until; now != awake) {
        TRY(write_board(BOARD_AWAKE, std::uint32_t{now}));
        awake = now;
      }
      const std::uint64_t before = counts.events;
      if (awake)
        for (std::uint32_t cpu = 0; cpu < shape_.cpus; ++cpu)
          TRY(take_event(cpu, false));
      TRY_ASSIGN(const std::size_t count, protection_.wait(faults, awake ? 0us : repair_.valid() ? 1ms : 50ms));
      for (std::size_t i = 0; i < count; ++i)
        TRY(take_fault(faults[i]));
      if (counts.events != before)
        awake_until = Clock::now() + arguments_.awake;
      TRY(finish_repair());
    }
    return {};
  }

  // The call is put back; the pages are cleared once no CPU stands in them.
  Result<void> remove() {
    TRY(write_board(BOARD_ON, std::uint8_t{0}));
    for (std::uint32_t cpu = 0; cpu < shape_.cpus; ++cpu)
      TRY(take_event(cpu, false));
    if (repair_.valid())
      repair_.wait();
    TRY(protection_.release(frame_of(0), shape_.size()));
    {
      TRY_ASSIGN(const auto session, target_.code_writer->begin());
      TRY(session->write(site_.physical + 1, std::as_bytes(std::span(&site_.original, 1))));
      TRY(session->end());
    }
    constexpr int tries = 100;
    for (int i = 0; i < tries; ++i) {
      std::this_thread::sleep_for(arguments_.patience + 5ms);
      TRY_ASSIGN(const auto session, target_.code_writer->begin());
      TRY_ASSIGN(const auto pointers, session->instruction_pointers());
      if (std::ranges::none_of(pointers, [&](Gva pointer) { return pointer - base < shape_.size(); })) {
        std::ranges::fill(expected_, std::byte{0});
        return put_pages(*session);
      }
    }
    return fail(ErrorCode::timeout, "a vCPU stays in the hook's pages");
  }

  [[nodiscard]] bool adopted() const { return adopted_; }
  Counts counts;

private:
  // Where the guest's memory lies one to one.
  static constexpr Gva base{BARE_FREE};
  static Gpa frame_of(std::uint64_t offset) { return Gpa{base.value + offset}; }
  static Gva stub() { return base + stub_offset(0); }

  struct Cpu {
    std::uint64_t answered = 0;
    std::optional<std::uint64_t> open_bell;
  };

  template <class T> Result<void> read(Gpa address, T &value) {
    memory_.refresh();
    if (!memory_.read(address, {reinterpret_cast<std::byte *>(&value), sizeof value}))
      return fault(address);
    return {};
  }
  Result<void> write(std::uint64_t offset, Bytes bytes) {
    std::ranges::copy(bytes, expected_.begin() + static_cast<std::ptrdiff_t>(offset));
    return write_held(protection_, frame_of(offset), bytes);
  }
  template <class T> Result<void> write_board(std::uint64_t offset, T value) {
    return write(GATE_BOARD + offset, std::as_bytes(std::span(&value, 1)));
  }

  Result<void> make_pages(std::uint32_t generation) {
    const std::array stubs{
        Stub{.way_on = site_.address + 5 + static_cast<std::uint64_t>(std::int64_t{site_.original})}};
    expected_ = make_area(base, shape_,
                          {.on = false,
                           .default_verdict = arguments_.default_verdict,
                           .generation = generation,
                           .spin_cycles = cycles_in(arguments_.awake),
                           .patience_cycles = cycles_in(arguments_.patience)},
                          stubs, std::span(&site_, 1));
    if (!arguments_.one_cpu)
      return {};
    constexpr std::array asks{std::byte{0x0f}, std::byte{0x03}, std::byte{0xc0}};  // lsl %eax, %eax
    constexpr std::array takes{std::byte{0x31}, std::byte{0xc0}, std::byte{0x90}}; // xor %eax, %eax; nop
    const auto code = std::span(expected_).first(trampoline_code().size());
    const auto found = std::ranges::search(code, asks);
    if (found.empty() || !std::ranges::search(std::ranges::subrange(found.end(), code.end()), asks).empty())
      return fail(ErrorCode::unsupported, "the code does not ask for the CPU's number where it was thought to");
    std::ranges::copy(takes, found.begin());
    return {};
  }

  // All vCPUs stand still; the call comes last.
  Result<void> put_in() {
    TRY_ASSIGN(const auto session, target_.code_writer->begin());
    TRY(put_pages(*session));
    TRY(session->write(site_.physical + 1, std::as_bytes(std::span(&site_.patched, 1))));
    return session->end();
  }
  Result<void> put_pages(CodeSession &session) {
    for (std::uint64_t offset = 0; offset < shape_.size(); offset += page_size)
      TRY(session.write(frame_of(offset), Bytes(expected_).subspan(offset, page_size)));
    return {};
  }

  Result<void> take_over() {
    std::array<std::byte, page_size> code{};
    TRY(read(frame_of(0), code));
    if (!std::ranges::equal(code, Bytes(expected_).first(page_size)))
      return fail(ErrorCode::unsupported, "what was left in the guest is of another kind");
    for (std::uint32_t cpu = 0; cpu < shape_.cpus; ++cpu) {
      const std::uint64_t place = shape_.cpu_entry(cpu) + CPU_ANSWER;
      std::uint64_t word = 0;
      TRY(read(frame_of(place), word));
      std::memcpy(expected_.data() + place, &word, sizeof word);
      cpus_[cpu].answered = word >> 8;
    }
    return {};
  }

  Result<void> take_fault(const WriteFault &fault) {
    ++counts.faults;
    const std::uint64_t offset = fault.address.page() - frame_of(0);
    if (offset >= shape_.size()) {
      ++counts.strangers;
      return protection_.release(fault.address.page(), page_size);
    }
    if (!shape_.is_bell(offset))
      return take_write(offset);
    const std::uint64_t bell = (offset - shape_.first_bell()) / page_size;
    const auto cpu = static_cast<std::uint32_t>(bell / shape_.bells);
    TRY(take_event(cpu, true));
    if (const auto &open = cpus_[cpu].open_bell; open && shape_.bell_of(cpu, *open) == offset)
      return {};
    ++counts.strangers; // rung for nothing
    return protection_.release(fault.address.page(), page_size);
  }

  std::optional<Slot> event_of(std::uint32_t cpu) {
    Slot slot{};
    const bool is_there = read(frame_of(shape_.slot_of(cpu)), slot) && slot.number == cpus_[cpu].answered + 1;
    return is_there ? std::optional(slot) : std::nullopt;
  }

  // The bell of the event before is held again: its CPU went on long ago. A bell that was rung stays open until then:
  // held before the write is done, it would stop its CPU once more.
  Result<void> take_event(std::uint32_t cpu, bool rang) {
    Cpu &state = cpus_[cpu];
    const auto slot = event_of(cpu);
    if (!slot && rang && state.answered != 0) // it rang although it was answered just then
      return open_bell(cpu, state.answered);
    if (!slot)
      return {};
    if (!is_call(cpu, *slot))
      ++counts.forged;
    if (state.open_bell) {
      TRY(protection_.protect(frame_of(shape_.bell_of(cpu, *state.open_bell)), page_size));
      state.open_bell.reset();
    }
    ++counts.events;
    counts.arguments = slot->arguments;
    TRY(answer(cpu, slot->number, arguments_.verdict));
    if (!rang)
      return {};
    ++counts.rings;
    return open_bell(cpu, slot->number);
  }

  // What the slot says is what the CPU's stack says, and it is the slot of the CPU that made the call, which counts in
  // a place of its own.
  bool is_call(std::uint32_t cpu, const Slot &slot) {
    std::uint64_t returns_to = 0;
    const std::uint64_t counter =
        BARE_CONTROL + offsetof(bare_control, cpu) + cpu * sizeof(bare_cpu) + offsetof(bare_cpu, allowed);
    return slot.stub == 0 && read(Gpa{slot.stack}, returns_to) && returns_to == slot.caller &&
           Gva{slot.caller} == site_.address + 5 && slot.arguments[0] == counter;
  }

  Result<void> answer(std::uint32_t cpu, std::uint64_t event, std::uint8_t verdict) {
    const std::uint64_t word = event << 8 | verdict;
    TRY(write(shape_.cpu_entry(cpu) + CPU_ANSWER, std::as_bytes(std::span(&word, 1))));
    cpus_[cpu].answered = event;
    return {};
  }

  Result<void> open_bell(std::uint32_t cpu, std::uint64_t event) {
    cpus_[cpu].open_bell = event;
    return protection_.release(frame_of(shape_.bell_of(cpu, event)), page_size);
  }

  // Somebody writes where only we do: let go, waited for, and put back.
  Result<void> take_write(std::uint64_t offset) {
    constexpr auto landing_limit = 64ms;
    const auto since = Clock::now();
    auto unchanged = since;
    const Bytes should_be = Bytes(expected_).subspan(offset, page_size);
    TRY(protection_.release(frame_of(offset), page_size));
    std::array<std::byte, page_size> now{};
    for (auto look = since; look - since < landing_limit; look = Clock::now()) {
      TRY(read(frame_of(offset), now));
      if (!std::ranges::equal(now, should_be))
        break;
      unchanged = look;
      std::this_thread::sleep_for(10us);
    }
    const PageRepair repair = put_back(protection_, memory_, frame_of(offset), should_be);
    if (repair.right.empty())
      return {};
    ++counts.tampered;
    if (!shape_.is_code(offset) || protection_.may_hold_code()) {
      note_put_back(since, unchanged);
      return {};
    }
    // The VM stops for it, for which all that its vCPUs wait for must go on being served.
    if (repair_.valid())
      repair_.wait();
    TRY(protection_.release(frame_of(offset), page_size));
    repaired_ = {offset, since, unchanged};
    repair_ = std::async(std::launch::async,
                         [&writer = *target_.code_writer, place = frame_of(offset + repair.offset),
                          right = repair.right]() -> Result<void> {
                           TRY_ASSIGN(const auto session, writer.begin());
                           TRY(session->write(place, right));
                           return session->end();
                         });
    return {};
  }
  Result<void> finish_repair() {
    if (!repair_.valid() || repair_.wait_for(0s) != std::future_status::ready)
      return {};
    TRY(repair_.get());
    note_put_back(repaired_.seen, repaired_.unchanged);
    return protection_.protect(frame_of(repaired_.offset), page_size);
  }
  void note_put_back(Clock::time_point seen, Clock::time_point unchanged) {
    const auto now = Clock::now();
    counts.put_back_us.push_back(std::chrono::duration<double, std::micro>(now - seen).count());
    counts.stood_us.push_back(std::chrono::duration<double, std::micro>(now - unchanged).count());
  }

  const Arguments &arguments_;
  Target &target_;
  PhysicalMemory &memory_;
  WriteProtection &protection_;
  AreaShape shape_;
  PatchedSite site_;
  std::vector<std::byte> expected_; // the area as it should be, but for slots and bells
  std::vector<Cpu> cpus_;
  std::future<Result<void>> repair_; // of code that the VM translates
  struct {
    std::uint64_t offset = 0;
    Clock::time_point seen, unchanged;
  } repaired_;
  bool adopted_ = false;
};

Result<void> run(const Arguments &arguments) {
  TRY_ASSIGN(const auto vm, qemu::find(arguments.vm));
  TRY_ASSIGN(Target target, qemu::attach(vm));
  TRY_ASSIGN(const auto start, target.protector->begin());
  Hook hook(arguments, target, *start.protection);
  TRY(hook.install());
  TRY(hook.hold());
  std::cout << "protected" << '\n' << std::flush;
  const auto begin = Clock::now();
  TRY(hook.serve());
  const std::chrono::duration<double> took = Clock::now() - begin;
  TRY(hook.remove());
  const Counts &counts = hook.counts;
  std::cout << fmt::format(
                   R"({{"seconds": {:.6f}, "faults": {}, "events": {}, "rings": {}, "strangers": {}, )"
                   R"("forged": {}, "tampered": {}, "put_back_us": [{:.1f}], "stood_us": [{:.1f}], "arguments": [{}], )"
                   R"("adopted": {}}})",
                   took.count(), counts.faults, counts.events, counts.rings, counts.strangers, counts.forged,
                   counts.tampered, fmt::join(counts.put_back_us, ", "), fmt::join(counts.stood_us, ", "),
                   fmt::join(counts.arguments, ", "), hook.adopted())
            << '\n'
            << std::flush;
  return {};
}

} // namespace
} // namespace lararium::gate

int main(int argc, char **argv) {
  return lararium::run_until_ended("bare_hook", {argv + 1, argv + argc}, lararium::gate::parse, lararium::gate::run);
}
