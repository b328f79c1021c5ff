// Watches one VM through all that can happen to it: its guest boots, reboots, is paused, goes back to a snapshot, ends.
#pragma once

#include "plugged_memory.h"
#include "session.h"

#include "lararium/detect/runner.h"
#include "lararium/detect/schedule.h"
#include "lararium/watch/guest_watcher.h"

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace lararium::cli {

struct WatchSettings {
  GuestOptions guest;
  watch::Plan plan;
  std::chrono::milliseconds interval{100};
  bool checks = true;
  detect::Pace pace;
};

class VmWatch {
public:
  using Clock = watch::Clock;

  // `host` and `settings` must outlive the watch.
  [[nodiscard]] static Result<std::unique_ptr<VmWatch>> open(Host &host, const WatchSettings &settings,
                                                             const std::string &name);

  // Does what is due, and adds what happened.
  void step(Clock::time_point now, std::vector<Record> &out);
  [[nodiscard]] Clock::time_point due() const { return due_; }
  [[nodiscard]] bool gone() const { return gone_; }
  [[nodiscard]] const TargetIdentity &identity() const { return target_.identity; }
  [[nodiscard]] watch::GuestCounts counts() const;

private:
  VmWatch(Host &host, const WatchSettings &settings, Target target)
      : host_(host), settings_(settings), target_(std::move(target)) {}

  // What runs in the guest, in the order in which the parts are made and the reverse of that in which they go.
  struct Attached {
    Guest guest;
    std::unique_ptr<watch::GuestWatcher> watcher;
    std::optional<detect::Runner> runner;
    std::optional<detect::Schedule> schedule;
  };

  void look_for_kernel(Clock::time_point now, watch::Records &records);
  void adopt(Guest guest, Clock::time_point now, watch::Records &records);
  void poll(Clock::time_point now, watch::Records &records);
  void look_into_stillness(Clock::time_point now, watch::Records &records);
  void run_checks(Clock::time_point now, watch::Records &records);
  // Memory was plugged in, of which the map that was made at the start knows nothing.
  [[nodiscard]] bool take_new_memory(watch::Records &records);
  void waits_because(const Error &error, watch::Records &records);

  Host &host_;
  const WatchSettings &settings_;
  Target target_;
  std::optional<Attached> attached_;
  watch::GuestCounts earlier_; // of kernels that are gone
  bool lost_ = true;           // the kernel that was attached to, if any, was not there at the last look
  bool gone_ = false, paused_ = false;
  std::string told_why_; // it waits; told once
  PluggedMemory plugged_;
  Clock::time_point due_{}, next_search_{}, next_still_look_{};
  std::chrono::milliseconds still_pause_{1000};
};

} // namespace lararium::cli
