// BPF programs, maps and links, and where programs are attached.
#pragma once

#include "lararium/os/common/views.h"
#include "lararium/os/linux/kernel.h"

namespace lararium::linux_guest {

// What the kernel's tables of ids hold, together with what is open, linked or attached although those tables do not
// hold it (which is worth a warning). Attachments: through links; and without, programs of perf events (kprobes,
// uprobes, tracepoints), cgroups, sockets, XDP, tcx and network namespaces. Not found are those without a link in
// classifiers of tc, in socket maps and in infrared devices.
[[nodiscard]] Result<BpfView> read_bpf(const Kernel &kernel);

} // namespace lararium::linux_guest
