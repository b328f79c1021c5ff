#include "ports.h"

#include "lararium/driver/qemu/monitor_text.h"

#include <algorithm>
#include <charconv>
#include <ctime>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <unistd.h>

namespace lararium::qemu {
namespace {

using nlohmann::json;

constexpr std::size_t max_elements = 1 << 13; // of a list of vCPUs or disks

std::uint64_t unsigned_in(const json &object, const char *key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_number_unsigned() ? it->get<std::uint64_t>() : 0;
}

std::string string_in(const json &object, const char *key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : std::string();
}

// A paused guest stays paused when we end: QEMU has no way to tie that to a connection. ScopedPause keeps it short.
class QemuRunControl final : public RunControl {
public:
  explicit QemuRunControl(std::shared_ptr<Session> session) : session_(std::move(session)) {}
  Result<RunState> state() override {
    TRY_ASSIGN(const auto monitor, session_->open_monitor());
    return ask_state(*monitor);
  }
  Result<void> pause() override { return command("stop", RunState::paused); }
  Result<void> resume() override { return command("cont", RunState::running); }

private:
  Result<void> command(std::string_view name, RunState wanted) {
    TRY_ASSIGN(const auto monitor, session_->open_monitor());
    if (monitor->speaks_qmp()) {
      TRY(monitor->qmp(name));
      return {};
    }
    // The human monitor prints a sentence instead of an error, and nothing when all is well.
    TRY_ASSIGN(const auto answer, monitor->hmp(name));
    TRY_ASSIGN(const auto now, ask_state(*monitor));
    if (now != wanted)
      return fail(ErrorCode::protocol, fmt::format("QEMU refuses {}: {}", name, answer));
    return {};
  }
  std::shared_ptr<Session> session_;
};

class QemuStatistics final : public Statistics {
public:
  explicit QemuStatistics(std::shared_ptr<Session> session) : session_(std::move(session)) {}

  Result<VmStatistics> sample() override {
    const auto &process = session_->process;
    VmStatistics result;
    // The kernel counts a process's CPU time in nanoseconds; /proc/PID/stat has it in ticks only.
    clockid_t clock{};
    timespec time{};
    if (::clock_getcpuclockid(process.pid(), &clock) == 0 && ::clock_gettime(clock, &time) == 0)
      result.host_nanoseconds =
          static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(time.tv_nsec);
    if (const auto text = read_small_file(process.path("statm"), page_size)) {
      // The second number is the resident set in pages.
      const auto blank = text->find(' ');
      std::uint64_t pages = 0;
      if (blank != std::string::npos)
        std::from_chars(text->data() + blank + 1, text->data() + text->size(), pages);
      result.host_resident_bytes = pages * static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
    }
    std::vector<std::pair<std::uint32_t, pid_t>> threads;
    if (!session_->monitors.empty()) {
      TRY_ASSIGN(const auto monitor, session_->open_monitor());
      if (monitor->speaks_qmp()) {
        threads = vcpu_threads(*monitor);
        TRY_ASSIGN(result.disks, disks(*monitor));
      } else {
        TRY_ASSIGN(const auto text, monitor->hmp("info blockstats"));
        result.disks = parse_block_counters(text);
      }
    }
    if (threads.empty())
      threads = vcpu_threads_by_name(process);
    for (const auto &[index, thread] : threads)
      if (const auto text = read_small_file(process.path(fmt::format("task/{}/schedstat", thread)), page_size)) {
        VcpuTime vcpu{.index = index};
        std::from_chars(text->data(), text->data() + text->size(), vcpu.host_nanoseconds);
        result.vcpus.push_back(vcpu);
      }
    result.networks = networks();
    if (!process.alive())
      return process.explain({});
    return result;
  }

private:
  static Result<std::vector<BlockCounters>> disks(Monitor &monitor) {
    TRY_ASSIGN(const auto answer, monitor.qmp("query-blockstats"));
    const auto list = json::parse(answer, nullptr, false);
    std::vector<BlockCounters> result;
    if (!list.is_array())
      return fail(ErrorCode::protocol, "QEMU's disk counters are not understood");
    for (const auto &disk : list) {
      if (!disk.is_object() || result.size() == max_elements)
        continue;
      const auto stats = disk.find("stats");
      if (stats == disk.end() || !stats->is_object())
        continue;
      BlockCounters counters;
      // A disk of -blockdev has no name of its own, but its node and its device have.
      for (const char *key : {"device", "qdev", "node-name"})
        if (counters.device.empty())
          counters.device = string_in(disk, key);
      counters.read_bytes = unsigned_in(*stats, "rd_bytes");
      counters.written_bytes = unsigned_in(*stats, "wr_bytes");
      counters.read_operations = unsigned_in(*stats, "rd_operations");
      counters.write_operations = unsigned_in(*stats, "wr_operations");
      result.push_back(std::move(counters));
    }
    return result;
  }

