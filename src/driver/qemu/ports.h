// The ports of a running QEMU besides its memory.
#pragma once

#include "lararium/driver/qemu/memory.h"
#include "lararium/driver/qemu/monitor.h"
#include "lararium/driver/qemu/process.h"
#include "lararium/vm/target.h"

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lararium::qemu {

// What the ports share: the process and the ways to its monitors.
struct Session {
  Process process;
  MonitorAccess monitors;

  // Opens a monitor; a process that ended is `gone`.
  [[nodiscard]] Result<std::unique_ptr<Monitor>> open_monitor() {
    auto monitor = monitors.open();
    if (!monitor)
      return process.explain(std::move(monitor).error());
    return monitor;
  }
};

// `ram`: where the guest's own memory is.
[[nodiscard]] std::unique_ptr<Vcpus> make_vcpus(std::shared_ptr<Session> session, std::vector<GuestRegion> ram);
[[nodiscard]] std::unique_ptr<RunControl> make_run_control(std::shared_ptr<Session> session);
[[nodiscard]] std::unique_ptr<Statistics> make_statistics(std::shared_ptr<Session> session);
[[nodiscard]] std::unique_ptr<Liveness> make_liveness(std::shared_ptr<Session> session);
[[nodiscard]] std::unique_ptr<Nics> make_nics(std::shared_ptr<Session> session);

// The receive filters of NICs, as QMP's query-rx-filter gives them: by name whether they are promiscuous. One that no
// driver of the guest's controls takes everything until one does: it is left out. Pure, for tests and fuzzers.
[[nodiscard]] std::vector<std::pair<std::string, bool>> parse_rx_filters(std::string_view json_text);

// The state that a monitor tells.
[[nodiscard]] Result<RunState> ask_state(Monitor &monitor);

// Which threads run the vCPUs, by index: as the monitor tells, or as the threads' names do. Empty: not told.
[[nodiscard]] std::vector<std::pair<std::uint32_t, pid_t>> vcpu_threads(Monitor &monitor);
[[nodiscard]] std::vector<std::pair<std::uint32_t, pid_t>> vcpu_threads_by_name(const Process &process);

// The host's interfaces that the VM's network devices hand their packets to, by the names the host has for them.
[[nodiscard]] std::vector<std::string> tap_interfaces(const Process &process,
                                                      const std::vector<OpenDescriptor> &descriptors);

} // namespace lararium::qemu
