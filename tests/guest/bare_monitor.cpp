// What protects a bare-metal guest of the lab (lab/bare_metal) in tests and measurements: WriteProtection as `protect`
// uses it, without all that is about Linux.
//
//   bare_monitor PID hold [--ask] [--for SECONDS] ADDRESS...
//     Holds writes to the pages of these addresses; each is let go, waited for, and the page protected again. With
//     --ask each fault is told ("fault address=... vcpu=..."), and the writer let go when a line comes on standard
//     input.
//   bare_monitor PID gate [--awake MICROSECONDS] [--deny] [--for SECONDS] CPU...
//     Answers the slots of these CPUs: when the bell is rung, and for some time after that without a bell.
//
// It prints "protected ..." when it is ready, and at its end (SIGTERM, or --for) a line with what it counted.
#include "lararium/driver/qemu.h"
#include "lararium/driver/qemu/memory.h"
#include "lararium/driver/qemu/process.h"

#include "bare_program.h"
#include "layout.h"

#include <algorithm>
#include <cstring>
#include <fcntl.h>
#include <fmt/format.h>
#include <iostream>
#include <string>
#include <string_view>
#include <sys/mman.h>
#include <sys/resource.h>
#include <thread>
#include <vector>

namespace lararium {
namespace {

struct Arguments {
  std::string vm;
  bool gate = false, ask = false, deny = false;
  microseconds awake{0};
  double seconds = 1e9;
  std::vector<std::uint64_t> places;
};

Result<Arguments> parse(const std::vector<std::string_view> &words) {
  Arguments arguments;
  if (words.size() < 2 || (words[1] != "hold" && words[1] != "gate"))
    return fail(ErrorCode::usage, "bare_monitor PID hold|gate ... (see the source)");
  arguments.vm = words[0];
  arguments.gate = words[1] == "gate";
  for (std::size_t i = 2; i < words.size(); ++i) {
    if (words[i] == "--ask") {
      arguments.ask = true;
    } else if (words[i] == "--deny") {
      arguments.deny = true;
    } else if (words[i].starts_with("--") && i + 1 < words.size()) {
      TRY_ASSIGN(const auto value, number(words[i + 1]));
      if (words[i] == "--for")
        arguments.seconds = static_cast<double>(value);
      else if (words[i] == "--awake")
        arguments.awake = microseconds(value);
      else
        return fail(ErrorCode::usage, fmt::format("no option: {}", words[i]));
      ++i;
    } else {
      TRY_ASSIGN(const auto place, number(words[i]));
      if (arguments.gate && place >= BARE_MAX_CPUS)
        return fail(ErrorCode::usage, "no such CPU");
      arguments.places.push_back(place);
    }
  }
  return arguments;
}

// Some of the guest's RAM, to write to: where it is shared.
class Window {
public:
  static Result<Window> open(const qemu::Process &process, Hva begin, std::uint64_t size) {
    TRY_ASSIGN(const auto mappings, process.mappings());
    const auto found = std::ranges::find_if(
        mappings, [&](const auto &mapping) { return begin >= mapping.begin && begin + size <= mapping.end; });
    if (found == mappings.end() || !found->shared)
      return fail(ErrorCode::unsupported, "the guest's memory is not shared");
    const UniqueFd file(
        ::open(process.path(fmt::format("map_files/{:x}-{:x}", found->begin.value, found->end.value)).c_str(), O_RDWR));
    Window window;
    window.size_ = size;
    window.address_ = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(),
                             static_cast<off_t>(found->offset + (begin - found->begin)));
    if (window.address_ == MAP_FAILED)
      return fail_errno("cannot map the guest's memory", errno);
    return window;
  }
  Window(Window &&other) noexcept : address_(std::exchange(other.address_, MAP_FAILED)), size_(other.size_) {}
  Window &operator=(Window &&) = delete;
  Window(const Window &) = delete;
  Window &operator=(const Window &) = delete;
  ~Window() {
    if (address_ != MAP_FAILED)
      ::munmap(address_, size_);
  }
  template <class T> T *at(std::uint64_t offset) const {
    return reinterpret_cast<T *>(static_cast<std::byte *>(address_) + offset);
  }

private:
  Window() = default;
  void *address_ = MAP_FAILED;
  std::uint64_t size_ = 0;
};

struct Counts {
  std::uint64_t faults = 0, events = 0, polled = 0, strangers = 0;
  Clock::duration handling{}, longest_handling{}; // from a fault that is known to the release
};

class Monitor {
public:
  Monitor(const Arguments &arguments, Target &target, WriteProtection &protection)
      : arguments_(arguments), target_(target), protection_(protection) {}

