#include "lararium/gate/shared_protection.h"

#include <algorithm>

namespace lararium::gate {
namespace {

constexpr std::size_t records_limit = 4096; // that nobody took

} // namespace

Result<void> SharedProtection::guard(OperatingSystem &system, PhysicalMemory &memory, GuardOptions options) {
  TRY_ASSIGN(guard_, MemoryGuard::create(system, memory, guards_side_, std::move(options)));
  return {};
}

Result<void> SharedProtection::protect(Gpa base, std::uint64_t size) {
  for (std::uint64_t at = 0; at < size; at += page_size)
    gates_.insert(base.value + at);
  return host_.protect(base, size);
}

Result<std::size_t> SharedProtection::wait(std::span<WriteFault> out, std::chrono::microseconds timeout) {
  if (!guard_)
    return host_.wait(out, timeout);
  using Clock = MemoryGuard::Clock;
  const auto until_due = std::chrono::ceil<std::chrono::microseconds>(
      std::max(guard_->due(Clock::now()) - Clock::now(), Clock::duration::zero()));
  TRY_ASSIGN(const std::size_t count, host_.wait(out, std::min(timeout, until_due)));
  std::size_t kept = 0;
  for (std::size_t i = 0; i < count; ++i)
    if (gates_.contains(out[i].address.page().value))
      out[kept++] = out[i];
    else
      guards_side_.faults.push_back(out[i]);
  const auto now = Clock::now();
  if (!guards_side_.faults.empty() || now >= guard_->due(now)) {
    std::vector<Record> found;
    do
      TRY(guard_->step(std::chrono::milliseconds(0), found));
    while (!guards_side_.faults.empty());
    for (Record &record : found)
      if (records_.size() < records_limit)
        records_.push_back(std::move(record));
      else
        ++left_out_;
  }
  return kept;
}

Result<std::size_t> SharedProtection::GuardsSide::wait(std::span<WriteFault> out,
                                                       std::chrono::microseconds /*timeout*/) {
  const std::size_t count = std::min(out.size(), faults.size());
  std::copy_n(faults.begin(), count, out.begin());
  faults.erase(faults.begin(), faults.begin() + static_cast<std::ptrdiff_t>(count));
  return count;
}

} // namespace lararium::gate
