// The decoder of lengths against the whole decoder: where both see an instruction, it is equally long and leads to the
// same place.
#include "code_leads.h"
#include "decode.h"

#include <cstdlib>

using namespace lararium;
using namespace lararium::detect;

namespace {

// What processors of the two makers read in two ways, or no kernel's text holds: see code_step.h.
bool is_left_out(Bytes code) {
  bool small_operand = false;
  std::size_t at = 0;
  for (; at < code.size(); ++at) {
    const auto byte = std::to_integer<unsigned>(code[at]);
    small_operand |= byte == 0x66 || byte == 0xf2;
    if (byte != 0x66 && byte != 0x67 && (byte & 0xfe) != 0xf2 && byte != 0xf0 && (byte & 0xe7) != 0x26 &&
        (byte & 0xfe) != 0x64 && (byte & 0xf0) != 0x40)
      break;
  }
  const auto byte_at = [&](std::size_t i) { return i < code.size() ? std::to_integer<unsigned>(code[i]) : 0U; };
  const unsigned first = byte_at(at);
  if (first == 0x62 || first == 0xc4 || first == 0xc5) { // Knights Corner's have the same first bytes
    const unsigned opcode = byte_at(at + (first == 0xc5 ? 2 : 3));
    return first == 0x62 || (opcode & 0xfe) == 0x74;
  }
  return byte_at(at) == 0x0f && (byte_at(at + 1) == 0x0f || (byte_at(at + 1) == 0x78 && small_operand));
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  const Bytes code = std::as_bytes(std::span(data, size));
  constexpr Gva address{0xffffffff81000000};
  const CodeStep step = step_at(code);
  if (step.length > code.size() || step.length > 15)
    std::abort();
  const Decoder decoder;
  const auto whole = decoder.decode(code, address);
  if (whole && step.length != 0 && !is_left_out(code)) {
    if (step.length != whole->length)
      std::abort();
    const bool direct = step.kind == StepKind::call || step.kind == StepKind::jump || step.kind == StepKind::branch;
    if (direct && whole->target != address + step.length + static_cast<std::uint64_t>(step.value))
      std::abort();
    if (!direct && whole->is_call && whole->target)
      std::abort();
  }
  std::size_t places = 0;
  step_through(code, address, address, address + 1, [&](const Lead &lead) {
    if (lead.site < address || lead.site + lead.length > address + code.size())
      std::abort();
    ++places;
  });
  if (places > size)
    std::abort();
  return 0;
}
