// The places at which a kernel changes its own code while it runs, from the tables that it keeps of them.
#pragma once

#include "lararium/base/bytes.h"
#include "lararium/os/linux/kernel.h"

#include <array>
#include <optional>
#include <vector>

namespace lararium::linux_guest {

struct JumpLabel {
  Gva site, target;
};

struct Probe {
  Gva address;
  std::array<std::byte, 5> original{}; // what stood there before it
  bool is_optimised = false;           // a jump of five bytes and not an int3
};

struct CodeSites {
  std::vector<Gva> ftrace;            // each function's place for a call to a tracer
  std::vector<Gva> static_calls;      // of the kernel image
  std::vector<JumpLabel> jump_labels; // of the kernel image
  std::vector<Probe> kprobes;
  std::vector<Gva> patching; // being changed now: int3 stands there for a moment

  // All by address. A table that this kernel does not have is empty; one that lies is cut.
  [[nodiscard]] static CodeSites read(const Kernel &kernel);
  // Reads those anew that come and go while the kernel runs: kprobes, and what is being changed now.
  void read_moments(const Kernel &kernel);
  // Places of the image that the kernel changes and that are in no table: trampolines of static calls, the calls in
  // ftrace's own code, BPF's dispatchers.
  [[nodiscard]] static std::vector<Gva> patchable_symbols(const Kernel &kernel);
  // Those of one module.
  [[nodiscard]] static std::vector<Gva> static_calls_of(const Kernel &kernel, Gva module);
  [[nodiscard]] static std::vector<JumpLabel> jump_labels_of(const Kernel &kernel, Gva module);

  [[nodiscard]] static bool has(const std::vector<Gva> &sites, Gva address);
  [[nodiscard]] bool has_probe(Gva address) const;
};

// Where a direct call or jump leads; nothing when the code is none.
[[nodiscard]] std::optional<Gva> branch_target(Gva site, Bytes code);

// How many bytes a jump label has: 2, 5, or 0 while it is being changed. `code` is what stands there.
[[nodiscard]] std::uint8_t length_of_jump_label(Bytes code);
// Whether a jump label holds one of the two things that it can hold.
[[nodiscard]] bool is_lawful_jump_label(Bytes code, const JumpLabel &label);

// Whether five bytes are a nop as the kernel writes it over a place that it may change later: which one depends on the
// processor (a00cc7d9dd93, 5.13, made it one for all).
[[nodiscard]] bool is_long_nop(Bytes code);

// Whether code is nothing but int3, zeros, and `jmp *%reg; int3`: what the kernel fills unused memory for code with,
// and the thunks against Indirect Target Selection (872df34d7c51, 6.15), which it makes at run time, and which older
// stable trees note down nowhere.
[[nodiscard]] bool is_filling_or_thunks(Bytes code);

} // namespace lararium::linux_guest
