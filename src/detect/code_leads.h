// Where a function's instructions lead outside its text, when they say so themselves: direct calls and jumps, and the
// short sequences that hooks are made of.
#pragma once

#include "lararium/arch/x86_64_code_step.h"
#include "lararium/base/address.h"

#include <algorithm>
#include <cstdint>

namespace lararium::detect {

using x86_64::CodeStep;
using x86_64::step_at;
using x86_64::StepKind;

// A place that may lead somewhere, as the bytes say.
struct Lead {
  Gva site;
  std::uint8_t length = 0; // of all instructions that belong to it
  Gva target;
  const char *kind = ""; // "a jump"
  bool at_entry = false; // nothing but padding and a call to a tracer stands before it in its function
};

// Steps through one function and gives every place by which control leaves for a fixed address outside
// [own_begin, own_end). Bytes that are no instruction end it.
template <class Give> void step_through(Bytes code, Gva address, Gva own_begin, Gva own_end, Give &&give) {
  struct {
    std::size_t at = 0;
    std::uint64_t value = 0;
    std::uint8_t reg = 0;
    bool is_set = false, is_pushed = false, at_entry = false;
  } constant; // what the instructions just before left in a register or on the stack
  bool at_entry = true;
  const auto lead = [&](std::size_t from, std::size_t to, std::uint64_t target, const char *kind, bool entry) {
    if (target < own_begin.value || target >= own_end.value)
      give(Lead{address + from, static_cast<std::uint8_t>(std::min<std::size_t>(to - from, 64)), Gva{target}, kind,
                entry});
  };
  for (std::size_t at = 0; at < code.size();) {
    const CodeStep step = step_at(code.subspan(at));
    if (step.length == 0)
      return; // data, or code that ends here; the next symbol is a fresh start
    const std::size_t end = at + step.length;
    const std::uint64_t target = (address + end).value + static_cast<std::uint64_t>(step.value);
    bool keeps_constant = false, keeps_entry = false;
    switch (step.kind) {
    case StepKind::call:
      lead(at, end, target, "a call", at_entry);
      keeps_entry = at_entry && (at == 0 || at == 4); // a tracer's
      break;
    case StepKind::jump: lead(at, end, target, "a jump", at_entry); break;
    case StepKind::branch: lead(at, end, target, "a conditional jump", at_entry); break;
    case StepKind::load_constant:
      constant = {at, static_cast<std::uint64_t>(step.value), step.reg, true, false, at_entry};
      keeps_constant = true;
      break;
    case StepKind::push_constant:
      constant = {at, static_cast<std::uint64_t>(step.value), 0, true, true, at_entry};
      keeps_constant = true;
      break;
    case StepKind::store_high:
      if (constant.is_set && constant.is_pushed) {
        constant.value = (constant.value & 0xffffffff) | static_cast<std::uint64_t>(step.value) << 32;
        keeps_constant = true;
      }
      break;
    case StepKind::push_register:
      if (constant.is_set && !constant.is_pushed && constant.reg == step.reg)
        constant.is_pushed = keeps_constant = true;
      break;
    case StepKind::ret:
      if (constant.is_set && constant.is_pushed)
        lead(constant.at, end, constant.value, "a push and return", constant.at_entry);
      break;
    case StepKind::call_register:
    case StepKind::jump_register:
      if (constant.is_set && !constant.is_pushed && constant.reg == step.reg)
        lead(constant.at, end, constant.value,
             step.kind == StepKind::call_register ? "a call through a register" : "a jump through a register",
             constant.at_entry);
      break;
    case StepKind::pad:
    case StepKind::entry:
      keeps_entry = true;
      keeps_constant = constant.is_set;
      break;
    case StepKind::call_memory:
    case StepKind::jump_memory:
    case StepKind::trap:
    case StepKind::other: break;
    }
    constant.is_set = constant.is_set && keeps_constant;
    at_entry = at_entry && keeps_entry;
    at = end;
  }
}

} // namespace lararium::detect
