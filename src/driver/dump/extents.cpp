#include "extents.h"

#include <algorithm>
#include <queue>

namespace lararium::dump {
namespace {

bool continues(const Extent &first, const Extent &second) {
  if (first.end() != second.start || first.in_file() != second.in_file())
    return false;
  return !first.in_file() || first.source + first.size == second.source;
}

void append(std::vector<Extent> &extents, const Extent &extent) {
  if (!extents.empty() && continues(extents.back(), extent))
    extents.back().size += extent.size;
  else
    extents.push_back(extent);
}

// Sweeps over the start addresses with the extents that cover the current one in a heap, the latest on top.
// O(n log n), and at most 2n - 1 pieces come out.
std::vector<Extent> resolve_overlaps(const std::vector<Extent> &extents) {
  std::vector<std::uint32_t> order(extents.size());
  for (std::uint32_t i = 0; i < order.size(); ++i)
    order[i] = i;
  std::ranges::sort(order, {}, [&](std::uint32_t i) { return extents[i].start; });

  std::vector<Extent> result;
  std::priority_queue<std::uint32_t> covering;
  std::uint64_t position = 0;
  std::size_t next = 0;
  while (next < order.size() || !covering.empty()) {
    if (covering.empty())
      position = extents[order[next]].start;
    for (; next < order.size() && extents[order[next]].start <= position; ++next)
      covering.push(order[next]);
    while (!covering.empty() && extents[covering.top()].end() <= position)
      covering.pop();
    if (covering.empty())
      continue;
    const Extent &winner = extents[covering.top()];
    const std::uint64_t end = next < order.size() ? std::min(winner.end(), extents[order[next]].start) : winner.end();
    const std::uint64_t source = winner.in_file() ? winner.source + (position - winner.start) : Extent::zeros;
    append(result, {position, end - position, source});
    position = end;
  }
  return result;
}

} // namespace

ExtentMap::ExtentMap(std::vector<Extent> extents) {
  std::erase_if(extents, [](const Extent &extent) { return extent.size == 0; });
  bool sorted = true, overlap = false;
  for (std::size_t i = 1; i < extents.size() && sorted; ++i)
    sorted = extents[i - 1].end() <= extents[i].start;
  if (!sorted) {
    std::vector<Extent> by_start = extents;
    std::ranges::sort(by_start, {}, &Extent::start);
    for (std::size_t i = 1; i < by_start.size() && !overlap; ++i)
      overlap = by_start[i].start < by_start[i - 1].end();
    extents = overlap ? resolve_overlaps(extents) : std::move(by_start);
  }
  // Joined in place: `kept` never passes the extent that is read.
  std::size_t kept = 0;
  for (const Extent &extent : extents)
    if (kept != 0 && continues(extents[kept - 1], extent))
      extents[kept - 1].size += extent.size;
    else
      extents[kept++] = extent;
  extents.resize(kept);
  extents.shrink_to_fit();
  extents_ = std::move(extents);
}

const Extent *ExtentMap::at_or_after(std::uint64_t address) const {
  const auto after = std::ranges::partition_point(extents_, [&](const Extent &e) { return e.end() <= address; });
  return after == extents_.end() ? nullptr : &*after;
}

} // namespace lararium::dump
