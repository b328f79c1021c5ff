// Bounded walks through maple trees, which hold the memory areas of a process since 6.1 (upstream 54a611b60590).
// Encoding of nodes: include/linux/maple_tree.h and mt_dump_range64() in lib/maple_tree.c.
#pragma once

#include "lararium/os/linux/list.h"

#include <array>

namespace lararium::linux_guest {

struct MapleLayout {
  struct Node { // where the arrays of one kind of node lie
    std::uint32_t pivots = 0, pivot_count = 0, slots = 0, slot_count = 0;
  };
  Node range, allocation_range;                                           // leaves have the form of the former
  std::uint64_t leaf_type = 1, range_type = 2, allocation_range_type = 3; // enum maple_type
  std::uint32_t root = 0;                                                 // in struct maple_tree

  static constexpr std::uint64_t node_bytes = 256; // and alignment: the low 8 bits of a node's pointer are free
  [[nodiscard]] static Result<MapleLayout> resolve(const Kernel &kernel);
};

namespace maple {

inline constexpr std::size_t height_limit = 31; // MAPLE_HEIGHT_MAX

// xa_is_node(): the low bits are 10, and it is none of the reserved values.
inline bool is_node(std::uint64_t entry) { return (entry & 3) == 2 && entry > 4096; }

template <class Memory, class Visit> struct Walk {
  const Memory &memory;
  const MapleLayout &layout;
  std::size_t limit;
  Visit &visit;
  WalkResult result = {};
  std::size_t nodes = 0;

  bool stop(WalkEnd end, Gva at) {
    result.end = end;
    result.at = at;
    return false;
  }

  // [first, last] is what the parent says that the node covers. Ranges of children lie inside those of their parent and
  // follow each other; what does not is a race (a node that was replaced) or a lie, and ends this node.
  bool enter(std::uint64_t encoded, std::uint64_t first, std::uint64_t last, std::size_t height) {
    const Gva node{encoded & ~(MapleLayout::node_bytes - 1)};
    const std::uint64_t type = encoded >> 3 & 0xf;
    if (height >= height_limit)
      return stop(WalkEnd::cyclic, node);
    if (nodes++ >= limit)
      return stop(WalkEnd::limit, node);
    const bool leaf = type == layout.leaf_type;
    const MapleLayout::Node *form = leaf || type == layout.range_type      ? &layout.range
                                    : type == layout.allocation_range_type ? &layout.allocation_range
                                                                           : nullptr;
    std::array<std::uint64_t, MapleLayout::node_bytes / 8> words;
    if (form == nullptr || node.value >> 63 == 0 || !memory.read(node, std::as_writable_bytes(std::span(words))))
      return stop(WalkEnd::broken, node);
    // A node that was taken out of the tree has itself for a parent (ma_dead_node()).
    if ((words[0] & ~(MapleLayout::node_bytes - 1)) == node.value) {
      ++result.mismatches;
      return true;
    }
    std::uint64_t begin = first;
    for (std::uint32_t i = 0; i < form->slot_count; ++i) {
      const std::uint64_t end = i < form->pivot_count ? words[form->pivots / 8 + i] : last;
      if (end == 0 && i > 0)
        break; // the rest of the node is not in use
      if (end < begin || end > last) {
        ++result.mismatches;
        break;
      }
      const std::uint64_t entry = words[form->slots / 8 + i];
      if (!leaf && entry != 0) {
        if (!enter(entry, begin, end, height + 1))
          return false;
      } else if (entry != 0 && (entry & 3) != 2) { // the latter: XA_ZERO_ENTRY and the like
        ++result.visited;
        if (!visit(begin, end, Gva{entry}))
          return stop(WalkEnd::stopped, node);
      }
      if (end == last)
        break;
      begin = end + 1;
    }
    return true;
  }
};

} // namespace maple

// `tree` is the address of a struct maple_tree. `visit(first, last, entry)` gets the entries in order and returns false
// to stop. At most `limit` nodes are read. `mismatches` counts nodes that were replaced meanwhile: walk again.
template <class Memory, class Visit>
WalkResult walk_maple_tree(const Memory &memory, const MapleLayout &layout, Gva tree, std::size_t limit,
                           Visit &&visit) {
  maple::Walk<Memory, Visit> walk{memory, layout, limit, visit};
  const auto root = memory.template read<std::uint64_t>(tree + layout.root);
  if (!root)
    walk.stop(WalkEnd::broken, tree);
  else if (maple::is_node(*root))
    walk.enter(*root, 0, UINT64_MAX, 0);
  else if (*root != 0 && (*root & 3) != 2) { // a single entry at index 0
    ++walk.result.visited;
    if (!visit(std::uint64_t{0}, std::uint64_t{0}, Gva{*root}))
      walk.stop(WalkEnd::stopped, tree);
  }
  return walk.result;
}

} // namespace lararium::linux_guest
