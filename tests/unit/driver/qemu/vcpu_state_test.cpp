#include "vcpu_state.h"

#include <gtest/gtest.h>

namespace lararium::qemu {
namespace {

// Offsets in a state that begins at TR, as in QEMU 10.0.
constexpr std::size_t efer_at = 240, run_at = 0x2ab0 + 24;

class State {
public:
  explicit State(std::size_t size, Hva base = Hva{0x5581'6228'c000}) : base_(base), bytes_(size) {}

  template <class T> void put(std::size_t offset, T value) {
    std::memcpy(bytes_.data() + offset, &value, sizeof(value));
  }
  void put_state(std::size_t at, const VcpuRegisters &vcpu) {
    put(at, std::uint32_t{0x40});
    put(at + 8, vcpu.tr_base);
    put(at + 32, vcpu.gdt_base);
    put(at + 40, std::uint32_t{vcpu.gdt_limit});
    put(at + 56, vcpu.idt_base);
    put(at + 64, std::uint32_t{vcpu.idt_limit});
    put(at + 72, vcpu.cr0);
    put(at + 88, vcpu.cr2);
    put(at + 96, vcpu.cr3);
    put(at + 104, vcpu.cr4);
    put(at + efer_at, vcpu.efer);
  }
  void put_run(std::size_t at, const SystemCallMsrs &msrs) {
    put(at, msrs.sysenter_cs);
    put(at + 8, msrs.sysenter_esp);
    put(at + 16, msrs.sysenter_eip);
    put(at + 24, msrs.star);
    put(at + 40, msrs.lstar);
    put(at + 48, msrs.cstar);
    put(at + 56, msrs.fmask);
    put(at + 64, msrs.kernel_gs_base);
  }
  // The head of an empty list, as CPUState has some.
  void put_head(std::size_t at) { put(at + 8, base_ + at); }

