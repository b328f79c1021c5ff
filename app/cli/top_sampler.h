// What `top` shows: rates between two looks at a VM, from the VMM's counters and the guest's own.
#pragma once

#include "lararium/os/common/operating_system.h"
#include "lararium/vm/target.h"

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace lararium::cli {

struct TopSample {
  double seconds = 0; // between the two looks
  // From the VMM; empty where it tells nothing.
  std::optional<double> host_cpu_percent; // of the whole VMM process
  std::uint64_t host_resident_bytes = 0;
  struct Vcpu {
    std::uint32_t index = 0;
    double percent = 0;
  };
  std::vector<Vcpu> vcpus;
  struct Disk {
    std::string device;
    double read_bytes = 0, written_bytes = 0, reads = 0, writes = 0; // a second
    bool used = false;                                               // since the VM's start; an empty CD drive is not
  };
  std::vector<Disk> disks;
  struct Network {
    std::string device;
    double received_bytes = 0, sent_bytes = 0, received_packets = 0, sent_packets = 0; // a second
  };
  std::vector<Network> networks;
  bool networks_from_guest = false; // the VMM does not count: these are what the guest says
  // From the guest; empty where its operating system is not understood.
  std::optional<SystemInfo> system;
  struct Task {
    Process process;
    double cpu_percent = 0;
  };
  std::vector<Task> tasks;
  ViewStatus status;
};

enum class TopOrder : std::uint8_t { cpu, memory, pid };

void sort_tasks(std::vector<TopSample::Task> &tasks, TopOrder order);

class TopSampler {
public:
  // `system` may be null.
  TopSampler(Target &target, OperatingSystem *system) : target_(target), system_(system) {}
  // The first look, from which the first sample counts.
  [[nodiscard]] Result<void> start();
  [[nodiscard]] Result<TopSample> sample();

private:
  using Clock = std::chrono::steady_clock;
  struct Look {
    Clock::time_point time;
    std::optional<VmStatistics> statistics;
    std::vector<NetworkCounters> guest_networks;
    std::vector<Process> processes;
    ViewStatus status;
  };
  [[nodiscard]] Result<Look> look();

  Target &target_;
  OperatingSystem *system_;
  Look before_;
};

} // namespace lararium::cli