  // QEMU counts no packets, but the kernel does for each tap interface. What the host receives the guest has sent.
  std::optional<std::vector<NetworkCounters>> networks() const {
    const auto &process = session_->process;
    const auto descriptors = process.descriptors();
    if (!descriptors)
      return std::nullopt;
    const auto names = tap_interfaces(process, *descriptors);
    const auto text = read_small_file(process.path("net/dev"), 16 << 20);
    if (names.empty() || !text)
      return std::nullopt;
    std::vector<NetworkCounters> result;
    for (const auto &counters : parse_net_dev(*text))
      if (std::ranges::find(names, counters.name) != names.end())
        result.push_back({counters.name, counters.sent_bytes, counters.received_bytes, counters.sent_packets,
                          counters.received_packets});
    return result;
  }

  std::shared_ptr<Session> session_;
};

class QemuLiveness final : public Liveness {
public:
  explicit QemuLiveness(std::shared_ptr<Session> session) : session_(std::move(session)) {}
  bool alive() const override { return session_->process.alive(); }
  int descriptor() const override { return session_->process.pidfd(); }

private:
  std::shared_ptr<Session> session_;
};

} // namespace

Result<RunState> ask_state(Monitor &monitor) {
  if (!monitor.speaks_qmp()) {
    TRY_ASSIGN(const auto text, monitor.hmp("info status"));
    return parse_run_state(text);
  }
  TRY_ASSIGN(const auto answer, monitor.qmp("query-status"));
  const auto status = json::parse(answer, nullptr, false);
  if (!status.is_object())
    return fail(ErrorCode::protocol, "QEMU's state is not understood");
  return run_state_of(string_in(status, "status"));
}

std::vector<std::pair<std::uint32_t, pid_t>> vcpu_threads(Monitor &monitor) {
  std::vector<std::pair<std::uint32_t, pid_t>> result;
  if (!monitor.speaks_qmp()) {
    // "* CPU #0: thread_id=123"
    const auto text = monitor.hmp("info cpus");
    constexpr std::string_view number = "CPU #", thread = "thread_id=";
    const auto value_at = [&](std::size_t at) {
      std::uint32_t value = 0;
      std::from_chars(text->data() + at, text->data() + text->size(), value);
      return value;
    };
    for (std::size_t at = text ? text->find(number) : std::string::npos;
         at != std::string::npos && result.size() < max_elements; at = text->find(number, at + 1))
      if (const auto id = text->find(thread, at); id < text->find('\n', at))
        result.emplace_back(value_at(at + number.size()), static_cast<pid_t>(value_at(id + thread.size())));
    return result;
  }
  const auto answer = monitor.qmp("query-cpus-fast");
  const auto list = answer ? json::parse(*answer, nullptr, false) : json();
  if (!list.is_array())
    return result;
  for (const auto &vcpu : list)
    if (vcpu.is_object() && result.size() < max_elements)
      result.emplace_back(static_cast<std::uint32_t>(unsigned_in(vcpu, "cpu-index")),
                          static_cast<pid_t>(unsigned_in(vcpu, "thread-id")));
  return result;
}

// "CPU 0/KVM": with debug-threads=on, as libvirt sets it.
std::vector<std::pair<std::uint32_t, pid_t>> vcpu_threads_by_name(const Process &process) {
  std::vector<std::pair<std::uint32_t, pid_t>> result;
  for (const auto &[thread, name] : process.threads()) {
    constexpr std::string_view prefix = "CPU ";
    std::uint32_t index = 0;
    if (name.starts_with(prefix) &&
        std::from_chars(name.data() + prefix.size(), name.data() + name.size(), index).ec == std::errc())
      result.emplace_back(index, thread);
  }
  std::ranges::sort(result);
  return result;
}

std::vector<std::string> tap_interfaces(const Process &process, const std::vector<OpenDescriptor> &descriptors) {
  std::vector<std::string> names;
  for (const auto &descriptor : descriptors) {
    if (descriptor.target != "/dev/net/tun")
      continue;
    const auto text = read_small_file(process.path(fmt::format("fdinfo/{}", descriptor.number)), 64 << 10);
    if (!text)
      continue;
    constexpr std::string_view key = "iff:\t"; // drivers/net/tun.c, tun_chr_show_fdinfo()
    const auto at = text->find(key);
    if (at == std::string::npos)
      continue;
    auto name = text->substr(at + key.size());
    name.resize(std::min(name.find('\n'), name.size()));
    // A multiqueue interface has a descriptor for each queue.
    if (!name.empty() && std::ranges::find(names, name) == names.end())
      names.push_back(std::move(name));
  }
  return names;
}

std::unique_ptr<RunControl> make_run_control(std::shared_ptr<Session> session) {
  return std::make_unique<QemuRunControl>(std::move(session));
}
std::unique_ptr<Statistics> make_statistics(std::shared_ptr<Session> session) {
  return std::make_unique<QemuStatistics>(std::move(session));
}
std::unique_ptr<Liveness> make_liveness(std::shared_ptr<Session> session) {
  return std::make_unique<QemuLiveness>(std::move(session));
}

} // namespace lararium::qemu
