// Opens what the user named. The one place of the command line that knows which drivers and operating systems there
// are; all else works on Target and OperatingSystem.
#pragma once

#include "ask_guest.h"

#include "lararium/os/common/operating_system.h"
#include "lararium/symbols/profile.h"
#include "lararium/vm/target.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace lararium::cli {

// A VM that runs on this host, as discovery found it.
struct VmListing {
  TargetIdentity identity;
  std::string machine, version; // of QEMU; empty: not known
  std::uint32_t owner = 0;      // uid of the process
  std::uint32_t vcpus = 0;      // 0: not known
  std::uint64_t ram_bytes = 0;  // 0: not known
  RunState state = RunState::unknown;
  bool readable = false;
  std::vector<std::string> problems; // sentences: what is unavailable, and why
};

struct GuestOptions {
  std::string profile_file;    // Volatility ISF; empty: from the guest's own memory
  std::string cache_directory; // empty: the default one
  bool use_cache = true;
  bool running_only = false; // not a kernel that lies in memory but runs no more (after a reset)
};

// A guest whose operating system is understood.
struct Guest {
  std::unique_ptr<OperatingSystem> system;
  std::string found_by;           // for people: "the CR3 of vCPU 0"
  std::string profile_source;     // for people: "cache", "guest memory", "file"
  std::vector<std::string> notes; // what went wrong without being in the way
};

struct CoreProgress {
  std::uint64_t done = 0, total = 0; // bytes
};

struct CoreOptions {
  bool overwrite = false;
  std::function<bool(const CoreProgress &)> progress; // false stops the writing
  std::uint64_t stored_limit = UINT64_MAX;            // a larger file is an error
};

struct CoreSummary {
  std::uint64_t source_bytes = 0, stored_bytes = 0, unreadable_bytes = 0;
  ViewStatus status; // of what was read of a process
};

class Host {
public:
  Host() = default;
  Host(const Host &) = delete;
  Host &operator=(const Host &) = delete;
  virtual ~Host() = default;

  [[nodiscard]] virtual Result<std::vector<VmListing>> vms() = 0;
  // Who they are, from /proc alone: no monitor is asked, state and version stay unknown.
  [[nodiscard]] virtual Result<std::vector<VmListing>> vm_processes() = 0;
  // A VM's name, pid, uuid or QMP socket, or the path of a dump.
  [[nodiscard]] virtual Result<Target> open(const std::string &name) = 0;
  // The target must outlive the guest.
  [[nodiscard]] virtual Result<Guest> attach(Target &target, const GuestOptions &options) = 0;
  // The profile of its kernel alone.
  [[nodiscard]] virtual Result<std::shared_ptr<const Profile>> profile(Target &target, const GuestOptions &options) = 0;

  // `system` may be null: then the core carries what the dump said itself, if anything.
  [[nodiscard]] virtual Result<CoreSummary> write_machine_core(Target &target, OperatingSystem *system,
                                                               const std::string &path, const CoreOptions &options) = 0;
  [[nodiscard]] virtual Result<CoreSummary> write_process_core(OperatingSystem &system, std::int32_t pid,
                                                               const std::string &path, const CoreOptions &options) = 0;
  [[nodiscard]] virtual Result<void> export_isf(const Profile &profile, const std::string &path) = 0;
  // What this shell script prints in the guest whose QEMU guest agent has its serial port at that socket.
  [[nodiscard]] virtual Result<std::string> ask_guest_agent(const std::string &socket, std::string_view script,
                                                            const AskLimits &limits) = 0;
};

// The machine that this program runs on.
[[nodiscard]] std::unique_ptr<Host> make_host();

} // namespace lararium::cli
