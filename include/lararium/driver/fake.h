// A target made of nothing, for tests: memory that a test fills, whose reads it can make fail or change, and ports that
// record what was asked of them.
#pragma once

#include "lararium/vm/target.h"

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace lararium {

// Sparse pages; those that were never written read as zeros inside the ranges and fail outside them. Every read passes
// through here, none through a mapped run, save in memory given by map_run().
class FakeMemory final : public PhysicalMemory {
public:
  // RAM from guest-physical address 0.
  explicit FakeMemory(std::uint64_t size);
  explicit FakeMemory(std::vector<RamRange> ranges);

  void write(Gpa address, Bytes bytes);
  template <class T>
    requires std::is_trivially_copyable_v<T>
  void write_value(Gpa address, const T &value) {
    write(address, std::as_bytes(std::span(&value, 1)));
  }
  void write_string(Gpa address, std::string_view text) { // with its NUL
    write(address, bytes_of(text));
    write_value(address + text.size(), '\0');
  }
  // Gives [base, base + bytes) to a mapped run, which view() shows and which reads go to directly. Whole pages.
  void map_run(Gpa base, std::vector<std::byte> bytes);
  // Reads without being counted and without faults.
  [[nodiscard]] bool peek(Gpa address, std::span<std::byte> out) const;

  // ---- faults; reads are counted from 0 and since the construction
  void fail_read(std::uint64_t number) { failing_read_ = number; }
  void fail_range(Gpa base, std::uint64_t size) { failing_ranges_.push_back({base, size, {}}); }
  void stop_failing();
  // Called before each read with its number; may write, so that two reads of one place differ.
  std::function<void(std::uint64_t number, Gpa address, std::size_t size)> before_read;

  [[nodiscard]] std::uint64_t read_count() const { return reads_; }
  [[nodiscard]] std::uint64_t refresh_count() const { return refreshes_; }

  // Only the pages that were written.
  [[nodiscard]] std::vector<RamRange> populated(Gpa base, std::uint64_t size) const override;
  void refresh() override { ++refreshes_; }

protected:
  [[nodiscard]] bool read_unmapped(Gpa address, std::span<std::byte> out) const override;

private:
  using Page = std::array<std::byte, page_size>;
  std::map<std::uint64_t, Page> pages_;
  std::vector<std::pair<Gpa, std::vector<std::byte>>> runs_;
  std::vector<RamRange> failing_ranges_;
  std::uint64_t failing_read_ = UINT64_MAX;
  mutable std::uint64_t reads_ = 0;
  std::uint64_t refreshes_ = 0;
};

// Builds x86-64 page tables in fake memory. Tables are taken from `next` upwards, one page each.
class FakePageTables {
public:
  enum Flag : std::uint64_t {
    present = 1,
    writable = 2,
    user = 4,
    large = 1 << 7,
    no_execute = std::uint64_t{1} << 63
  };
  enum class PageSize : std::uint8_t { small, large_2m, huge_1g };

  FakePageTables(FakeMemory &memory, Gpa first_table, unsigned levels = 4);

  [[nodiscard]] Gpa root() const { return root_; } // for CR3
  [[nodiscard]] unsigned levels() const { return levels_; }
  [[nodiscard]] Gpa next() const { return next_; } // the first page that no table uses

  void map(Gva address, Gpa target, PageSize size = PageSize::small, std::uint64_t flags = present | writable);
  // As many small pages as `size` takes.
  void map_range(Gva address, Gpa target, std::uint64_t size, std::uint64_t flags = present | writable);
  // Where the entry lies that maps the address at a level (0: page table, 1: page directory ...), making tables above
  // it.
  [[nodiscard]] Gpa entry(Gva address, unsigned level);

private:
  FakeMemory &memory_;
  Gpa root_, next_;
  unsigned levels_;
};

class FakeVcpus final : public Vcpus {
public:
  std::vector<VcpuRegisters> list;
  bool failing = false;
  unsigned reads = 0;
  [[nodiscard]] Result<std::vector<VcpuRegisters>> registers() override;
  [[nodiscard]] Result<std::vector<VcpuRegisters>> registers_with_msrs() override { return registers(); }
};

class FakeRunControl final : public RunControl {
public:
  RunState current = RunState::running;
  bool failing = false;
  std::vector<std::string> calls; // "state", "pause", "resume"
  [[nodiscard]] Result<RunState> state() override;
  [[nodiscard]] Result<void> pause() override;
  [[nodiscard]] Result<void> resume() override;
};

// Holds no writes by itself: a test says who writes. A write goes to the memory when its page is released; what is not
// protected is written at once.
class FakeProtection final : public WriteProtection {
public:
  explicit FakeProtection(FakeMemory &memory) : memory_(memory) {}
  void write(Gpa address, Bytes bytes, std::optional<std::uint32_t> vcpu = 0);

  std::uint64_t unit = page_size;
  bool failing = false; // protect() is refused
  bool holds_code = true;
  [[nodiscard]] bool may_hold_code() const override { return holds_code; }
  [[nodiscard]] const std::set<std::uint64_t> &protected_units() const { return protected_; }
  [[nodiscard]] bool somebody_waits() const { return !waiting_.empty(); }

  [[nodiscard]] std::uint64_t unit_at(Gpa) const override { return unit; }
  [[nodiscard]] Result<void> protect(Gpa base, std::uint64_t size) override;
  [[nodiscard]] Result<void> release(Gpa base, std::uint64_t size) override;
  [[nodiscard]] Result<std::size_t> wait(std::span<WriteFault> out, std::chrono::microseconds timeout) override;
  [[nodiscard]] Result<void> overwrite(Gpa address, Bytes bytes) override;

private:
  struct Waiting {
    Gpa address;
    std::vector<std::byte> bytes;
    WriteFault fault;
    bool told = false;
  };
  FakeMemory &memory_;
  std::set<std::uint64_t> protected_; // numbers of units
  std::vector<Waiting> waiting_;
};

// A live target of these ports. The references stay valid as long as the target does.
struct FakeTarget {
  Target target;
  FakeMemory &memory;
  FakeVcpus &vcpus;
  FakeRunControl &run_control;
};
[[nodiscard]] FakeTarget make_fake_target(std::uint64_t memory_size);

} // namespace lararium
