// The gate, in parts: gate_install.cpp puts it in and takes it out, gate.cpp carries events, gate_repair.cpp keeps it
// as it was put in, gate_sim.cpp has what belongs to SIM.
#pragma once

#include "area_place.h"
#include "call_sites.h"
#include "left_gate.h"
#include "sim/ring.h"
#include "trampoline.h"
#include "watched_functions.h"

#include "lararium/gate/gate.h"

#include <chrono>
#include <future>
#include <map>

namespace lararium::gate {

// For a write that was let go to be done, to begin with.
inline constexpr std::chrono::milliseconds landing_limit{2};

// How many cycles of the guest's clock that is.
[[nodiscard]] std::uint64_t cycles_in(const linux_guest::Kernel &kernel, std::chrono::microseconds time);

class Gate::State {
public:
  using Clock = std::chrono::steady_clock;

  State(OperatingSystem &system, const linux_guest::Kernel &kernel, PhysicalMemory &memory, WriteProtection &protection,
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
  [[nodiscard]] Gpa ring_memory(std::uint32_t cpu) const {
    const std::uint64_t offset = cpu * shape_.sim.ring_size;
    return shape_.sim.rings_elsewhere ? place_.rings_memory + offset
                                      : frame_of(shape_.sim_data() + shape_.sim.rings() + offset);
  }
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
  Result<void> place_sim_data();
  Result<void> make_sim_pages();
  void follow_kernel();
  Result<void> make_space();
  [[nodiscard]] std::vector<std::uint64_t> kernel_top() const;
  void drain(std::uint32_t cpu, std::vector<Tampering> &tamperings);
  void take_doorbell(std::uint64_t offset, std::vector<Tampering> &tamperings);
  [[nodiscard]] SeenCall seen_call(std::uint32_t cpu, const sim::Record &record);
  [[nodiscard]] std::optional<std::vector<CallSite>> calls_of(const Found &area) const;
  [[nodiscard]] bool has_rings_of(const Found &area) const;
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
  const linux_guest::Kernel &kernel_;
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
  int readings_without_kernel_ = 0;
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

} // namespace lararium::gate
