// One process that attaches to a VM or a dump and looks at all of it once, as the command line would, and prints what
// each step took, as JSON. bench/run starts it again for every sample: nothing is warm but the page cache.
//
//   bench_target TARGET CACHE [REPEATS]     CACHE: a directory of profiles, which may be empty
#include "lararium/base/mapping.h"
#include "lararium/driver/dump.h"
#include "lararium/driver/qemu.h"
#include "lararium/os/linux.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fmt/format.h>
#include <fstream>
#include <iterator>
#include <string>
#include <unistd.h>
#include <vector>

namespace {

using namespace lararium;

double milliseconds(clockid_t clock) {
  timespec time{};
  ::clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) / 1e6;
}

struct Cost {
  double wall = 0, cpu = 0; // milliseconds
};

template <class Work> Cost cost_of(Work &&work) {
  const double cpu = milliseconds(CLOCK_PROCESS_CPUTIME_ID), wall = milliseconds(CLOCK_MONOTONIC);
  work();
  return {milliseconds(CLOCK_MONOTONIC) - wall, milliseconds(CLOCK_PROCESS_CPUTIME_ID) - cpu};
}

std::string json(const Cost &cost) { return fmt::format("[{:.4f},{:.4f}]", cost.wall, cost.cpu); }

template <class T> T must(Result<T> result, const char *what) {
  if (!result) {
    fmt::print(stderr, "{}: {}\n", what, result.error().describe());
    std::exit(1);
  }
  return std::move(*result);
}

// What is resident in this process, in KiB. The guest's pages (or the dump's) that are mapped here are the guest's: the
// host has them anyhow.
struct Resident {
  std::uint64_t guest = 0, files = 0, anonymous = 0;
};

Resident resident(const PhysicalMemory &memory) {
  std::vector<std::uint64_t> guest;
  for (const auto &range : memory.ranges())
    guest.push_back(reinterpret_cast<std::uint64_t>(memory.view(range.base).data()));
  Resident result;
  std::ifstream lines("/proc/self/smaps");
  bool of_guest = false, has_file = false;
  for (std::string line; std::getline(lines, line);) {
    std::uint64_t begin = 0, end = 0, size = 0;
    char path[16] = "";
    if (std::sscanf(line.c_str(), "%lx-%lx %*s %*s %*s %*s %15s", &begin, &end, path) >= 2) {
      of_guest = std::ranges::any_of(guest, [&](std::uint64_t at) { return at >= begin && at < end; });
      has_file = path[0] == '/';
    } else if (std::sscanf(line.c_str(), "Rss: %lu kB", &size) == 1) {
      (of_guest ? result.guest : has_file ? result.files : result.anonymous) += size;
    }
  }
  return result;
}

// What the first look at a mapped guest cannot do without here: its page faults alone. The places where memory is
// mapped by now are touched once more, through a mapping that is new; nothing where the guest is not mapped.
struct BareFaults {
  Cost cost;
  std::size_t faults = 0;
};

BareFaults bare_faults(const PhysicalMemory &memory) {
  constexpr std::size_t around = 64 << 10, page_bytes = 4096,
                        pages_in_window = around / page_bytes; // what a fault maps
  BareFaults result;
  std::FILE *const pagemap = std::fopen("/proc/self/pagemap", "rb");
  if (pagemap == nullptr)
    return result;
  for (const auto &range : memory.shared_ranges()) {
    const auto *const seen = memory.view(range.base).data();
    auto fresh = Mapping::map_file(range.descriptor, range.offset, range.size);
    if (seen == nullptr || !fresh)
      continue;
    std::vector<std::uint64_t> words(range.size / page_bytes);
    if (std::fseek(pagemap, static_cast<long>(reinterpret_cast<std::uintptr_t>(seen) / page_bytes * sizeof words[0]),
                   SEEK_SET) != 0 ||
        std::fread(words.data(), sizeof words[0], words.size(), pagemap) != words.size())
      continue;
    std::vector<std::size_t> windows;
    for (std::size_t page = 0; page < words.size(); ++page)
      if ((words[page] >> 63) != 0 && (windows.empty() || windows.back() != page / pages_in_window))
        windows.push_back(page / pages_in_window);
    const Cost cost = cost_of([&] {
      for (const std::size_t window : windows)
        static_cast<void>(*static_cast<const volatile std::byte *>(fresh->bytes().data() + window * around));
    });
    result.cost.wall += cost.wall;
    result.cost.cpu += cost.cpu;
    result.faults += windows.size();
  }
  std::fclose(pagemap);
  return result;
}

