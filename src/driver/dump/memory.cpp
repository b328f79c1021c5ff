#include "memory.h"

#include <algorithm>

namespace lararium::dump {
namespace {

// Reads try every run in turn, so only as many as cost less than the binary search that follows.
constexpr std::size_t mapped_run_limit = 8;

} // namespace

ExtentMemory::ExtentMemory(std::shared_ptr<const DumpFile> file, ExtentMap extents, std::vector<RamRange> ranges)
    : file_(std::move(file)), extents_(std::move(extents)) {
  set_ranges(std::move(ranges));
  std::vector<MappedRun> runs;
  for (const Extent &extent : extents_.all())
    if (extent.in_file())
      runs.push_back({Gpa{extent.start}, file_->image().subspan(extent.source, extent.size)});
  if (runs.size() > mapped_run_limit) {
    std::ranges::nth_element(runs, runs.begin() + mapped_run_limit, std::greater(),
                             [](const MappedRun &run) { return run.bytes.size(); });
    runs.resize(mapped_run_limit);
  }
  std::ranges::sort(runs, std::greater(), [](const MappedRun &run) { return run.bytes.size(); });
  runs.shrink_to_fit();
  set_mapped_runs(std::move(runs));
}

bool ExtentMemory::read_unmapped(Gpa address, std::span<std::byte> out) const {
  while (!out.empty()) {
    const Extent *extent = extents_.at(address.value);
    if (extent == nullptr)
      return false;
    const std::uint64_t skip = address.value - extent->start;
    const std::size_t length = std::min<std::uint64_t>(out.size(), extent->size - skip);
    if (extent->in_file())
      std::memcpy(out.data(), file_->image().data() + extent->source + skip, length);
    else
      std::ranges::fill(out.first(length), std::byte{0});
    out = out.subspan(length);
    address += length;
  }
  return true;
}

std::vector<RamRange> ExtentMemory::populated(Gpa base, std::uint64_t size) const {
  std::vector<RamRange> result;
  const std::uint64_t end = base.value + std::min(size, UINT64_MAX - base.value);
  for (const Extent *extent = extents_.at_or_after(base.value); extent != nullptr && extent->start < end;
       extent = extents_.at_or_after(extent->end())) {
    if (!extent->in_file())
      continue;
    const std::uint64_t from = std::max(base.value, extent->start);
    const std::uint64_t to_source = extent->source - extent->start; // wraps; only added
    for (const Extent &part : file_->data_parts(from + to_source, std::min(end, extent->end()) + to_source))
      result.push_back({Gpa{part.start - to_source}, part.size, {}});
  }
  return result;
}

std::vector<RamRange> unite(std::vector<RamRange> ranges) {
  std::ranges::sort(ranges, {}, &RamRange::base);
  for (std::uint64_t hole = 0;; hole = hole == 0 ? page_size : hole * 4) {
    std::vector<RamRange> united;
    for (RamRange &range : ranges) {
      if (!united.empty() && range.base.value - united.back().base.value <= united.back().size + hole) {
        RamRange &last = united.back();
        last.size = std::max(last.size, range.base + range.size - last.base);
      } else {
        united.push_back(std::move(range));
      }
    }
    if (united.size() <= range_limit)
      return united;
    ranges = std::move(united);
  }
}

} // namespace lararium::dump
