// Reads the code that is put into guests, instruction by instruction: it must not depend on anything but its own pages,
// the stack, and what it was called with.
#include "trampoline.h"

#include <Zydis/Zydis.h>
#include <gtest/gtest.h>
#include <set>
#include <string>

namespace lararium::gate {
namespace {

constexpr Gva base{0xffffffffff89b000}, function{0xffffffff81234560};
constexpr AreaShape shape{.cpus = 4, .bells = 2};

std::vector<std::byte> area() {
  const std::vector<Stub> stubs{{function, 0, {}}, {function + 0x1000, 1, {2, 2, 2, 2}}};
  const std::vector sites{PatchedSite{Gva{0xffffffff81000100}, Gpa{0x1000100}, 1, 2, 0, 0}};
  return make_area(base, shape,
                   {.on = true, .default_verdict = 1, .generation = 7, .spin_cycles = 5, .patience_cycles = 6}, stubs,
                   sites);
}

struct Instruction {
  std::uint64_t offset = 0;
  ZydisDecodedInstruction what{};
  std::array<ZydisDecodedOperand, ZYDIS_MAX_OPERAND_COUNT> operands{};
};

std::vector<Instruction> disassemble(Bytes code) {
  ZydisDecoder decoder;
  ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
  std::vector<Instruction> result;
  for (std::size_t at = 0; at < code.size();) {
    Instruction instruction;
    instruction.offset = at;
    const auto status = ZydisDecoderDecodeFull(&decoder, code.data() + at, code.size() - at, &instruction.what,
                                               instruction.operands.data());
    if (!ZYAN_SUCCESS(status)) {
      ADD_FAILURE() << "no instruction at " << at;
      break;
    }
    at += instruction.what.length;
    result.push_back(instruction);
  }
  return result;
}

TEST(Trampoline, ReadsAndWritesItsOwnPagesAndTheStackAlone) {
  for (const Instruction &each : disassemble(trampoline_code()))
    for (std::size_t i = 0; i < each.what.operand_count; ++i) {
      const ZydisDecodedOperand &operand = each.operands[i];
      if (operand.type != ZYDIS_OPERAND_TYPE_MEMORY || operand.mem.type == ZYDIS_MEMOP_TYPE_AGEN)
        continue;
      EXPECT_NE(operand.mem.segment, ZYDIS_REGISTER_GS) << each.offset;
      EXPECT_NE(operand.mem.segment, ZYDIS_REGISTER_FS) << each.offset;
      if (operand.mem.base != ZYDIS_REGISTER_RIP) {
        // The stack, or what was computed from the CPU's entry, its slot or a stub's: never what the caller brought.
        EXPECT_TRUE((std::set{ZYDIS_REGISTER_RSP, ZYDIS_REGISTER_R10, ZYDIS_REGISTER_R11, ZYDIS_REGISTER_RAX,
                              ZYDIS_REGISTER_RCX, ZYDIS_REGISTER_RDX})
                        .contains(operand.mem.base))
            << each.offset;
        continue;
      }
      const std::uint64_t target = each.offset + each.what.length + static_cast<std::uint64_t>(operand.mem.disp.value);
      EXPECT_LT(target, shape.size()) << each.offset;
      const bool is_written = (operand.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
      EXPECT_FALSE(is_written) << "what lies at fixed places is the monitor's to write: " << each.offset;
    }
}

TEST(Trampoline, CallsNothingAndJumpsNowhereElse) {
  const Bytes code = trampoline_code();
  std::set<std::uint64_t> starts;
  const auto instructions = disassemble(code);
  for (const Instruction &each : instructions)
    starts.insert(each.offset);
  int calls = 0;
  bool is_on = true; // interrupts, as far as the text goes
  for (const Instruction &each : instructions) {
    EXPECT_NE(each.what.mnemonic, ZYDIS_MNEMONIC_STI) << each.offset;
    EXPECT_NE(each.what.mnemonic, ZYDIS_MNEMONIC_INT) << each.offset;
    if (each.what.mnemonic == ZYDIS_MNEMONIC_CLI)
      is_on = false;
    if (each.what.meta.branch_type == ZYDIS_BRANCH_TYPE_NONE || each.what.mnemonic == ZYDIS_MNEMONIC_RET)
      continue;
    ASSERT_EQ(each.operands[0].type, ZYDIS_OPERAND_TYPE_IMMEDIATE) << "an indirect jump at " << each.offset;
    const std::uint64_t target =
        each.offset + each.what.length + static_cast<std::uint64_t>(each.operands[0].imm.value.s);
    // The two calls of the monitor's other part, whose distance is filled in.
    calls += each.what.mnemonic == ZYDIS_MNEMONIC_CALL ? 1 : 0;
    EXPECT_TRUE(starts.contains(target)) << each.offset;
  }
  EXPECT_FALSE(is_on);
  EXPECT_EQ(calls, 2);
  EXPECT_LE(code.size(), page_size / 4) << "small enough to be read in one sitting";
}

TEST(SimCode, TouchesNoMachineStateAndLeavesItsPagesByReturningAlone) {
  const Bytes code = sim::code();
  ASSERT_LE(code.size(), GATE_SIM_SIZE);
  // Constants may follow the instructions: read as far as jumps lead.
  std::set<std::uint64_t> seen;
  std::vector<std::uint64_t> open{0};
  ZydisDecoder decoder;
  ZydisDecoderInit(&decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
  while (!open.empty()) {
    std::uint64_t at = open.back();
    open.pop_back();
    while (seen.insert(at).second) {
      ASSERT_LT(at, code.size());
      ZydisDecodedInstruction what;
      std::array<ZydisDecodedOperand, ZYDIS_MAX_OPERAND_COUNT> operands;
      ASSERT_TRUE(
          ZYAN_SUCCESS(ZydisDecoderDecodeFull(&decoder, code.data() + at, code.size() - at, &what, operands.data())))
          << at;
      EXPECT_EQ(what.attributes & ZYDIS_ATTRIB_IS_PRIVILEGED, 0) << at;
      EXPECT_NE(what.meta.category, ZYDIS_CATEGORY_INTERRUPT) << at;
      EXPECT_NE(what.meta.category, ZYDIS_CATEGORY_SYSCALL) << at;
      for (std::size_t i = 0; i < what.operand_count; ++i) {
        const auto &operand = operands[i];
        const bool is_written = (operand.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
        if (operand.type == ZYDIS_OPERAND_TYPE_REGISTER) {
          EXPECT_LE(ZydisRegisterGetWidth(ZYDIS_MACHINE_MODE_LONG_64, operand.reg.value), 64) << "a vector at " << at;
        }
        if (operand.type == ZYDIS_OPERAND_TYPE_MEMORY && operand.mem.base == ZYDIS_REGISTER_RIP) {
          EXPECT_FALSE(is_written) << at;
          EXPECT_LT(at + what.length + static_cast<std::uint64_t>(operand.mem.disp.value), code.size()) << at;
        }
        if (operand.type == ZYDIS_OPERAND_TYPE_MEMORY && operand.mem.segment == ZYDIS_REGISTER_GS) {
          EXPECT_FALSE(is_written) << at;
        }
      }
      if (what.mnemonic == ZYDIS_MNEMONIC_RET)
        break;
      if (what.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE) {
        ASSERT_EQ(operands[0].type, ZYDIS_OPERAND_TYPE_IMMEDIATE) << "an indirect jump at " << at;
        open.push_back(at + what.length + static_cast<std::uint64_t>(operands[0].imm.value.s));
        if (what.mnemonic == ZYDIS_MNEMONIC_JMP)
          break;
      }
      at += what.length;
    }
  }
  EXPECT_GT(seen.size(), 200);
}

TEST(Trampoline, AStubCallsTheCodeAndGoesOnToItsFunction) {
  const auto bytes = area();
  for (std::size_t i = 0; i < 2; ++i) {
    const auto stub = disassemble(Bytes(bytes).subspan(stub_offset(i), 10));
    ASSERT_EQ(stub.size(), 2);
    EXPECT_EQ(stub[0].what.mnemonic, ZYDIS_MNEMONIC_CALL);
    EXPECT_EQ(base + stub_offset(i) + 5 + static_cast<std::uint64_t>(stub[0].operands[0].imm.value.s), base);
    EXPECT_EQ(stub[1].what.mnemonic, ZYDIS_MNEMONIC_JMP);
    EXPECT_EQ(base + stub_offset(i) + 10 + static_cast<std::uint64_t>(stub[1].operands[0].imm.value.s),
              function + i * 0x1000);
  }
  EXPECT_EQ(trampoline_code().size() % STUB_SIZE, 0);
}

TEST(Trampoline, EachCpuHasASlotAndBellsOfItsOwn) {
  const auto bytes = area();
  std::set<std::uint64_t> places;
  for (std::uint32_t cpu = 0; cpu < shape.cpus; ++cpu) {
    const auto slot = load<std::uint64_t>(bytes, shape.cpu_entry(cpu) + CPU_SLOT);
    EXPECT_TRUE(shape.is_slot(*slot - base.value));
    EXPECT_TRUE(places.insert(*slot).second);
    for (std::uint64_t event = 0; event < 4; ++event) {
      EXPECT_TRUE(shape.is_bell(shape.bell_of(cpu, event)));
      EXPECT_NE(shape.bell_of(cpu, event), shape.bell_of(cpu, event + 1));
      places.insert(base.value + shape.bell_of(cpu, event));
    }
  }
  EXPECT_EQ(places.size(), shape.cpus * 3);
}

TEST(Sim, RingsLieBehindItsDataOrInTheMemoryOfADevice) {
  constexpr Gva device{0xffffffffffc00000};
  constexpr std::uint64_t size = 64 << 10;
  AreaShape in_area{.cpus = 4, .bells = 2, .sim = {.cpus = 4, .ring_size = size}}, elsewhere = in_area;
  elsewhere.sim.rings_elsewhere = true;
  EXPECT_EQ(in_area.size(), elsewhere.size() + 4 * size);
  BoardSettings settings;
  settings.sim_data = base + in_area.sim_data();
  settings.rings = device;
  const auto with_rings = make_area(base, in_area, settings, {}, {}),
             without = make_area(base, elsewhere, settings, {}, {});
  for (std::uint32_t cpu = 0; cpu < 4; ++cpu) {
    const std::uint64_t ring = base.value + in_area.sim_data() + in_area.sim.rings() + cpu * size;
    EXPECT_EQ(load<std::uint64_t>(with_rings, in_area.cpu_entry(cpu) + CPU_RING), ring);
    EXPECT_TRUE(in_area.is_ring(ring - base.value) && in_area.is_ring(ring + size - 1 - base.value));
    EXPECT_EQ(load<std::uint64_t>(without, elsewhere.cpu_entry(cpu) + CPU_RING), device.value + cpu * size);
  }
}

} // namespace
} // namespace lararium::gate