std::string json(const Resident &value) {
  return fmt::format(R"({{"guest":{},"files":{},"anonymous":{}}})", value.guest, value.files, value.anonymous);
}

} // namespace

int main(int argc, char **argv) {
  if (argc < 3) {
    fmt::print(stderr, "usage: bench_target TARGET CACHE [REPEATS]\n");
    return 2;
  }
  const std::string name = argv[1];
  const ProfileCache cache(argv[2]);
  const int repeats = argc > 3 ? std::atoi(argv[3]) : 20;

  const bool is_dump = name.find('/') != std::string::npos;
  qemu::VmSummary vm;
  Target target;
  std::unique_ptr<OperatingSystem> system;
  linux_guest::AttachReport report;
  const Cost find = cost_of([&] {
    if (!is_dump)
      vm = must(qemu::find(name), "find");
  });
  const Cost open = cost_of([&] { target = must(is_dump ? open_dump(name) : qemu::attach(vm), "attach"); });
  const Cost attach = cost_of(
      [&] { system = must(linux_guest::attach(target, {.cache = &cache, .profile = nullptr}, &report), "kernel"); });

  std::size_t tasks = 0;
  const auto list = [&] { tasks = must(system->processes({}), "processes").items.size(); };
  const BareFaults before = bare_faults(*target.memory);
  const Cost first = cost_of(list);
  const BareFaults after = bare_faults(*target.memory);
  std::vector<double> again, again_cpu;
  for (int i = 0; i < repeats; ++i) {
    system->refresh();
    const Cost cost = cost_of(list);
    again.push_back(cost.wall);
    again_cpu.push_back(cost.cpu);
  }
  const Resident after_processes = resident(*target.memory);

  std::string views;
  const auto view = [&](const char *label, auto &&make) {
    std::string failure;
    const Cost cost = cost_of([&] {
      if (const auto result = make(); !result)
        failure = result.error().describe();
    });
    if (failure.empty())
      views += fmt::format(R"({}"{}":{})", views.empty() ? "" : ",", label, json(cost));
    else
      fmt::print(stderr, "{}: {}\n", label, failure);
  };
  view("info", [&] { return system->info(); });
  view("modules", [&] { return system->modules(); });
  view("maps of pid 1", [&] { return system->memory_regions(1); });
  view("files", [&] { return system->open_files({}); });
  view("sockets", [&] { return system->sockets(); });
  view("mounts", [&] { return system->mounts({}); });
  view("interfaces", [&] { return system->interfaces(); });
  view("dmesg", [&] { return system->kernel_log(); });
  view("bpf", [&] { return system->bpf(); });
  view("threads", [&] { return system->processes({.threads = true, .only_pids = {}}); });
  std::size_t symbols = 0;
  const Cost symbol_cost = cost_of([&] {
    system->for_each_symbol([&](const KernelSymbol &) {
      ++symbols;
      return true;
    });
  });
  views += fmt::format(R"({}"symbols":{})", views.empty() ? "" : ",", json(symbol_cost));

  const auto joined = [](const std::vector<double> &values) {
    std::string text;
    for (const double value : values)
      text += fmt::format("{}{:.4f}", text.empty() ? "" : ",", value);
    return text;
  };
  fmt::print(R"({{"find":{},"open":{},"attach":{},"profile":"{}","tasks":{},"first":{},"again":[{}],"again_cpu":[{}],)"
             R"("bare_faults":{},"bare_fault_cost":{},)"
             R"("resident_after_ps":{},"resident":{},"views":{{{}}}}})"
             "\n",
             json(find), json(open), json(attach), report.profile_source, tasks, json(first), joined(again),
             joined(again_cpu), after.faults - before.faults,
             json(Cost{after.cost.wall - before.cost.wall, after.cost.cpu - before.cost.cpu}), json(after_processes),
             json(resident(*target.memory)), views);
}
