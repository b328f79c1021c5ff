// Linux guests: finding the kernel in a target and rebuilding what it is doing.
#pragma once

#include "lararium/os/common/operating_system.h"
#include "lararium/symbols/profile.h"
#include "lararium/vm/target.h"

#include <memory>
#include <optional>
#include <string>

namespace lararium::linux_guest {

struct AttachOptions {
  const ProfileCache *cache = nullptr;    // null: neither read nor written
  std::shared_ptr<const Profile> profile; // of an ISF file that the user gave; null: from the guest itself
  // Only a kernel that a vCPU runs, where registers can be had: after a reset memory still holds the one before.
  bool running_only = false;
};

// How the guest's kernel was found, and what it took.
struct AttachReport {
  std::string found_by;       // "the CR3 of vCPU 0"
  std::string profile_source; // "cache", "guest memory", "file"
  std::vector<std::string> warnings;
};

// Finds the running Linux kernel. `target` must outlive the result. Errors: unknown_os when there is no Linux kernel
// (or not yet), no_types when its kernel carries no BTF and no profile was given, corrupt when memory contradicts
// itself.
[[nodiscard]] Result<std::unique_ptr<OperatingSystem>> attach(const Target &target, const AttachOptions &options,
                                                              AttachReport *report = nullptr);

class Kernel;
// What is under a system that attach() gave, for what looks deeper than views do (detect/); null for any other system.
[[nodiscard]] const Kernel *kernel_of(const OperatingSystem &system);

// The kernel's profile alone, for export and tests.
[[nodiscard]] Result<std::shared_ptr<const Profile>> profile_of(const Target &target, const AttachOptions &options);

} // namespace lararium::linux_guest
