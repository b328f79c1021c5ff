// Looks at one guest again and again, and tells what changed.
#pragma once

#include "lararium/os/common/operating_system.h"
#include "lararium/watch/changes.h"

#include <chrono>
#include <cstdint>
#include <optional>

namespace lararium::watch {

using Clock = std::chrono::steady_clock;

struct Plan { // how often each view is looked at; zero: never
  std::chrono::milliseconds processes{100}, modules{100}, sockets{1000}, mounts{1000}, interfaces{1000}, bpf{2000};
};

// One boot of one kernel: no two have the first process begin at the same nanosecond after boot.
struct BootIdentity {
  Gva kernel_base;
  Gpa kernel_physical_base;
  std::uint64_t first_process_start_ns = 0;
  bool operator==(const BootIdentity &) const = default;
};

struct GuestCounts {
  std::uint64_t polls = 0, records = 0, left_out = 0, unseen = 0;
};

class GuestWatcher {
public:
  // `system` must outlive the watcher.
  GuestWatcher(OperatingSystem &system, const Plan &plan) : system_(system), plan_(plan) {}

  // The first look: what is there before anything happens. `not_found` while the first process has not begun.
  [[nodiscard]] Result<void> start(Clock::time_point now);

  // Looks at what is due, and adds what changed. An error says that this kernel, or this boot of it, is not there any
  // more, or cannot be read.
  [[nodiscard]] Result<void> poll(Clock::time_point now, Records &records);
  void take_findings(const std::vector<CheckRound> &rounds, Records &records) { findings_.update(rounds, records); }

  [[nodiscard]] const BootIdentity &identity() const { return identity_; }
  [[nodiscard]] const GuestCounts &counts() const { return counts_; }
  [[nodiscard]] const Pulse &pulse() const { return pulse_; }
  // Since when the guest's clock stands still: it idles, is paused, or this kernel does not run any more.
  [[nodiscard]] Clock::time_point still_since() const { return still_since_; }

private:
  [[nodiscard]] Result<void> read_pulse(Clock::time_point now, Records &records);
  [[nodiscard]] Result<void> look_at_processes(Records &records);
  [[nodiscard]] Result<bool> take_processes();
  [[nodiscard]] Result<void> look_at_the_rest(Clock::time_point now, Records &records);
  [[nodiscard]] Result<View<Mount>> mounts_of_all_namespaces();
  void count_unseen(Records &records);
  void tell_left_out(Records &records);
  bool is_due(Clock::time_point now, std::chrono::milliseconds every, Clock::time_point &last) const;

  OperatingSystem &system_;
  Plan plan_;
  BootIdentity identity_;
  GuestCounts counts_;
  Pulse pulse_;
  std::optional<std::uint64_t> farthest_uptime_;
  bool ran_ = true; // its clock moved before the last look
  Clock::time_point still_since_{}, whole_look_{};
  struct {
    Clock::time_point processes{}, modules{}, sockets{}, mounts{}, interfaces{}, bpf{};
  } last_;
  std::map<std::uint32_t, std::int32_t> mount_namespaces_; // with a process that lives there
  std::vector<UnseenProcesses::Range> given_out_;
  View<Process> seen_;             // at the last look
  std::vector<ProcessMark> marks_; // of seen_.items; empty: look at all of them
  ProcessChanges processes_;
  UnseenProcesses unseen_;
  ModuleChanges modules_;
  SocketChanges sockets_;
  MountChanges mounts_;
  InterfaceChanges interfaces_;
  BpfChanges bpf_;
  FindingChanges findings_;
};

// The identity of what runs in a guest now; not_found while its first process has not begun.
[[nodiscard]] Result<BootIdentity> identify(OperatingSystem &system);

} // namespace lararium::watch
