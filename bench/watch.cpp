// Watches one dump as if it were many VMs whose guests are busy, and prints what a poll of one of them costs, as JSON.
// A dump stands still, so nothing changes in it: what is measured is the looking, not the telling.
//
//   bench_watch TARGET CACHE COUNT POLLS    CACHE: a directory of profiles
#include "lararium/driver/dump.h"
#include "lararium/os/linux.h"
#include "lararium/watch/guest_watcher.h"

#include <charconv>
#include <cstdlib>
#include <ctime>
#include <fmt/format.h>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

namespace {

using namespace lararium;
using namespace std::chrono_literals;

double cpu_milliseconds() {
  timespec time{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) / 1e6;
}

template <class T> T must(Result<T> result, const char *what) {
  if (!result) {
    fmt::print(stderr, "{}: {}\n", what, result.error().describe());
    std::exit(1);
  }
  return std::move(*result);
}

// Anonymous memory of this process, in KiB.
std::uint64_t anonymous() {
  std::ifstream lines("/proc/self/smaps_rollup");
  std::uint64_t size = 0;
  for (std::string line; std::getline(lines, line);)
    if (line.starts_with("Anonymous:"))
      std::from_chars(line.data() + line.find_first_of("0123456789"), line.data() + line.size(), size);
  return size;
}

struct Watched {
  Target target;
  std::unique_ptr<OperatingSystem> system;
  std::unique_ptr<watch::GuestWatcher> watcher;
};

} // namespace

int main(int argc, char **argv) {
  if (argc != 5) {
    fmt::print(stderr, "usage: bench_watch TARGET CACHE COUNT POLLS\n");
    return 2;
  }
  const auto count = std::strtoul(argv[3], nullptr, 10), polls = std::strtoul(argv[4], nullptr, 10);
  // A guest whose clock stands still is looked at once a second. So here each poll is a second after the last one, and
  // all that is due every second in truth is due every ten.
  constexpr auto step = 1s;
  const watch::Plan plan{.processes = step,
                         .modules = step,
                         .sockets = 10 * step,
                         .mounts = 10 * step,
                         .interfaces = 10 * step,
                         .bpf = 20 * step};
  const ProfileCache cache(argv[2]);
  std::vector<Watched> all(count);
  auto now = watch::Clock::now();
  for (Watched &one : all) {
    one.target = must(open_dump(argv[1]), "open");
    one.system = must(linux_guest::attach(one.target, {.cache = &cache, .profile = nullptr}), "attach");
    one.watcher = std::make_unique<watch::GuestWatcher>(*one.system, plan);
    if (const auto started = one.watcher->start(now); !started) {
      fmt::print(stderr, "watch: {}\n", started.error().describe());
      return 1;
    }
  }
  const double before = cpu_milliseconds();
  for (std::size_t i = 0; i < polls; ++i) {
    now += step;
    for (Watched &one : all) {
      watch::Records records;
      if (const auto polled = one.watcher->poll(now, records); !polled) {
        fmt::print(stderr, "poll: {}\n", polled.error().describe());
        return 1;
      }
    }
  }
  const double cpu = cpu_milliseconds() - before;
  fmt::print(R"({{"cpu_ms_per_poll":{:.4f},"anonymous_kib":{}}})"
             "\n",
             cpu / static_cast<double>(polls * count), anonymous());
  return 0;
}
