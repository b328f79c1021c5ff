// Livewire's NIC access enforcer: who makes a network interface of the VM's take packets that are for others, or gives
// it another address, is told of, and on request its cable is pulled until that is taken back. The VMM says so, not the
// guest; the guest's word is asked for one thing alone, whether the interface is in use.
#pragma once

#include "lararium/os/common/operating_system.h"
#include "lararium/record/record.h"
#include "lararium/vm/nics.h"

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace lararium::gate {

struct NicTiming {
  std::chrono::milliseconds interval{1000}; // between looks
  std::chrono::milliseconds again{200};     // after something was seen: a driver that starts passes through much
};

class NicGuard {
public:
  using Clock = std::chrono::steady_clock;
  // A cable to be pulled or plugged in, and what is to be told of it.
  struct Order {
    std::string nic;
    bool up = false;
    Record record;
  };

  // `system` must outlive it. With `deny` orders are given.
  NicGuard(OperatingSystem &system, bool deny, NicTiming timing = {}) : system_(system), deny_(deny), timing_(timing) {}

  [[nodiscard]] Clock::time_point due() const { return due_; }
  void look_soon(Clock::time_point now) { due_ = now; }
  // One look at what the VMM tells.
  void look(const std::vector<Nic> &nics, Clock::time_point now, std::vector<Record> &out);
  // What has to be done next; to be carried out by who may wait for the VMM, and told of by finish().
  [[nodiscard]] std::vector<Order> take_orders();
  void finish(Order order, const Result<void> &done, std::vector<Record> &out);
  // NICs whose cable is pulled.
  [[nodiscard]] std::vector<std::string> pulled() const;

private:
  struct State {
    std::string mac;
    bool promiscuous = false, other_mac = false; // told of
    unsigned looks = 0;                          // that saw what is not told of yet
    bool pulled = false;
  };
  [[nodiscard]] bool is_in_use(const std::string &mac);
  [[nodiscard]] static Record record_of(const Nic &nic, bool lawful, std::string sentence);

  OperatingSystem &system_;
  bool deny_;
  NicTiming timing_;
  std::map<std::string, State> states_;
  std::vector<Order> orders_;
  Clock::time_point due_{};
};

} // namespace lararium::gate
