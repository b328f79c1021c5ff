#include "gate_state.h"

#include "running_kernel.h"

#include <algorithm>
#include <cstring>
#include <fmt/format.h>
#include <thread>
#include <tuple>

namespace lararium::gate {

using namespace std::chrono_literals;
using linux_guest::Kernel;

namespace {

constexpr std::uint32_t cpu_limit = 256, most_bells = 2;
constexpr std::size_t banner_bytes = 64;

} // namespace

// How many cycles of the guest's clock that is.
std::uint64_t cycles_in(const Kernel &kernel, std::chrono::microseconds time) {
  constexpr std::uint32_t fallback_khz = 2'000'000;
  const auto symbol = kernel.symbol("tsc_khz");
  const std::uint32_t khz = symbol ? kernel.read<std::uint32_t>(*symbol).value_or(0) : 0;
  return static_cast<std::uint64_t>(time.count()) * (khz == 0 ? fallback_khz : khz) / 1000;
}

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

bool Gate::State::has_rings_of(const Found &area) const {
  if (!shape_.sim.rings_elsewhere)
    return !area.rings_memory;
  const auto range = find_block(memory_, options_.sim->ring_block);
  return range && area.rings_memory >= range->base && area.rings_memory - range->base < range->size;
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
                         area->frames.back() - area->frames.front() == mapped - page_size && has_rings_of(*area);
  bool same = false;
  if (all_calls) {
    calls_ = std::move(*calls);
    TRY(number_stubs());
    place_ = {.window = area->window,
              .entry = area->entry,
              .table = area->table,
              .first = area->frames.front(),
              .rings_window = area->rings_window,
              .rings_entry = area->rings_entry,
              .rings_memory = area->rings_memory};
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

Found Gate::State::here() const {
  Found area{.window = place_.window,
             .entry = place_.entry,
             .table = place_.table,
             .frames = {},
             .sites = patched_,
             .generation = settings_.generation,
             .pages = static_cast<std::uint32_t>(shape_.pages()),
             .rings_window = place_.rings_window,
             .rings_entry = place_.rings_entry,
             .rings_memory = place_.rings_memory};
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
  if (shape_.sim.rings_elsewhere)
    TRY(find_rings_place(kernel_, memory_, options_.sim->ring_block, shape_.cpus * shape_.sim.ring_size, place_));
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

Result<void> Gate::State::make_pages(std::uint32_t generation) {
  for (PatchedSite &site : patched_)
    site.patched = static_cast<std::int32_t>((place_.base() + stub_offset(site.stub)) - (site.address + 5));
  settings_ = {.on = false,
               .default_verdict = static_cast<std::uint8_t>(options_.default_verdict),
               .generation = generation,
               .spin_cycles = cycles_in(kernel_, options_.awake),
               .patience_cycles = cycles_in(kernel_, options_.patience)};
  if (options_.sim)
    TRY(place_sim_data());
  settings_.rings = place_.rings_window;
  expected_ = make_area(place_.base(), shape_, settings_, stubs_, patched_);
  table_.resize(page_size);
  for (std::uint64_t offset = 0; offset < shape_.size(); offset += page_size) {
    if (!shape_.is_everywhere(offset))
      continue;
    const std::uint64_t entry = area_table_entry(frame_of(offset), shape_.is_code(offset), !is_held(offset));
    std::memcpy(table_.data() + 8 * (frame_of(offset).value / page_size), &entry, sizeof entry);
  }
  cpus_.resize(shape_.cpus);
  return options_.sim ? make_sim_pages() : Result<void>();
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
  if (place_.rings_memory && (!memory_.read(place_.rings_entry, writable_bytes_of(entry)) || entry != 0))
    return fail(ErrorCode::unsupported, "the free entry for the rings was taken meanwhile");
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
  if (place_.rings_memory) {
    const std::uint64_t rings = rings_directory_entry(place_.rings_memory);
    TRY(session->write(place_.rings_entry, std::as_bytes(std::span(&rings, 1))));
  }
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

} // namespace lararium::gate
