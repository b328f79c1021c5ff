// The driver for VMs that QEMU runs: finds them, and makes a Target of one. Nothing has to be set up for it: neither
// in QEMU nor in the guest. It needs a right to read the QEMU process (root, or CAP_SYS_PTRACE and CAP_SYS_ADMIN).
#pragma once

#include "lararium/base/result.h"
#include "lararium/driver/qemu/command_line.h"
#include "lararium/driver/qemu/monitor.h"
#include "lararium/vm/target.h"

#include <cstdint>
#include <ctime>
#include <string>
#include <string_view>
#include <sys/types.h>
#include <vector>

namespace lararium::qemu {

// One running VM, as /proc and its monitor tell.
struct VmSummary {
  std::string name; // as -name gives it, else "qemu-PID"
  std::string uuid; // lower case; empty where there is none
  pid_t pid = 0;
  std::uint64_t start_ticks = 0; // names the process together with its pid
  std::time_t start_time = 0;
  uid_t owner = 0;
  Architecture architecture = Architecture::x86_64;
  std::string accelerator; // "kvm", "tcg"; a guess from the command line where the process may not be looked into
  std::string machine;     // "pc-q35-7.2"; empty: not said
  std::string version;     // of QEMU, "7.2.22"; empty where it is not known
  std::uint32_t vcpus = 0;
  std::uint64_t ram_bytes = 0;
  RunState state = RunState::unknown;
  std::string memory_access;         // how its memory would be reached, or why it cannot be
  bool readable = false;             // we may read its memory
  std::vector<std::string> problems; // sentences: what is unavailable, and why
  std::vector<MonitorRoute> routes;  // ways to its monitors, best first
  CommandLine command_line;
};

struct DiscoverOptions {
  bool ask_monitors = true; // for state and version; else from /proc alone
};

// Every QEMU VM on this host that /proc shows, by pid; those that may not be looked into too, with what is public.
[[nodiscard]] std::vector<VmSummary> discover(const DiscoverOptions &options = {});

// The VM that a person names: by name, pid, uuid (or at least 8 characters of its beginning) or the path of its QMP
// socket. `not_found` lists what there is, `ambiguous` what it could be.
[[nodiscard]] Result<VmSummary> resolve(const std::vector<VmSummary> &vms, std::string_view wanted);
// The same, looking at no more than that takes: no monitor is asked, and `version` stays empty. The pid of a VM wins
// over a VM that is called like it.
[[nodiscard]] Result<VmSummary> find(std::string_view wanted);

struct AttachOptions {
  bool monitor = true; // false: touch no monitor; registers, pausing and the exact memory map are then missing
  MonitorTimeouts timeouts;
};

// `permission_denied` says what is missing; `unsupported`: another architecture, or a confidential guest (SEV, TDX).
[[nodiscard]] Result<Target> attach(const VmSummary &vm, const AttachOptions &options = {});

} // namespace lararium::qemu
