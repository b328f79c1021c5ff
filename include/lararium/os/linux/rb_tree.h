// Bounded in-order walks through the kernel's red-black trees (struct rb_root).
#pragma once

#include "lararium/os/linux/list.h"

#include <vector>

namespace lararium::linux_guest {

struct RbLayout {
  std::uint32_t parent = 0, left = 0, right = 0; // in struct rb_node; `parent` carries the colour in its low bits

  static Result<RbLayout> resolve(const Kernel &kernel) {
    LayoutResolver layout(kernel.types());
    RbLayout result;
    result.parent = layout.require("rb_node", "__rb_parent_color").offset;
    result.left = layout.require("rb_node", "rb_left").offset;
    result.right = layout.require("rb_node", "rb_right").offset;
    TRY(layout.check());
    return result;
  }
};

// `root` is what rb_root.rb_node holds, null for an empty tree. `visit(Gva node)` returns false to stop. A tree of n
// nodes is at most 2 log2(n + 1) high, so that a deeper one is none; `limit` bounds trees that meet themselves again.
template <class Memory, class Visit>
WalkResult walk_rb_tree(const Memory &memory, const RbLayout &layout, Gva root, std::size_t limit, Visit &&visit) {
  constexpr std::size_t depth_limit = 128;
  WalkResult result;
  const auto broken_at = [&](Gva node, WalkEnd end) {
    result.end = end;
    result.at = node;
    return result;
  };
  std::vector<std::pair<Gva, Gva>> path; // nodes whose left side is done or under way, each with its right child
  Gva parent, node = root;
  std::size_t touched = 0;
  while (true) {
    while (node) {
      if (node.value >> 63 == 0)
        return broken_at(node, WalkEnd::broken);
      if (path.size() >= depth_limit)
        return broken_at(node, WalkEnd::cyclic);
      if (touched++ >= limit)
        return broken_at(node, WalkEnd::limit);
      const auto up = memory.template read<std::uint64_t>(node + layout.parent);
      const auto left = memory.template read<std::uint64_t>(node + layout.left);
      const auto right = memory.template read<std::uint64_t>(node + layout.right);
      if (!up || !left || !right)
        return broken_at(node, WalkEnd::broken);
      if ((*up & ~std::uint64_t{3}) != parent.value)
        ++result.mismatches;
      path.emplace_back(node, Gva{*right});
      parent = node;
      node = Gva{*left};
    }
    if (path.empty())
      return result;
    const auto [current, right] = path.back();
    path.pop_back();
    ++result.visited;
    if (!visit(current)) {
      result.end = WalkEnd::stopped;
      return result;
    }
    parent = current;
    node = right;
  }
}

} // namespace lararium::linux_guest
