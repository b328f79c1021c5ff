// One instruction forward: how long it is, and where it leads if it is one of those by which code is hooked. All of a
// kernel's text is stepped through at each look, so this is a decoder of lengths (some hundred MB/s) and not of
// instructions; detect/decode.h has the whole decoder, for single places, and a fuzzer holds the two against each
// other.
#pragma once

#include "lararium/base/bytes.h"

#include <cstdint>

namespace lararium::x86_64 {

enum class StepKind : std::uint8_t {
  other,
  call,          // direct, `value` is the distance from the next instruction
  jump,          // direct, likewise; also those with a short distance
  branch,        // conditional, likewise
  load_constant, // mov reg, `value`
  push_constant,
  push_register,
  store_high,    // mov dword [rsp + 4], `value`: the upper half of what was pushed
  call_register, // call or jump to what `reg` holds
  jump_register,
  call_memory, // through a pointer at the distance `value` from the next instruction
  jump_memory,
  ret,
  trap,  // int3
  pad,   // nop of any length
  entry, // endbr64
};

struct CodeStep {
  std::uint8_t length = 0; // 0: no instruction, or not all of it
  StepKind kind = StepKind::other;
  std::uint8_t reg = 0;
  std::int64_t value = 0;
};

// At the first byte of `code`, in 64-bit mode. What no kernel's text holds (XOP, 3DNow!) may be taken for undecodable,
// or for an instruction that a processor refuses.
[[nodiscard]] CodeStep step_at(Bytes code);

} // namespace lararium::x86_64
