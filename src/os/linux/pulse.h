// Signs of life: the clock, and the pid allocator.
#pragma once

#include "lararium/os/common/views.h"
#include "lararium/os/linux/kernel.h"

#include <optional>

namespace lararium::linux_guest {

// `corrupt` when the kernel's banner is not where it was: the guest boots again, or another kernel runs.
[[nodiscard]] Result<Pulse> read_pulse(const Kernel &kernel);

// From the IDR of the initial pid namespace (4.15, 95846ecf9dac): each thread anywhere has a number there.
[[nodiscard]] Result<View<std::uint32_t>> read_allocated_pids(const Kernel &kernel, std::uint32_t begin,
                                                              std::uint32_t end);

// When the process began whose leader has that number there, in ns since boot; nothing: none has it.
[[nodiscard]] Result<std::optional<std::uint64_t>> read_start_of_pid(const Kernel &kernel, std::int32_t pid);

} // namespace lararium::linux_guest
