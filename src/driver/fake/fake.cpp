#include "lararium/driver/fake.h"

#include <algorithm>

namespace lararium {

FakeMemory::FakeMemory(std::uint64_t size) : FakeMemory(std::vector{RamRange{Gpa{0}, size, "fake"}}) {}

FakeMemory::FakeMemory(std::vector<RamRange> ranges) { set_ranges(std::move(ranges)); }

void FakeMemory::write(Gpa address, Bytes bytes) {
  while (!bytes.empty()) {
    const std::size_t length = std::min<std::uint64_t>(bytes.size(), page_size - address.page_offset());
    std::memcpy(pages_[address.value / page_size].data() + address.page_offset(), bytes.data(), length);
    bytes = bytes.subspan(length);
    address += length;
  }
}

void FakeMemory::map_run(Gpa base, std::vector<std::byte> bytes) {
  runs_.emplace_back(base, std::move(bytes));
  std::vector<MappedRun> runs;
  for (const auto &[start, content] : runs_)
    runs.push_back({start, content});
  set_mapped_runs(std::move(runs));
}

void FakeMemory::stop_failing() {
  failing_read_ = UINT64_MAX;
  failing_ranges_.clear();
}

bool FakeMemory::read_unmapped(Gpa address, std::span<std::byte> out) const {
  const std::uint64_t number = reads_++;
  if (before_read)
    before_read(number, address, out.size());
  if (number == failing_read_)
    return false;
  const auto touches = [&](const RamRange &range) {
    return address.value < range.base.value + range.size && range.base.value < address.value + out.size();
  };
  if (std::ranges::any_of(failing_ranges_, touches))
    return false;
  return peek(address, out);
}

bool FakeMemory::peek(Gpa address, std::span<std::byte> out) const {
  while (!out.empty()) {
    const std::size_t length = std::min<std::uint64_t>(out.size(), page_size - address.page_offset());
    const std::span<std::byte> piece = out.first(length);
    // The first range that ends behind the address.
    const auto range = std::ranges::partition_point(
        ranges(), [&](const RamRange &candidate) { return candidate.base + candidate.size <= address; });
    const bool is_ram =
        range != ranges().end() && range->base <= address && length <= range->base + range->size - address;
    if (!is_ram)
      return false;
    if (const Bytes mapped = view(address); !mapped.empty())
      std::memcpy(piece.data(), mapped.data(), std::min(length, mapped.size()));
    else if (const auto page = pages_.find(address.value / page_size); page != pages_.end())
      std::memcpy(piece.data(), page->second.data() + address.page_offset(), length);
    else
      std::ranges::fill(piece, std::byte{0});
    out = out.subspan(length);
    address += length;
  }
  return true;
}

std::vector<RamRange> FakeMemory::populated(Gpa base, std::uint64_t size) const {
  std::vector<RamRange> result;
  const auto add = [&](Gpa start, std::uint64_t length) {
    if (!result.empty() && result.back().base.value + result.back().size >= start.value)
      result.back().size = std::max(result.back().size, start + length - result.back().base);
    else
      result.push_back({start, length, {}});
  };
  for (const RamRange &range : PhysicalMemory::populated(base, size)) {
    const Gpa end = range.base + range.size;
    std::vector<RamRange> written;
    for (auto page = pages_.lower_bound(range.base.value / page_size);
         page != pages_.end() && page->first * page_size < end.value; ++page)
      written.push_back({Gpa{page->first * page_size}, page_size, {}});
    for (const auto &[start, content] : runs_)
      written.push_back({start, content.size(), {}});
    std::ranges::sort(written, {}, &RamRange::base);
    for (const RamRange &run : written)
      if (const Gpa from = std::max(run.base, range.base), to = std::min(run.base + run.size, end); from < to)
        add(from, to - from);
  }
  return result;
}

FakePageTables::FakePageTables(FakeMemory &memory, Gpa first_table, unsigned levels)
    : memory_(memory), root_(first_table), next_(first_table + page_size), levels_(levels) {
  memory_.write(root_, std::array<std::byte, page_size>{});
}

Gpa FakePageTables::entry(Gva address, unsigned level) {
  constexpr std::uint64_t address_bits = 0x000ffffffffff000;
  Gpa table = root_;
  for (unsigned current = levels_ - 1;; --current) {
    const Gpa slot = table + (address.value >> (12 + 9 * current) & 511) * sizeof(std::uint64_t);
    if (current == level)
      return slot;
    std::uint64_t content = 0;
    static_cast<void>(memory_.peek(slot, writable_bytes_of(content)));
    if ((content & present) == 0) {
      content = next_.value | present | writable | user;
      memory_.write_value(slot, content);
      memory_.write(next_, std::array<std::byte, page_size>{});
      next_ += page_size;
    }
    table = Gpa{content & address_bits};
  }
}

void FakePageTables::map(Gva address, Gpa target, PageSize size, std::uint64_t flags) {
  const auto level = static_cast<unsigned>(size);
  memory_.write_value(entry(address, level), target.value | flags | (level != 0 ? std::uint64_t{large} : 0));
}

void FakePageTables::map_range(Gva address, Gpa target, std::uint64_t size, std::uint64_t flags) {
  for (std::uint64_t done = 0; done < size; done += page_size)
    map(address + done, target + done, PageSize::small, flags);
}

Result<std::vector<VcpuRegisters>> FakeVcpus::registers() {
  ++reads;
  if (failing)
    return fail(ErrorCode::gone, "the fake vCPUs were told to fail");
  return list;
}

Result<RunState> FakeRunControl::state() {
  calls.emplace_back("state");
  if (failing)
    return fail(ErrorCode::gone, "the fake run control was told to fail");
  return current;
}

Result<void> FakeRunControl::pause() {
  calls.emplace_back("pause");
  if (failing)
    return fail(ErrorCode::gone, "the fake run control was told to fail");
  current = RunState::paused;
  return {};
}

Result<void> FakeRunControl::resume() {
  calls.emplace_back("resume");
  if (failing)
    return fail(ErrorCode::gone, "the fake run control was told to fail");
  current = RunState::running;
  return {};
}

namespace {

class FakePauseGuard final : public PauseGuard {
public:
  explicit FakePauseGuard(std::vector<std::string> &calls) : calls_(calls) {}
  ~FakePauseGuard() override {
    if (!dismissed_)
      calls_.emplace_back("forsaken");
  }
  void paused() override { calls_.emplace_back("paused"); }
  void dismiss() override {
    calls_.emplace_back("dismiss");
    dismissed_ = true;
  }

private:
  std::vector<std::string> &calls_;
  bool dismissed_ = false;
};

} // namespace

Result<std::unique_ptr<PauseGuard>> FakeRunControl::guard_pause() {
  calls.emplace_back("guard");
  return std::make_unique<FakePauseGuard>(calls);
}

void FakeProtection::write(Gpa address, Bytes bytes, std::optional<std::uint32_t> vcpu) {
  if (protected_.contains(address.value / unit))
    waiting_.push_back({address, {bytes.begin(), bytes.end()}, {address, true, vcpu, 1}, false});
  else
    memory_.write(address, bytes);
}

Result<void> FakeProtection::protect(Gpa base, std::uint64_t size) {
  if (failing)
    return fail(ErrorCode::unsupported, "the fake protection was told to fail");
  for (std::uint64_t at = base.value; at < base.value + size; at += unit)
    protected_.insert(at / unit);
  return {};
}

Result<void> FakeProtection::release(Gpa base, std::uint64_t size) {
  for (std::uint64_t at = base.value; at < base.value + size; at += unit)
    protected_.erase(at / unit);
  std::erase_if(waiting_, [&](const Waiting &each) {
    if (each.address < base || each.address - base >= size)
      return false;
    memory_.write(each.address, each.bytes);
    return true;
  });
  return {};
}

Result<std::size_t> FakeProtection::wait(std::span<WriteFault> out, std::chrono::microseconds) {
  std::size_t filled = 0;
  for (Waiting &each : waiting_)
    if (!each.told && filled < out.size()) {
      each.told = true;
      out[filled++] = each.fault;
    }
  return filled;
}

Result<void> FakeProtection::overwrite(Gpa address, Bytes bytes) {
  memory_.write(address, bytes);
  return {};
}

FakeTarget make_fake_target(std::uint64_t memory_size) {
  auto memory = std::make_unique<FakeMemory>(memory_size);
  auto vcpus = std::make_unique<FakeVcpus>();
  auto run_control = std::make_unique<FakeRunControl>();
  FakeMemory &memory_reference = *memory;
  FakeVcpus &vcpus_reference = *vcpus;
  FakeRunControl &run_control_reference = *run_control;
  Target target;
  target.identity.name = "fake";
  target.identity.memory_access = "fake";
  target.memory = std::move(memory);
  target.vcpus = std::move(vcpus);
  target.run_control = std::move(run_control);
  return {std::move(target), memory_reference, vcpus_reference, run_control_reference};
}

} // namespace lararium
