// Walks through XArrays, radix trees and IDRs.
#pragma once

#include "lararium/os/linux/kernel.h"
#include "lararium/os/linux/list.h"

#include <cstdint>
#include <functional>

namespace lararium::linux_guest {

struct XarrayEntry {
  std::uint64_t index = 0; // of the first slot that it fills
  std::uint64_t count = 1; // indices that it covers: more than one for a large folio
  std::uint64_t value = 0; // a pointer; or, with `is_value`, an integer (a shadow or swap entry in the page cache)
  bool is_value = false;
  [[nodiscard]] Gva pointer() const { return Gva{value}; }
};

// Reads struct xarray (4.20, f8d5d0cc145c), and the radix tree that it replaced, which has the same shape. Keeps the
// layouts; make one per view. Every node must name its parent and its place in it, as the kernel keeps them: so a graph
// of nodes that a hostile guest built is walked as a tree, each node once.
class XarrayReader {
public:
  [[nodiscard]] static Result<XarrayReader> create(const Kernel &kernel);

  using Visitor = std::function<bool(const XarrayEntry &)>; // false stops

  // Every entry in order of index, at most `limit`. Reserved slots (zero and retry entries) are left out. Nodes that
  // cannot be read or are not where they say count as `mismatches` (the guest changed the tree, or lies).
  WalkResult for_each(Gva xarray, std::size_t limit, const Visitor &visit) const;
  // The same for a struct idr; `index` is the id.
  WalkResult for_each_of_idr(Gva idr, std::size_t limit, const Visitor &visit) const;
  // The pointer that a struct idr has for an id; nothing where it has none. A fault: the tree changed, or lies.
  [[nodiscard]] Result<std::optional<Gva>> find_in_idr(Gva idr, std::uint64_t id) const;

private:
  struct Walk;
  explicit XarrayReader(const Kernel &kernel) : kernel_(&kernel) {}
  WalkResult for_each_from(Gva xarray, std::uint64_t base, std::size_t limit, const Visitor &visit) const;
  // The node's shift, where it is what its parent says.
  [[nodiscard]] std::optional<std::uint32_t> read_node(Gva node, Gva parent, std::uint32_t slot, std::uint32_t above,
                                                       std::span<std::byte> bytes) const;
  bool visit_node(Walk &walk, Gva node, Gva parent, std::uint32_t slot, std::uint32_t above, std::uint64_t base) const;

  const Kernel *kernel_;
  FieldLocation head_, shift_, offset_, parent_, slots_;
  std::optional<FieldLocation> idr_base_; // 4.16, 6ce711f27500
  FieldLocation idr_tree_;
  std::uint32_t node_size_ = 0, slot_count_ = 0, slot_bits_ = 0;
  bool radix_tree_ = false; // tags of before the XArray
};

} // namespace lararium::linux_guest
