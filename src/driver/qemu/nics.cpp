// Network devices: addresses from the human monitor (for every model), promiscuous mode from QMP (for virtio-net, the
// only one whose filter QEMU tells).
#include "lararium/driver/qemu/monitor_text.h"
#include "ports.h"

#include <algorithm>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace lararium::qemu {
namespace {

using nlohmann::json;

constexpr std::size_t max_nics = 1 << 10;

class QemuNics final : public Nics {
public:
  explicit QemuNics(std::shared_ptr<Session> session) : session_(std::move(session)) {}

  Result<std::vector<Nic>> list() override {
    std::unique_ptr<Monitor> opened;
    Monitor *monitor = listener_.get();
    if (monitor == nullptr) {
      TRY_ASSIGN(opened, session_->open_monitor());
      monitor = opened.get();
    }
    TRY_ASSIGN(const auto network, monitor->hmp("info network"));
    const auto devices = parse_network_devices(network);
    // It does not change as long as the devices are the same ones.
    if (devices_ != devices) {
      TRY_ASSIGN(const auto tree, monitor->hmp("info qtree"));
      configured_ = parse_configured_macs(tree);
      devices_ = devices;
    }
    std::vector<std::pair<std::string, bool>> filters;
    if (monitor->speaks_qmp())
      if (const auto answer = monitor->qmp("query-rx-filter")) // an error: no device tells
        filters = parse_rx_filters(*answer);
    std::vector<Nic> result;
    for (const NetworkDevice &device : devices) {
      Nic nic{.name = device.name, .mac = device.mac, .configured_mac = {}, .promiscuous = std::nullopt};
      for (const ConfiguredMac &configured : configured_)
        if (!device.peer.empty() && configured.peer == device.peer)
          nic.configured_mac = configured.mac;
      for (const auto &[name, promiscuous] : filters)
        if (name == device.name)
          nic.promiscuous = promiscuous;
      result.push_back(std::move(nic));
    }
    return result;
  }

  Result<void> set_link(const std::string &name, bool up) override {
    TRY_ASSIGN(const auto monitor, session_->open_monitor());
    if (monitor->speaks_qmp()) {
      TRY(monitor->qmp("set_link",
                       json{{"name", name}, {"up", up}}.dump(-1, ' ', true, json::error_handler_t::replace)));
      return {};
    }
    if (name.find_first_of(" \t\r\n\"\\") != std::string::npos)
      return fail(ErrorCode::unsupported, "the human monitor cannot be told such a name");
    TRY_ASSIGN(const auto answer, monitor->hmp(fmt::format("set_link {} {}", name, up ? "on" : "off")));
    if (answer.find_first_not_of(" \r\n") != std::string::npos)
      return fail(ErrorCode::protocol, fmt::format("QEMU refuses set_link: {}", answer));
    return {};
  }

  Result<bool> wait_for_change(std::chrono::milliseconds limit) override {
    if (listener_ == nullptr) {
      TRY(listen());
      return true; // what was missed until now
    }
    const auto deadline = std::chrono::steady_clock::now() + limit;
    while (true) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
      auto some = listener_->wait_for_events(std::max(left, std::chrono::milliseconds(0)));
      if (!some) {
        listener_.reset();
        return session_->process.explain(std::move(some).error());
      }
      if (!*some)
        return false;
      for (const std::string &event : listener_->take_events())
        if (const auto message = parse_qmp_message(event); message && message->text == "NIC_RX_FILTER_CHANGED")
          return true;
    }
  }

private:
  // The last QMP socket that is free: others take the first ones.
  Result<void> listen() {
    const auto &routes = session_->monitors.routes();
    Error last{ErrorCode::unsupported, Space::none, 0, "the VM has no QMP socket that could be listened at"};
    for (auto route = routes.rbegin(); route != routes.rend(); ++route) {
      if (route->kind != MonitorRoute::Kind::qmp)
        continue;
      auto opened = open_monitor(*route);
      if (opened) {
        listener_ = std::move(*opened);
        return {};
      }
      last = std::move(opened).error();
    }
    return std::unexpected(std::move(last));
  }

  std::shared_ptr<Session> session_;
  std::unique_ptr<Monitor> listener_; // kept for events
  std::vector<NetworkDevice> devices_;
  std::vector<ConfiguredMac> configured_;
};

} // namespace

std::vector<std::pair<std::string, bool>> parse_rx_filters(std::string_view json_text) {
  std::vector<std::pair<std::string, bool>> result;
  const auto list = json::parse(json_text, nullptr, false);
  if (!list.is_array())
    return result;
  for (const auto &filter : list) {
    if (!filter.is_object() || result.size() == max_nics)
      continue;
    const auto name = filter.find("name"), promiscuous = filter.find("promiscuous"), vlan = filter.find("vlan");
    if (name == filter.end() || !name->is_string() || promiscuous == filter.end() || !promiscuous->is_boolean())
      continue;
    // A device that was reset takes all VLANs, and is promiscuous, until its driver has said that it controls that
    // (hw/net/virtio-net.c, virtio_net_reset(), virtio_net_query_rxfilter()).
    if (vlan != filter.end() && vlan->is_string() && vlan->get<std::string>() == "all" && promiscuous->get<bool>())
      continue;
    result.emplace_back(name->get<std::string>(), promiscuous->get<bool>());
  }
  return result;
}

std::unique_ptr<Nics> make_nics(std::shared_ptr<Session> session) {
  return std::make_unique<QemuNics>(std::move(session));
}

} // namespace lararium::qemu
