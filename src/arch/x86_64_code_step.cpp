#include "lararium/arch/x86_64_code_step.h"

#include <array>
#include <cstring>

namespace lararium::x86_64 {
namespace {

// What follows an opcode.
enum Part : std::uint8_t {
  modrm = 1,
  imm8 = 2,
  imm16 = 4,
  imm_z = 8,  // 4 bytes, 2 with the operand size prefix
  imm_v = 16, // like imm_z, 8 with REX.W
  rel32 = 32, // 4 bytes whatever the prefixes
  moffs = 64, // an address of 8 bytes, 4 with the address size prefix
  none = 128, // no instruction
};
using Map = std::array<std::uint8_t, 256>;

constexpr void fill(Map &map, unsigned first, unsigned last, std::uint8_t parts) {
  for (unsigned opcode = first; opcode <= last; ++opcode)
    map[opcode] = parts;
}

constexpr Map make_one_byte_map() {
  Map map{};
  for (unsigned row = 0; row < 0x40; row += 8) { // add, or, adc, sbb, and, sub, xor, cmp
    fill(map, row, row + 3, modrm);
    map[row + 4] = imm8;
    map[row + 5] = imm_z;
    fill(map, row + 6, row + 7, none);
  }
  fill(map, 0x60, 0x62, none);
  map[0x63] = modrm;
  map[0x68] = imm_z;
  map[0x69] = modrm | imm_z;
  map[0x6a] = imm8;
  map[0x6b] = modrm | imm8;
  fill(map, 0x70, 0x7f, imm8);
  map[0x80] = map[0x83] = modrm | imm8;
  map[0x81] = modrm | imm_z;
  map[0x82] = none;
  fill(map, 0x84, 0x8f, modrm);
  map[0x9a] = none;
  fill(map, 0xa0, 0xa3, moffs);
  map[0xa8] = imm8;
  map[0xa9] = imm_z;
  fill(map, 0xb0, 0xb7, imm8);
  fill(map, 0xb8, 0xbf, imm_v);
  map[0xc0] = map[0xc1] = modrm | imm8;
  map[0xc2] = imm16;
  map[0xc6] = modrm | imm8;
  map[0xc7] = modrm | imm_z;
  map[0xc8] = imm16 | imm8;
  map[0xca] = imm16;
  map[0xcd] = imm8;
  map[0xce] = none;
  fill(map, 0xd0, 0xd3, modrm);
  fill(map, 0xd4, 0xd5, none);
  // 0xd6 is udb: it traps, and compilers put it where nothing may lead (FineIBT)
  fill(map, 0xd8, 0xdf, modrm);
  fill(map, 0xe0, 0xe7, imm8);
  map[0xe8] = map[0xe9] = rel32;
  map[0xea] = none;
  map[0xeb] = imm8;
  map[0xf6] = map[0xf7] = modrm; // and more for test
  map[0xfe] = map[0xff] = modrm;
  return map;
}

constexpr Map make_two_byte_map() {
  Map map{};
  fill(map, 0x00, 0xff, modrm);
  map[0x04] = map[0x0a] = map[0x0c] = none;
  fill(map, 0x05, 0x09, 0);
  map[0x0b] = map[0x0e] = 0;
  map[0x0f] = modrm | imm8;
  fill(map, 0x24, 0x27, none);
  fill(map, 0x30, 0x37, 0);
  map[0x36] = map[0x39] = none;
  fill(map, 0x3b, 0x3f, none);
  fill(map, 0x70, 0x73, modrm | imm8);
  map[0x77] = 0;
  map[0x7a] = map[0x7b] = none;
  fill(map, 0x80, 0x8f, rel32);
  fill(map, 0xa0, 0xa2, 0);
  map[0xa4] = map[0xac] = map[0xba] = map[0xc2] = modrm | imm8;
  fill(map, 0xa8, 0xaa, 0);
  fill(map, 0xc4, 0xc6, modrm | imm8);
  fill(map, 0xc8, 0xcf, 0);
  return map;
}

constexpr Map one_byte = make_one_byte_map(), two_bytes = make_two_byte_map();

// Of VEX and EVEX: every instruction of the map has a ModRM byte, but for vzeroupper.
constexpr std::uint8_t parts_of_vector(unsigned map, std::uint8_t opcode) {
  switch (map) {
  case 1:
    if ((two_bytes[opcode] & (none | rel32)) != 0)
      return none;
    return opcode == 0x77 ? 0 : modrm | (two_bytes[opcode] & imm8);
  case 2:
  case 5:
  case 6: return modrm;
  case 3: return modrm | imm8;
  default: return none;
  }
}

constexpr bool is_prefix(std::uint8_t byte) {
  return byte == 0x66 || byte == 0x67 || byte == 0xf0 || byte == 0xf2 || byte == 0xf3 || byte == 0x2e || byte == 0x36 ||
         byte == 0x3e || byte == 0x26 || byte == 0x64 || byte == 0x65;
}

constexpr std::size_t longest = 15;

template <class T> std::int64_t value_at(const std::uint8_t *at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

struct Encoding {
  std::uint8_t opcode = 0, rex = 0, modrm = 0;
  unsigned map = 0; // 0: one byte
  bool small_operand = false, repeat = false;
};

// Which of the kinds it is; `tail` are the bytes behind ModRM and its displacement, `end` those behind it all.
void classify(CodeStep &step, const Encoding &e, const std::uint8_t *tail, const std::uint8_t *end) {
  const std::uint8_t mod = e.modrm >> 6, field = e.modrm >> 3 & 7, rm = e.modrm & 7;
  const std::uint8_t base = rm | (e.rex & 1) << 3;
  const auto branch = [&](StepKind kind, std::int64_t value) {
    step.kind = kind;
    step.value = value;
  };
  if (e.map == 1) {
    if (e.opcode >= 0x80 && e.opcode <= 0x8f)
      branch(StepKind::branch, value_at<std::int32_t>(tail));
    else if (e.opcode == 0x1f)
      step.kind = StepKind::pad;
    else if (e.opcode == 0x1e && e.repeat && e.modrm == 0xfa)
      step.kind = StepKind::entry;
    return;
  }
  if (e.map != 0)
    return;
  switch (e.opcode) {
  case 0xe8: return branch(StepKind::call, value_at<std::int32_t>(tail));
  case 0xe9: return branch(StepKind::jump, value_at<std::int32_t>(tail));
  case 0xeb: return branch(StepKind::jump, value_at<std::int8_t>(tail));
  case 0x68:
    if (!e.small_operand)
      branch(StepKind::push_constant, value_at<std::int32_t>(tail));
    return;
  case 0xc2:
  case 0xc3: step.kind = StepKind::ret; return;
  case 0xcc: step.kind = StepKind::trap; return;
  case 0x90: step.kind = (e.rex & 1) == 0 && !e.repeat ? StepKind::pad : StepKind::other; return;
  case 0xc7:
    if (field == 0 && !e.small_operand && mod == 3 && (e.rex & 8) != 0) {
      branch(StepKind::load_constant, value_at<std::int32_t>(tail));
      step.reg = base;
    } else if (field == 0 && !e.small_operand && e.modrm == 0x44 && tail[-2] == 0x24 && tail[-1] == 4) {
      branch(StepKind::store_high, value_at<std::int32_t>(tail));
    }
    return;
  case 0xff:
    if (field != 2 && field != 4)
      return;
    if (mod == 3) {
      step.kind = field == 2 ? StepKind::call_register : StepKind::jump_register;
      step.reg = base;
    } else if (mod == 0 && rm == 5) {
      branch(field == 2 ? StepKind::call_memory : StepKind::jump_memory, value_at<std::int32_t>(end - 4));
    }
    return;
  default: break;
  }
  if (e.opcode >= 0xb8 && e.opcode <= 0xbf && !e.small_operand) {
    branch(StepKind::load_constant, (e.rex & 8) != 0 ? value_at<std::int64_t>(tail) : value_at<std::uint32_t>(tail));
    step.reg = static_cast<std::uint8_t>((e.opcode & 7) | (e.rex & 1) << 3);
  } else if (e.opcode >= 0x50 && e.opcode <= 0x57) {
    step.kind = StepKind::push_register;
    step.reg = static_cast<std::uint8_t>((e.opcode & 7) | (e.rex & 1) << 3);
  } else if (e.opcode >= 0x70 && e.opcode <= 0x7f) {
    branch(StepKind::branch, value_at<std::int8_t>(tail));
  }
}

} // namespace

CodeStep step_at(Bytes code) {
  const auto *const bytes = reinterpret_cast<const std::uint8_t *>(code.data());
  const std::size_t size = code.size() < longest ? code.size() : longest;
  Encoding e;
  bool small_address = false;
  std::size_t at = 0;
  for (; at < size && (is_prefix(bytes[at]) || (bytes[at] & 0xf0) == 0x40); ++at) {
    const std::uint8_t byte = bytes[at];
    e.rex = (byte & 0xf0) == 0x40 ? byte : 0; // one that other prefixes follow counts for nothing
    e.small_operand |= byte == 0x66;
    e.repeat |= byte == 0xf3;
    small_address |= byte == 0x67;
  }
  if (at >= size)
    return {};
  std::uint8_t parts = 0;
  e.opcode = bytes[at++];
  const auto next = [&](std::size_t ahead = 0) { return at + ahead < size ? bytes[at + ahead] : std::uint8_t{0}; };
  if (e.opcode == 0x0f) {
    e.opcode = next();
    e.map = 1;
    ++at;
    parts = two_bytes[e.opcode];
    if (e.opcode == 0x38 || e.opcode == 0x3a) {
      e.map = e.opcode == 0x38 ? 2 : 3;
      parts = e.opcode == 0x38 ? modrm : modrm | imm8;
      e.opcode = next();
      ++at;
    }
  } else if (e.opcode == 0xc5) {
    e.map = 1;
    e.opcode = next(1);
    at += 2;
    parts = parts_of_vector(1, e.opcode);
    e.map += 8; // no kind of these is looked at
  } else if (e.opcode == 0xc4 || e.opcode == 0x62) {
    const bool wide = e.opcode == 0x62;
    const unsigned map = next() & (wide ? 7 : 31);
    e.opcode = next(wide ? 3 : 2);
    at += wide ? 4 : 3;
    parts = parts_of_vector(map, e.opcode);
    e.map = map + 8;
  } else {
    parts = one_byte[e.opcode];
  }
  if ((parts & none) != 0 || at > size)
    return {};
  if ((parts & modrm) != 0) {
    if (at >= size)
      return {};
    e.modrm = bytes[at++];
    const std::uint8_t mod = e.modrm >> 6, rm = e.modrm & 7;
    const bool moves_control = e.map == 1 && e.opcode >= 0x20 && e.opcode <= 0x23; // only ever registers
    if (mod != 3 && !moves_control) {
      const bool has_sib = rm == 4;
      const bool wide = mod == 2 || (mod == 0 && (rm == 5 || (has_sib && (next() & 7) == 5)));
      at += (has_sib ? 1 : 0) + (wide ? 4 : mod == 1 ? 1 : 0);
    }
    if (e.map == 0) {
      if (e.opcode == 0x8f && (e.modrm >> 3 & 7) != 0)
        return {}; // XOP
      if ((e.opcode & 0xfe) == 0xf6 && (e.modrm >> 3 & 7) < 2)
        parts |= e.opcode == 0xf6 ? imm8 : imm_z;
    }
  }
  const std::size_t tail = at;
  const std::size_t operand = e.small_operand && (e.rex & 8) == 0 ? 2 : 4;
  at += ((parts & imm8) != 0 ? 1 : 0) + ((parts & imm16) != 0 ? 2 : 0) + ((parts & imm_z) != 0 ? operand : 0) +
        ((parts & imm_v) != 0 ? ((e.rex & 8) != 0 ? 8 : operand) : 0) + ((parts & rel32) != 0 ? 4 : 0) +
        ((parts & moffs) != 0 ? (small_address ? 4 : 8) : 0);
  if (at > size)
    return {};
  CodeStep step;
  step.length = static_cast<std::uint8_t>(at);
  classify(step, e, bytes + tail, bytes + at);
  return step;
}

} // namespace lararium::x86_64
