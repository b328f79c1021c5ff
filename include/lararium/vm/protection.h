// Port: keeping a running target's memory from being written, from outside it. Whoever writes to a protected page waits
// in the host until the page is released.
//
// The one promise that all else rests on: when the process that holds a WriteProtection dies, however that happens, all
// that wait go on and nothing is protected any more. An implementation that cannot promise this must not exist.
#pragma once

#include "lararium/base/bytes.h"
#include "lararium/base/result.h"

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <sys/types.h>
#include <vector>

namespace lararium {

// Somebody waits to write.
struct WriteFault {
  Gpa address;                       // of the write where `exact`, else of the page
  bool exact = false;                // a KVM host tells the page alone
  std::optional<std::uint32_t> vcpu; // nothing: a device of the VM writes, or it is not known who
  pid_t thread = 0;                  // of the VM's process, as that process numbers its threads
};

// Not thread-safe, save that stopping the process is always safe.
class WriteProtection {
public:
  WriteProtection() = default;
  WriteProtection(const WriteProtection &) = delete;
  WriteProtection &operator=(const WriteProtection &) = delete;
  virtual ~WriteProtection() = default; // releases all

  // What one page is where the address lies: 4 KiB, or the host's huge page.
  [[nodiscard]] virtual std::uint64_t unit_at(Gpa address) const = 0;
  // Whole units of RAM. `unsupported` says why this memory cannot be protected.
  [[nodiscard]] virtual Result<void> protect(Gpa base, std::uint64_t size) = 0;
  // Takes the protection off and lets those go on who wait there.
  [[nodiscard]] virtual Result<void> release(Gpa base, std::uint64_t size) = 0;
  // Waits until somebody waits, or until the time is over; how many of `out` were filled. One who waits is told of
  // once, and again when the page was protected anew before their write was done. `gone`: the VM ended.
  [[nodiscard]] virtual Result<std::size_t> wait(std::span<WriteFault> out, std::chrono::microseconds timeout) = 0;
  // Whether a write to code may be held: not where the VM notes what it must translate anew before it writes (TCG), as
  // it would then go on with what stood there.
  [[nodiscard]] virtual bool may_hold_code() const { return true; }
  // Writes into memory that is protected, and stays so. A code cache of the VM's may go on with what stood there.
  [[nodiscard]] virtual Result<void> overwrite(Gpa address, Bytes bytes) = 0;
  // One page of memory in place, to be read and written by us whether it is protected or not; empty where the VM's
  // memory is not shared. Valid as long as this lives.
  [[nodiscard]] virtual std::span<std::byte> page_in_place(Gpa /*page*/) { return {}; }
};

struct ProtectionStart {
  std::unique_ptr<WriteProtection> protection;
  std::chrono::nanoseconds stopped{}; // for how long one thread of the VM's process stood still for it
  std::vector<std::string> limitations;
};

class Protector {
public:
  virtual ~Protector() = default;
  // Nothing is protected yet. An error leaves the VM as it was.
  [[nodiscard]] virtual Result<ProtectionStart> begin() = 0;
};

} // namespace lararium
