// A vCPU's state where QEMU itself keeps it: registers that no monitor shows are read there.
//
// struct CPUArchState (target/i386/cpu.h) lies in QEMU's heap. Its layout differs between versions and builds, so
// nothing of it is taken for granted but the order of some members, which has been the same since 2.x and is in 7.2 and
// 10.0: the segments TR, GDT and IDT followed by the control registers; later on EFER; after the FPU's and vectors'
// registers the run of MSRs from SYSENTER_CS to KERNEL_GS_BASE. The first part is found by what the monitor says of it,
// the run by what these registers can hold.
//
// A guest can put a copy of all that into memory of QEMU's: into its own RAM, which is not searched, and into buffers
// of devices. What it cannot know is where they lie, while the structure around CPUArchState (CPUState) holds its own
// address in the heads of lists that are empty.
#pragma once

#include "lararium/base/bytes.h"
#include "lararium/vm/vcpu.h"

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

namespace lararium::qemu {

// Sizes in bytes. A state begins at its TR here.
inline constexpr std::size_t state_header_size = 112;  // from TR to CR4
inline constexpr std::size_t state_size = 16 << 10;    // as much as is looked at for the MSRs: 11 KiB in 10.0
inline constexpr std::size_t state_context = 32 << 10; // before it, where CPUState is: 11 KiB in 10.0
inline constexpr std::size_t msr_run_size = 72;

struct StatePlace {
  std::size_t vcpu = 0; // in the list of registers
  Hva address;
};

// Every place in memory[from..] that looks like the state of one of the vCPUs and knows its own address. `base`: where
// `memory` lies in QEMU; what is before `from` is looked at for context alone. Only vCPUs whose tables have an address
// are looked for.
[[nodiscard]] std::vector<StatePlace> find_vcpu_states(Bytes memory, Hva base, std::size_t from,
                                                       std::span<const VcpuRegisters> vcpus);

// Whether the state is that of this vCPU at this moment, by tables and control registers.
[[nodiscard]] bool is_state_of(Bytes state, const VcpuRegisters &vcpu);

// Whether a state's CR0 has paging on.
[[nodiscard]] bool has_paging(Bytes state);

// Where in a state the run of MSRs begins: the one place that fits all vCPUs that run a 64-bit kernel. `states` belong
// to `vcpus`, one each. Errors: `not_found`, `ambiguous`.
[[nodiscard]] Result<std::size_t> find_msr_run(std::span<const Bytes> states, std::span<const VcpuRegisters> vcpus);

// Nothing: it does not lie inside.
[[nodiscard]] std::optional<SystemCallMsrs> read_msr_run(Bytes run);

} // namespace lararium::qemu
