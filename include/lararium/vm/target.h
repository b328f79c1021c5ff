// A target: what a driver hands over for one running VM or one dump. Everything above works on this alone.
#pragma once

#include "lararium/vm/breakpoints.h"
#include "lararium/vm/code_writer.h"
#include "lararium/vm/nics.h"
#include "lararium/vm/physical_memory.h"
#include "lararium/vm/protection.h"
#include "lararium/vm/run_control.h"
#include "lararium/vm/vcpu.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <sys/types.h>
#include <vector>

namespace lararium {

enum class Architecture : std::uint8_t { x86_64, aarch64, other };
enum class TargetKind : std::uint8_t { live, dump };

// What names a target to a person, and what they want to know of it before anything is read.
struct TargetIdentity {
  TargetKind kind = TargetKind::live;
  Architecture architecture = Architecture::x86_64;
  std::string name;          // VM name, or the dump's file name
  std::string uuid;          // empty where there is none
  pid_t pid = 0;             // the process that runs the VM; 0 for a dump
  std::string accelerator;   // "kvm", "tcg"; empty for a dump
  std::string memory_access; // how memory is reached, for people: "mapped (memfd)", "process_vm_readv", "ELF core"
};

// Counters of the virtual devices, as the VMM itself keeps them; all since the VM's start.
struct VcpuTime {
  std::uint32_t index = 0;
  std::uint64_t host_nanoseconds = 0; // CPU time that the vCPU's thread has used on the host
};
struct BlockCounters {
  std::string device;
  std::uint64_t read_bytes = 0, written_bytes = 0, read_operations = 0, write_operations = 0;
};
struct NetworkCounters {
  std::string device;
  std::uint64_t received_bytes = 0, sent_bytes = 0, received_packets = 0, sent_packets = 0;
};
struct VmStatistics {
  std::uint64_t host_nanoseconds = 0;    // CPU time of the whole VMM process
  std::uint64_t host_resident_bytes = 0; // of the VMM process
  std::vector<VcpuTime> vcpus;
  std::vector<BlockCounters> disks;
  std::optional<std::vector<NetworkCounters>> networks; // nothing: this VMM does not tell
};

class Statistics {
public:
  virtual ~Statistics() = default;
  [[nodiscard]] virtual Result<VmStatistics> sample() = 0;
};

// Is there still something to read? A live target's reads fail once its VM ended; this tells that apart from an address
// that is not mapped.
class Liveness {
public:
  virtual ~Liveness() = default;
  [[nodiscard]] virtual bool alive() const = 0;
  // Becomes readable (POLLIN) when the VM ends; owned by this object.
  [[nodiscard]] virtual int descriptor() const = 0;
};

// Kernel facts that the container of a dump states itself (a VMCOREINFO note). Foreign bytes like all others.
struct TargetHints {
  std::string vmcoreinfo; // the text, empty where there is none
};

struct Target {
  TargetIdentity identity;
  std::unique_ptr<PhysicalMemory> memory;  // never null
  std::unique_ptr<Vcpus> vcpus;            // null: registers cannot be had
  std::unique_ptr<RunControl> run_control; // null: cannot be paused
  std::unique_ptr<Statistics> statistics;  // null: nothing is counted
  std::unique_ptr<Liveness> liveness;      // null: a dump, which stays
  std::unique_ptr<Protector> protector;    // null: memory cannot be protected
  std::unique_ptr<CodeWriter> code_writer; // null: code cannot be changed
  std::unique_ptr<Debugger> debugger;      // null: no breakpoints
  std::unique_ptr<Nics> nics;              // null: nothing is told of network interfaces
  TargetHints hints;
  std::vector<std::string> limitations; // sentences: what is missing here, and why
};

} // namespace lararium
