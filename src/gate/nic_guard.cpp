#include "lararium/gate/nic_guard.h"

#include <algorithm>
#include <fmt/format.h>
#include <utility>

namespace lararium::gate {
namespace {

constexpr unsigned looks_until_told = 2;
constexpr std::size_t nic_limit = 256;

std::uint64_t host_time() {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch())
          .count());
}

} // namespace

void NicGuard::look(const std::vector<Nic> &nics, Clock::time_point now, std::vector<Record> &out) {
  bool again = false;
  for (const Nic &nic : nics) {
    if (!states_.contains(nic.name) && states_.size() >= nic_limit)
      continue;
    State &state = states_[nic.name];
    const bool other_mac = !nic.mac.empty() && !nic.configured_mac.empty() && nic.mac != nic.configured_mac;
    bool promiscuous = nic.promiscuous.value_or(false);
    if (promiscuous && !state.promiscuous)
      promiscuous = is_in_use(nic.mac);
    if ((promiscuous && !state.promiscuous) || (other_mac && (!state.other_mac || nic.mac != state.mac))) {
      if (++state.looks < looks_until_told) {
        again = true;
        continue;
      }
    }
    state.looks = 0;
    std::vector<Record> fresh;
    if (promiscuous && !state.promiscuous)
      fresh.push_back(record_of(nic, false, "is promiscuous: it takes packets that are for others"));
    else if (!promiscuous && state.promiscuous)
      fresh.push_back(record_of(nic, true, "is promiscuous no more"));
    if (other_mac && (!state.other_mac || nic.mac != state.mac))
      fresh.push_back(
          record_of(nic, false, fmt::format("has the address {}; it was given {}", nic.mac, nic.configured_mac)));
    else if (!other_mac && state.other_mac)
      fresh.push_back(record_of(nic, true, fmt::format("has the address {} again that it was given", nic.mac)));
    state.mac = nic.mac;
    state.promiscuous = promiscuous;
    state.other_mac = other_mac;
    const bool pull = deny_ && (promiscuous || other_mac);
    for (Record &record : fresh) {
      if (pull == state.pulled) {
        record.with("action", std::string("reported"));
        if (record.finding)
          record.finding->evidence = record.fields;
        out.push_back(std::move(record));
        continue;
      }
      state.pulled = pull;
      orders_.push_back({nic.name, !pull, std::move(record)});
    }
  }
  due_ = now + (again ? timing_.again : timing_.interval);
}

std::vector<NicGuard::Order> NicGuard::take_orders() { return std::exchange(orders_, {}); }

void NicGuard::finish(Order order, const Result<void> &done, std::vector<Record> &out) {
  const std::string_view link = order.up ? "link up" : "link down";
  order.record.with("action",
                    done ? std::string(link) : fmt::format("{} could not be had: {}", link, done.error().describe()));
  order.record.sentence += done ? fmt::format("; {}", link) : std::string();
  if (order.record.finding) {
    order.record.finding->evidence = order.record.fields;
    order.record.finding->sentence = order.record.sentence;
  }
  if (!done)
    if (const auto state = states_.find(order.nic); state != states_.end())
      state->second.pulled = order.up;
  out.push_back(std::move(order.record));
}

std::vector<std::string> NicGuard::pulled() const {
  std::vector<std::string> names;
  for (const auto &[name, state] : states_)
    if (state.pulled)
      names.push_back(name);
  return names;
}

// A virtio device is promiscuous from when its driver takes it until the interface is brought up, which may be never.
bool NicGuard::is_in_use(const std::string &mac) {
  system_.refresh();
  const auto interfaces = system_.interfaces();
  if (!interfaces || !interfaces->status.warnings.empty())
    return true;
  const auto interface = std::ranges::find(interfaces->items, mac, &NetworkInterface::mac);
  return interface == interfaces->items.end() || interface->up;
}

Record NicGuard::record_of(const Nic &nic, bool lawful, std::string sentence) {
  Record record;
  record.kind = lawful ? RecordKind::event : RecordKind::finding;
  record.type = "nic_changed";
  record.host_time_ns = host_time();
  record.sentence = fmt::format("NIC {} {}", nic.name, sentence);
  record.with("nic", nic.name).with("mac", nic.mac).with("lawful", lawful);
  if (!nic.configured_mac.empty())
    record.with("configured_mac", nic.configured_mac);
  if (nic.promiscuous)
    record.with("promiscuous", *nic.promiscuous);
  if (!lawful)
    record.finding = Finding{.check = "protect",
                             .subject = fmt::format("NIC {}", nic.name),
                             .severity = Severity::medium,
                             .technique = nic.promiscuous.value_or(false) ? "T1040" : "T1557",
                             .sentence = record.sentence};
  return record;
}

} // namespace lararium::gate
