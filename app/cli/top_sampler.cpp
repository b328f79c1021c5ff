#include "top_sampler.h"

#include <algorithm>

namespace lararium::cli {
namespace {

// Counters of a guest may go backwards (a lie, a reset device, a new process under an old pid): that is no rate.
double rate(std::uint64_t before, std::uint64_t now, double seconds) {
  return now < before || seconds <= 0 ? 0 : static_cast<double>(now - before) / seconds;
}

template <class List, class Name> const auto *find_named(const List &list, const Name &name) {
  const auto found = std::ranges::find(list, name, &List::value_type::device);
  return found == list.end() ? nullptr : &*found;
}

} // namespace

Result<TopSampler::Look> TopSampler::look() {
  if (target_.liveness && !target_.liveness->alive())
    return fail(ErrorCode::gone, "the VM ended");
  Look now;
  now.time = Clock::now();
  if (target_.statistics) {
    auto statistics = target_.statistics->sample();
    if (statistics)
      now.statistics = std::move(*statistics);
    else if (statistics.error().code == ErrorCode::gone)
      return std::unexpected(statistics.error());
  }
  if (system_ == nullptr)
    return now;
  system_->refresh();
  TRY_ASSIGN(auto view, system_->processes({}));
  now.processes = std::move(view.items);
  now.status = std::move(view.status);
  if (!now.statistics || !now.statistics->networks)
    if (const auto interfaces = system_->interfaces())
      for (const NetworkInterface &interface : interfaces->items)
        if (interface.kind != "loopback")
          now.guest_networks.push_back({interface.name, interface.received_bytes, interface.sent_bytes,
                                        interface.received_packets, interface.sent_packets});
  return now;
}

Result<void> TopSampler::start() {
  TRY_ASSIGN(before_, look());
  return {};
}

Result<TopSample> TopSampler::sample() {
  TRY_ASSIGN(Look now, look());
  TopSample sample;
  sample.seconds = std::chrono::duration<double>(now.time - before_.time).count();
  const double seconds = sample.seconds;
  const auto percent = [&](std::uint64_t before, std::uint64_t after) { return rate(before, after, seconds) / 1e7; };

  if (now.statistics) {
    const VmStatistics empty;
    const VmStatistics &old = before_.statistics ? *before_.statistics : empty;
    const VmStatistics &current = *now.statistics;
    sample.host_resident_bytes = current.host_resident_bytes;
    if (before_.statistics)
      sample.host_cpu_percent = percent(old.host_nanoseconds, current.host_nanoseconds);
    for (const VcpuTime &vcpu : current.vcpus) {
      const auto same = std::ranges::find(old.vcpus, vcpu.index, &VcpuTime::index);
      sample.vcpus.push_back(
          {vcpu.index, same == old.vcpus.end() ? 0 : percent(same->host_nanoseconds, vcpu.host_nanoseconds)});
    }
    for (const BlockCounters &disk : current.disks)
      if (const auto *same = find_named(old.disks, disk.device))
        sample.disks.push_back({disk.device, rate(same->read_bytes, disk.read_bytes, seconds),
                                rate(same->written_bytes, disk.written_bytes, seconds),
                                rate(same->read_operations, disk.read_operations, seconds),
                                rate(same->write_operations, disk.write_operations, seconds),
                                disk.read_operations + disk.write_operations > 0});
  }
  const bool vmm_counts = now.statistics && now.statistics->networks;
  const std::vector<NetworkCounters> none;
  const auto &networks = vmm_counts ? *now.statistics->networks : now.guest_networks;
  const auto &old_networks = !vmm_counts                                          ? before_.guest_networks
                             : before_.statistics && before_.statistics->networks ? *before_.statistics->networks
                                                                                  : none;
  sample.networks_from_guest = !vmm_counts;
  for (const NetworkCounters &network : networks)
    if (const auto *same = find_named(old_networks, network.device))
      sample.networks.push_back({network.device, rate(same->received_bytes, network.received_bytes, seconds),
                                 rate(same->sent_bytes, network.sent_bytes, seconds),
                                 rate(same->received_packets, network.received_packets, seconds),
                                 rate(same->sent_packets, network.sent_packets, seconds)});

  if (system_ != nullptr) {
    if (auto system = system_->info())
      sample.system = std::move(*system);
    // A pid alone may have been used again.
    std::unordered_map<std::int32_t, const Process *> old;
    old.reserve(before_.processes.size());
    for (const Process &process : before_.processes)
      old.try_emplace(process.pid, &process);
    for (const Process &process : now.processes) {
      TopSample::Task task{process, 0};
      const std::uint64_t used = process.user_time_ns + process.system_time_ns;
      if (const auto found = old.find(process.pid); found != old.end()) {
        const Process &same = *found->second;
        if (same.start_since_boot_ns == process.start_since_boot_ns)
          task.cpu_percent = percent(same.user_time_ns + same.system_time_ns, used);
      } else {
        task.cpu_percent = percent(0, used); // it began between the looks, with all that it used
      }
      sample.tasks.push_back(std::move(task));
    }
    sample.status = now.status;
  }
  before_ = std::move(now);
  return sample;
}

void sort_tasks(std::vector<TopSample::Task> &tasks, TopOrder order) {
  std::ranges::stable_sort(tasks, [order](const TopSample::Task &a, const TopSample::Task &b) {
    if (order == TopOrder::cpu && a.cpu_percent != b.cpu_percent)
      return a.cpu_percent > b.cpu_percent;
    if (order != TopOrder::pid && a.process.rss_bytes != b.process.rss_bytes)
      return a.process.rss_bytes > b.process.rss_bytes;
    return a.process.pid < b.process.pid;
  });
}

} // namespace lararium::cli