  // A write of the guest's that was held, up to where the page is protected again.
  Result<void> hold() {
    for (const std::uint64_t place : arguments_.places)
      TRY(arm(Gpa{place}));
    announce();
    std::vector<WriteFault> faults(8);
    while (!over()) {
      TRY_ASSIGN(const std::size_t count, protection_.wait(faults, 50ms));
      const auto since = Clock::now();
      for (std::size_t i = 0; i < count; ++i) {
        const WriteFault &fault = faults[i];
        ++counts_.faults;
        const auto place = std::ranges::find_if(
            arguments_.places, [&](std::uint64_t each) { return unit(Gpa{each}) == unit(fault.address); });
        if (place == arguments_.places.end()) {
          ++counts_.strangers;
          TRY(release(fault.address));
          continue;
        }
        if (arguments_.ask) {
          std::cout << fmt::format("fault address={} exact={} vcpu={}", fault.address.value, fault.exact ? 1 : 0,
                                   fault.vcpu ? static_cast<int>(*fault.vcpu) : -1)
                    << '\n'
                    << std::flush;
          std::string line;
          if (!std::getline(std::cin, line))
            ended = true;
        }
        const std::uint64_t before = word(Gpa{*place});
        TRY(release(fault.address));
        note_handling(since);
        counts_.events += wait_for([&] { return word(Gpa{*place}) != before; }) ? 1 : 0;
        TRY(arm(Gpa{*place}));
        if (arguments_.ask)
          std::cout << "protected" << '\n' << std::flush;
      }
    }
    return {};
  }

  Result<void> gate(const Window &window) {
    control_ = window.at<bare_control>(0);
    for (const std::uint64_t cpu : arguments_.places) {
      slots_.push_back(window.at<bare_slot>(BARE_SLOTS - BARE_CONTROL + cpu * page_size));
      TRY(arm(bell(cpu)));
    }
    announce();
    std::vector<WriteFault> faults(8);
    while (!over()) {
      TRY_ASSIGN(const std::size_t count, protection_.wait(faults, 50ms));
      if (count == 0)
        continue;
      TRY(take_bells(faults, count));
      // No bell is needed as long as we look at the slots.
      auto until = Clock::now() + arguments_.awake;
      for (unsigned i = 1; Clock::now() < until; ++i) {
        if (answer_all()) {
          until = Clock::now() + arguments_.awake;
          continue;
        }
        if (i % 64 == 0) { // who rang before it saw that we are awake
          TRY_ASSIGN(const std::size_t more, protection_.wait(faults, 0us));
          TRY(take_bells(faults, more));
        }
        __builtin_ia32_pause();
      }
      for (const std::uint64_t cpu : open_)
        TRY(arm(bell(cpu)));
      open_.clear();
      set_awake(0);
      answer_all(); // who saw us awake and does not ring
    }
    return {};
  }

  [[nodiscard]] const Counts &counts() const { return counts_; }

private:
  // That a store takes once it is let go: the vCPU's thread may have to wait for a processor, perhaps for ours.
  static constexpr microseconds patience = 50ms, spinning = 30us;
  template <class Predicate> static bool wait_for(Predicate &&come) {
    const auto begin = Clock::now();
    while (!come()) {
      const auto waited = Clock::now() - begin;
      if (waited > patience)
        return false;
      if (waited > spinning)
        std::this_thread::sleep_for(20us);
      else
        __builtin_ia32_pause();
    }
    return true;
  }

  static Gpa bell(std::uint64_t cpu) { return Gpa{BARE_BELLS + cpu * BARE_BLOCK}; }
  [[nodiscard]] std::uint64_t unit(Gpa address) const { return address.value / protection_.unit_at(address); }
  [[nodiscard]] Result<void> arm(Gpa address) {
    const std::uint64_t size = protection_.unit_at(address);
    return protection_.protect(Gpa{address.value / size * size}, size);
  }
  [[nodiscard]] Result<void> release(Gpa address) {
    const std::uint64_t size = protection_.unit_at(address);
    return protection_.release(Gpa{address.value / size * size}, size);
  }
  std::uint64_t word(Gpa address) {
    std::uint64_t value = 0;
    target_.memory->refresh();
    static_cast<void>(target_.memory->read(address, writable_bytes_of(value)));
    return value;
  }
  void announce() {
    std::cout << "protected" << '\n' << std::flush;
    begin_ = Clock::now();
  }
  [[nodiscard]] bool over() const {
    return ended || Clock::now() - begin_ > std::chrono::duration<double>(arguments_.seconds);
  }
  void note_handling(Clock::time_point since) {
    const auto took = Clock::now() - since;
    counts_.handling += took;
    counts_.longest_handling = std::max(counts_.longest_handling, took);
  }

