#include "lararium/arch/x86_64_code_step.h"

#include <gtest/gtest.h>
#include <initializer_list>
#include <vector>

namespace lararium::x86_64 {
namespace {

std::vector<std::byte> code(std::initializer_list<unsigned> values) {
  std::vector<std::byte> bytes;
  for (const unsigned value : values)
    bytes.push_back(static_cast<std::byte>(value));
  return bytes;
}

struct Case {
  std::vector<std::byte> bytes;
  unsigned length;
  StepKind kind = StepKind::other;
  std::int64_t value = 0;
  unsigned reg = 0;
};

TEST(CodeStep, KnowsWhatHooksAreMadeOf) {
  const std::vector<Case> cases{
      {code({0xe8, 0xfe, 0xff, 0xff, 0xff}), 5, StepKind::call, -2},
      {code({0xe9, 1, 0, 0, 0}), 5, StepKind::jump, 1},
      {code({0x2e, 0xe9, 1, 0, 0, 0}), 6, StepKind::jump, 1}, // a retpoline's padding
      {code({0xeb, 0x80}), 2, StepKind::jump, -128},
      {code({0x74, 0x10}), 2, StepKind::branch, 16},
      {code({0x0f, 0x84, 0, 0, 0, 0x80}), 6, StepKind::branch, -0x80000000LL},
      {code({0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 0x88}), 10, StepKind::load_constant,
       static_cast<std::int64_t>(0x8807060504030201), 0},
      {code({0x49, 0xbb, 1, 0, 0, 0, 0, 0, 0, 0}), 10, StepKind::load_constant, 1, 11},
      {code({0x48, 0xc7, 0xc0, 0, 0, 0, 0x80}), 7, StepKind::load_constant, -0x80000000LL, 0},
      {code({0xb9, 0, 0, 0, 0x80}), 5, StepKind::load_constant, 0x80000000LL, 1},
      {code({0xff, 0xe0}), 2, StepKind::jump_register, 0, 0},
      {code({0x41, 0xff, 0xe3}), 3, StepKind::jump_register, 0, 11},
      {code({0xff, 0xd2}), 2, StepKind::call_register, 0, 2},
      {code({0xff, 0x25, 0x10, 0, 0, 0}), 6, StepKind::jump_memory, 16},
      {code({0xff, 0x15, 0xf0, 0xff, 0xff, 0xff}), 6, StepKind::call_memory, -16},
      {code({0x68, 0, 0, 0, 0x80}), 5, StepKind::push_constant, -0x80000000LL},
      {code({0xc7, 0x44, 0x24, 4, 0xff, 0xff, 0xff, 0xff}), 8, StepKind::store_high, -1},
      {code({0x41, 0x52}), 2, StepKind::push_register, 0, 10},
      {code({0xc3}), 1, StepKind::ret},
      {code({0xcc}), 1, StepKind::trap},
      {code({0xf3, 0x0f, 0x1e, 0xfa}), 4, StepKind::entry},
      {code({0x66, 0x90}), 2, StepKind::pad},
      {code({0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0}), 10, StepKind::pad},
      {code({0xf3, 0x90}), 2}, // pause is no padding
  };
  for (const Case &each : cases) {
    const CodeStep step = step_at(each.bytes);
    EXPECT_EQ(step.length, each.length);
    EXPECT_EQ(step.kind, each.kind) << std::to_integer<unsigned>(each.bytes[0]);
    EXPECT_EQ(step.value, each.value) << std::to_integer<unsigned>(each.bytes[0]);
    EXPECT_EQ(step.reg, each.reg) << std::to_integer<unsigned>(each.bytes[0]);
    // One byte less is no instruction, or another one.
    const CodeStep cut = step_at(Bytes(each.bytes).first(each.bytes.size() - 1));
    EXPECT_LT(cut.length, each.length);
  }
}

TEST(CodeStep, KnowsLengths) {
  const std::vector<Case> cases{
      {code({0x48, 0x8b, 0x44, 0x24, 0x08}), 5},                // mov rax, [rsp + 8]
      {code({0x48, 0x8b, 0x04, 0xc5, 0, 0, 0, 0}), 8},          // mov rax, [rax * 8 + 0]
      {code({0x65, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0}), 9}, // mov rax, gs:[0x28]
      {code({0x66, 0x81, 0x3d, 0, 0, 0, 0, 0x34, 0x12}), 9},    // cmp word [rip], 0x1234
      {code({0x48, 0xf7, 0xc7, 1, 0, 0, 0}), 7},                // test rdi, 1
      {code({0xf6, 0x05, 0, 0, 0, 0, 1}), 7},                   // test byte [rip], 1
      {code({0x48, 0xf7, 0xd8}), 3},                            // neg rax
      {code({0x0f, 0x22, 0x18}), 3},                            // mov cr3, rax, whatever its mode says
      {code({0xc5, 0xf8, 0x77}), 3},                            // vzeroupper
      {code({0xc4, 0xe3, 0x79, 0x0f, 0xc1, 0x08}), 6},          // vpalignr xmm0, xmm0, xmm1, 8
      {code({0x62, 0xf1, 0xfd, 0x48, 0x6f, 0x47, 0x01}), 7},    // vmovdqa64 zmm0, [rdi + 64]
      {code({0xa0, 1, 2, 3, 4, 5, 6, 7, 8}), 9},                // mov al, [...]
      {code({0xc8, 0x10, 0, 0}), 4},                            // enter
  };
  for (const Case &each : cases) {
    EXPECT_EQ(step_at(each.bytes).length, each.length) << std::to_integer<unsigned>(each.bytes[0]);
    EXPECT_EQ(step_at(Bytes(each.bytes).first(each.bytes.size() - 1)).length, 0);
  }
  for (const auto &none : {code({}), code({0x06}), code({0x0f, 0x0a}), code({0x66, 0x66, 0x66}), code({0xea, 0, 0}),
                           std::vector<std::byte>(20, std::byte{0x66})})
    EXPECT_EQ(step_at(none).length, 0);
}

} // namespace
} // namespace lararium::x86_64
