// Write protection of a running QEMU's guest memory.
#pragma once

#include "lararium/driver/qemu/memory.h"
#include "lararium/vm/protection.h"
#include "ports.h"

#include <memory>
#include <utility>
#include <vector>

namespace lararium::qemu {

using VcpuThreads = std::vector<std::pair<std::uint32_t, pid_t>>;

[[nodiscard]] std::unique_ptr<Protector> make_protector(std::shared_ptr<Session> session,
                                                        std::vector<GuestRegion> regions, bool translates);

// The same for any process that has memory at these places.
[[nodiscard]] Result<ProtectionStart> begin_protection(const Process &process, const std::vector<GuestRegion> &regions,
                                                       VcpuThreads threads);

} // namespace lararium::qemu
