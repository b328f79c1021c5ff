// Where the kernel calls a function directly: `call` or `jmp` with a distance of four bytes.
#pragma once

#include "lararium/base/result.h"
#include "lararium/os/linux/kernel.h"

#include <cstdint>
#include <span>
#include <vector>

namespace lararium::gate {

struct CallSite {
  Gva address;               // of the instruction
  Gpa physical;              // of the same
  std::int32_t distance = 0; // what stands in it
  bool is_jump = false;      // the last thing that its function does
  Gva target;                // the function, or with call depth tracking the padding before it
  std::size_t function = 0;  // which of those that were asked for

  [[nodiscard]] Gva behind() const { return address + 5; }
};

// Whether a call that leads there is one of the function.
[[nodiscard]] bool leads_to_function(const linux_guest::Kernel &kernel, Gva target, Gva function);

// All in the text of the kernel's image, by address. Each is verified to be an instruction, by stepping to it from the
// beginning of the function that it lies in; `unverified` counts what looks like one and is none, or in data.
struct CallSites {
  std::vector<CallSite> sites;
  std::vector<CallSite> probed; // a kprobe of the guest's stands on the instruction, or on a part of it
  std::size_t unverified = 0;
};
[[nodiscard]] Result<CallSites> find_call_sites(const linux_guest::Kernel &kernel, std::span<const Gva> functions);

} // namespace lararium::gate