  void set_awake(std::uint64_t value) { __atomic_store_n(&control_->awake, value, __ATOMIC_SEQ_CST); }
  bool answer(bare_slot *slot) {
    if (__atomic_load_n(&slot->state, __ATOMIC_ACQUIRE) != BARE_SLOT_ASKED)
      return false;
    slot->verdict = arguments_.deny ? 1 : 0;
    __atomic_store_n(&slot->state, std::uint64_t{BARE_SLOT_ANSWERED}, __ATOMIC_RELEASE);
    ++counts_.events;
    return true;
  }
  bool answer_all() {
    bool any = false;
    for (bare_slot *slot : slots_)
      if (answer(slot)) {
        any = true;
        ++counts_.polled;
      }
    return any;
  }

  // Lets those go on who rang, with their answer, and waits until their bells' bytes are there: protected earlier, the
  // page would stop them again.
  Result<void> take_bells(const std::vector<WriteFault> &faults, std::size_t count) {
    if (count == 0)
      return {};
    const auto since = Clock::now();
    set_awake(1);
    for (std::size_t i = 0; i < count; ++i) {
      ++counts_.faults;
      const auto place = std::ranges::find_if(
          arguments_.places, [&](std::uint64_t cpu) { return unit(bell(cpu)) == unit(faults[i].address); });
      if (place != arguments_.places.end()) {
        answer(slots_[static_cast<std::size_t>(place - arguments_.places.begin())]);
        if (std::ranges::find(open_, *place) == open_.end())
          open_.push_back(*place);
      } else {
        ++counts_.strangers;
      }
      const auto before = place != arguments_.places.end() ? word(bell(*place)) & 0xff : 0;
      TRY(release(faults[i].address));
      note_handling(since);
      if (place == arguments_.places.end())
        continue;
      wait_for([&] { return (word(bell(*place)) & 0xff) != before; });
    }
    return {};
  }

  const Arguments &arguments_;
  Target &target_;
  WriteProtection &protection_;
  bare_control *control_ = nullptr;
  std::vector<bare_slot *> slots_;
  std::vector<std::uint64_t> open_; // CPUs whose bells are not protected
  Counts counts_;
  Clock::time_point begin_;
};

double cpu_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval &time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

Result<void> run(const Arguments &arguments) {
  TRY_ASSIGN(const auto vm, qemu::find(arguments.vm));
  TRY_ASSIGN(Target target, qemu::attach(vm));
  TRY_ASSIGN(const auto start, target.protector->begin());
  Monitor monitor(arguments, target, *start.protection);
  const double cpu_before = cpu_seconds();
  const auto begin = Clock::now();
  if (arguments.gate) {
    const auto *memory = dynamic_cast<const qemu::QemuMemory *>(target.memory.get());
    const auto host = memory != nullptr ? memory->host_address(Gpa{BARE_CONTROL}) : std::nullopt;
    if (!host)
      return fail(ErrorCode::not_found, "QEMU has no such memory");
    TRY_ASSIGN(const auto process, qemu::Process::open(vm.pid, vm.start_ticks));
    TRY_ASSIGN(const auto window, Window::open(process, *host, BARE_SLOTS - BARE_CONTROL + BARE_MAX_CPUS * page_size));
    TRY(monitor.gate(window));
  } else {
    TRY(monitor.hold());
  }
  const auto us = [](Clock::duration time) { return std::chrono::duration<double, std::micro>(time).count(); };
  const Counts &counts = monitor.counts();
  std::cout << fmt::format(
                   R"({{"seconds": {:.6f}, "cpu_seconds": {:.6f}, "faults": {}, "events": {}, "polled": {}, )"
                   R"("strangers": {}, "stopped_us": {:.1f}, "handling_us": {:.2f}, "longest_handling_us": {:.1f}}})",
                   std::chrono::duration<double>(Clock::now() - begin).count(), cpu_seconds() - cpu_before,
                   counts.faults, counts.events, counts.polled, counts.strangers, us(start.stopped),
                   counts.faults != 0 ? us(counts.handling) / static_cast<double>(counts.faults) : 0.0,
                   us(counts.longest_handling))
            << '\n'
            << std::flush;
  return {};
}

} // namespace
} // namespace lararium

int main(int argc, char **argv) {
  return lararium::run_until_ended("bare_monitor", {argv + 1, argv + argc}, lararium::parse, lararium::run);
}
