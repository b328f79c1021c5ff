// Instructions as checks need them: where a branch leads.
#pragma once

#include "lararium/base/address.h"
#include "lararium/base/bytes.h"

#include <Zydis/Zydis.h>
#include <optional>

namespace lararium::detect {

struct Instruction {
  Gva address;
  std::uint8_t length = 0;
  bool is_call = false, is_jump = false, is_conditional = false; // is_jump: conditional ones too
  bool is_return = false;
  std::optional<Gva> target; // of a direct call or jump
};

class Decoder {
public:
  Decoder() { ZydisDecoderInit(&decoder_, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64); }

  // Nothing where the bytes are no instruction.
  [[nodiscard]] std::optional<Instruction> decode(Bytes code, Gva address) const {
    ZydisDecodedInstruction raw;
    ZydisDecoderContext context;
    if (!ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&decoder_, &context, code.data(), code.size(), &raw)))
      return std::nullopt;
    Instruction result;
    result.address = address;
    result.length = raw.length;
    result.is_call = raw.meta.category == ZYDIS_CATEGORY_CALL;
    result.is_conditional = raw.meta.category == ZYDIS_CATEGORY_COND_BR;
    result.is_jump = result.is_conditional || raw.meta.category == ZYDIS_CATEGORY_UNCOND_BR;
    result.is_return = raw.meta.category == ZYDIS_CATEGORY_RET;
    if ((result.is_call || result.is_jump) && raw.raw.imm[0].is_relative)
      result.target = address + raw.length + static_cast<std::uint64_t>(raw.raw.imm[0].value.s);
    return result;
  }

private:
  ZydisDecoder decoder_;
};

} // namespace lararium::detect