  [[nodiscard]] Hva base() const { return base_; }
  [[nodiscard]] Bytes bytes() const { return bytes_; }
  [[nodiscard]] Bytes state(std::size_t at) const { return clamp_subspan(bytes_, at, state_size); }
  [[nodiscard]] std::vector<StatePlace> find(std::span<const VcpuRegisters> vcpus, std::size_t from = 0) const {
    return find_vcpu_states(bytes_, base_, from, vcpus);
  }

private:
  Hva base_;
  std::vector<std::byte> bytes_;
};

VcpuRegisters vcpu_number(std::uint32_t index) {
  VcpuRegisters vcpu;
  vcpu.index = index;
  vcpu.cr0 = 0x80050033;
  vcpu.cr3 = 0x1be10000;
  vcpu.cr4 = 0x751eb0;
  vcpu.efer = 0xd01;
  vcpu.gdt_base = Gva{0xfffffe0000001000 + index * 0x3b000};
  vcpu.gdt_limit = 0x7f;
  vcpu.idt_base = Gva{0xfffffe0000000000};
  vcpu.idt_limit = 0xfff;
  vcpu.tr_base = Gva{0xfffffe0000003000 + index * 0x3b000};
  return vcpu;
}

SystemCallMsrs linux_msrs() {
  SystemCallMsrs msrs;
  msrs.star = 0x0023'0010'0000'0000;
  msrs.lstar = Gva{0xffffffff91e00080};
  msrs.cstar = Gva{0xffffffff91e01870};
  msrs.fmask = 0x257fd5;
  msrs.sysenter_cs = 0x10;
  msrs.sysenter_esp = Gva{0xfffffe0000003000};
  msrs.sysenter_eip = Gva{0xffffffff91e017b0};
  return msrs;
}

TEST(VcpuState, IsFoundWithItsMsrs) {
  const std::vector vcpus{vcpu_number(0), vcpu_number(1)};
  State heap(256 << 10);
  const std::array<std::size_t, 2> places{40'000, 140'008};
  for (std::size_t i = 0; i < 2; i++) {
    heap.put_head(places[i] - 0x2b00);
    heap.put_state(places[i], vcpus[i]);
    auto msrs = linux_msrs();
    msrs.kernel_gs_base = Gva{i};
    heap.put_run(places[i] + run_at, msrs);
  }
  const auto found = heap.find(vcpus);
  ASSERT_EQ(found.size(), 2U);
  for (std::size_t i = 0; i < 2; i++) {
    EXPECT_EQ(found[i].vcpu, i);
    EXPECT_EQ(found[i].address, heap.base() + places[i]);
  }
  const std::array states{heap.state(places[0]), heap.state(places[1])};
  const auto offset = find_msr_run(states, vcpus);
  ASSERT_TRUE(offset) << offset.error().describe();
  EXPECT_EQ(*offset, run_at);
  auto expected = linux_msrs();
  expected.kernel_gs_base = Gva{1};
  EXPECT_EQ(read_msr_run(states[1].subspan(*offset)), expected);
}

TEST(VcpuState, WhatLstarHoldsDoesNotMatter) {
  const std::vector vcpus{vcpu_number(0)};
  State heap(64 << 10);
  heap.put_state(0, vcpus[0]);
  auto msrs = linux_msrs();
  msrs.lstar = Gva{0xffffffffc0001234};
  msrs.cstar = msrs.sysenter_eip = Gva{};
  msrs.star |= 0x1234; // not used in 64-bit mode
  msrs.fmask = 0x200;
  heap.put_run(run_at, msrs);
  const std::array states{heap.state(0)};
  EXPECT_EQ(find_msr_run(states, vcpus).value_or(0), run_at);
}

TEST(VcpuState, ACopyThatAGuestMadeDoesNotKnowItsAddress) {
  const std::vector vcpus{vcpu_number(0)};
  State heap(256 << 10);
  heap.put_state(200'000, vcpus[0]); // nothing before it
  EXPECT_TRUE(heap.find(vcpus).empty());
  heap.put_head(40'000 - 0x12d8);
  heap.put_state(40'000, vcpus[0]);
  heap.put(200'000 - 64, heap.base() + 40'000 - 0x12d8); // what the guest knows is another address
  ASSERT_EQ(heap.find(vcpus).size(), 1U);
  EXPECT_EQ(heap.find(vcpus)[0].address, heap.base() + 40'000);
}

TEST(VcpuState, BothOfTwoThatLookAlikeAreTold) {
  const std::vector vcpus{vcpu_number(0)};
  State heap(256 << 10);
  for (const std::size_t place : {40'000, 140'000}) {
    heap.put_head(place - 0x1000);
    heap.put_state(place, vcpus[0]);
  }
  EXPECT_EQ(heap.find(vcpus).size(), 2U);
}

TEST(VcpuState, WhatKernelsSwitchAllTheTimeIsNotCompared) {
  auto vcpu = vcpu_number(0);
  State heap(64 << 10);
  heap.put_head(30'000);
  heap.put_state(40'000, vcpu);
  vcpu.cr0 ^= 1 << 3;            // TS
  vcpu.cr4 ^= 1 << 7;            // PGE
  vcpu.cr3 = 0x2000, vcpu.cr2++; // another task
  EXPECT_EQ(heap.find(std::array{vcpu}).size(), 1U);
  vcpu.cr4 ^= 1 << 20; // SMEP
  EXPECT_TRUE(heap.find(std::array{vcpu}).empty());
}

TEST(VcpuState, IsLookedForOnlyFromAPlaceOn) {
  const std::vector vcpus{vcpu_number(0)};
  State heap(64 << 10);
  heap.put_head(1000);
  heap.put_state(8000, vcpus[0]);
  EXPECT_EQ(heap.find(vcpus, 8000).size(), 1U);
  EXPECT_TRUE(heap.find(vcpus, 8008).empty());
}

TEST(VcpuState, AStateThatIsCutOffIsNone) {
  const std::vector vcpus{vcpu_number(0)};
  State heap(40'000 + state_header_size - 8);
  heap.put_head(1000);
  heap.put(40'000 + 56, vcpus[0].idt_base);
  EXPECT_TRUE(heap.find(vcpus).empty());
  EXPECT_FALSE(read_msr_run(heap.bytes().first(msr_run_size - 1)));
}

TEST(VcpuState, ACpuInFirmwareIsNotLookedFor) {
  const std::vector vcpus{VcpuRegisters{}};
  const State heap(64 << 10);
  EXPECT_TRUE(heap.find(vcpus).empty());
  const std::array states{heap.state(0)};
  const auto offset = find_msr_run(states, vcpus);
  ASSERT_FALSE(offset);
  EXPECT_EQ(offset.error().code, ErrorCode::not_found);
}

TEST(VcpuState, MsrsAtTwoPlacesAreRefused) {
  const std::vector vcpus{vcpu_number(0), vcpu_number(1)};
  State first(state_size), second(state_size);
  for (State *state : {&first, &second}) {
    state->put_state(0, vcpus[state == &second]);
    state->put_run(run_at, linux_msrs());
  }
  first.put_run(0x400, linux_msrs()); // in vector registers of one CPU
  const std::array states{first.bytes(), second.bytes()};
  EXPECT_EQ(find_msr_run(states, vcpus).value_or(0), run_at);
  second.put_run(0x400, linux_msrs());
  const auto offset = find_msr_run(states, vcpus);
  ASSERT_FALSE(offset);
  EXPECT_EQ(offset.error().code, ErrorCode::ambiguous);
}

TEST(VcpuState, MsrsWithoutEferBeforeThemAreNone) {
  const std::vector vcpus{vcpu_number(0)};
  State state(state_size);
  state.put_run(run_at, linux_msrs());
  const std::array states{state.bytes()};
  EXPECT_FALSE(find_msr_run(states, vcpus));
  state.put(efer_at, vcpus[0].efer);
  EXPECT_TRUE(find_msr_run(states, vcpus));
}

} // namespace
} // namespace lararium::qemu
