// One write protection for two: a VM's memory can be held once, and a gate and a memory guard both want it. The gate
// waits; what concerns the other is done in between, by the same thread, so that nobody waits for longer than that
// takes.
//
// The guard comes when the hooks are in: what it compares with are calls that lead to them.
#pragma once

#include "lararium/gate/memory_guard.h"
#include "lararium/vm/protection.h"

#include <memory>
#include <unordered_set>
#include <utility>
#include <vector>

namespace lararium::gate {

class SharedProtection final : public WriteProtection {
public:
  explicit SharedProtection(WriteProtection &host) : host_(host), guards_side_(host) {}

  // From now on all faults that are not on pages that the gate protected are a guard's.
  [[nodiscard]] Result<void> guard(OperatingSystem &system, PhysicalMemory &memory, GuardOptions options);
  void end_guard() { guard_.reset(); }
  [[nodiscard]] const MemoryGuard *memory_guard() const { return guard_.get(); }
  // What the guard found since it was asked last.
  [[nodiscard]] std::vector<Record> take_records() { return std::exchange(records_, {}); }
  [[nodiscard]] std::uint64_t left_out() const { return left_out_; } // of these, for lack of room

  // As the gate has it.
  [[nodiscard]] std::uint64_t unit_at(Gpa address) const override { return host_.unit_at(address); }
  [[nodiscard]] Result<void> protect(Gpa base, std::uint64_t size) override;
  [[nodiscard]] Result<void> release(Gpa base, std::uint64_t size) override { return host_.release(base, size); }
  [[nodiscard]] Result<std::size_t> wait(std::span<WriteFault> out, std::chrono::microseconds timeout) override;
  [[nodiscard]] bool may_hold_code() const override { return host_.may_hold_code(); }
  [[nodiscard]] Result<void> overwrite(Gpa address, Bytes bytes) override { return host_.overwrite(address, bytes); }
  [[nodiscard]] std::span<std::byte> page_in_place(Gpa page) override { return host_.page_in_place(page); }

private:
  // As the guard has it: it waits for nothing, the faults are there.
  class GuardsSide final : public WriteProtection {
  public:
    explicit GuardsSide(WriteProtection &host) : host_(host) {}
    std::vector<WriteFault> faults;
    [[nodiscard]] std::uint64_t unit_at(Gpa address) const override { return host_.unit_at(address); }
    [[nodiscard]] Result<void> protect(Gpa base, std::uint64_t size) override { return host_.protect(base, size); }
    [[nodiscard]] Result<void> release(Gpa base, std::uint64_t size) override { return host_.release(base, size); }
    [[nodiscard]] Result<std::size_t> wait(std::span<WriteFault> out, std::chrono::microseconds timeout) override;
    [[nodiscard]] bool may_hold_code() const override { return host_.may_hold_code(); }
    [[nodiscard]] Result<void> overwrite(Gpa address, Bytes bytes) override { return host_.overwrite(address, bytes); }

  private:
    WriteProtection &host_;
  };

  WriteProtection &host_;
  GuardsSide guards_side_;
  std::unique_ptr<MemoryGuard> guard_;
  std::unordered_set<std::uint64_t> gates_; // pages
  std::vector<Record> records_;
  std::uint64_t left_out_ = 0;
};

} // namespace lararium::gate
