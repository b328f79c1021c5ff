#include "maple_tree.h"

namespace lararium::linux_guest {

Result<MapleLayout> MapleLayout::resolve(const Kernel &kernel) {
  LayoutResolver layout(kernel.types());
  MapleLayout result;
  result.root = layout.require("maple_tree", "ma_root").offset;
  const auto form = [&](std::string_view type) {
    const auto pivots = layout.require(type, "pivot");
    const auto slots = layout.require(type, "slot");
    return Node{pivots.offset, pivots.size / 8, slots.offset, slots.size / 8};
  };
  result.range = form("maple_range_64");
  result.allocation_range = form("maple_arange_64");
  TRY(layout.check());
  for (const Node &node : {result.range, result.allocation_range})
    if (node.pivots % 8 != 0 || node.slots % 8 != 0 || node.pivots + 8ull * node.pivot_count > node_bytes ||
        node.slots + 8ull * node.slot_count > node_bytes)
      return fail(ErrorCode::unsupported, "the kernel's maple tree nodes are larger than 256 bytes");
  const auto value_of = [&](std::string_view enumerator, std::uint64_t usual) {
    const auto value = kernel.types().enumerator(enumerator);
    return value ? static_cast<std::uint64_t>(*value) : usual;
  };
  result.leaf_type = value_of("maple_leaf_64", result.leaf_type);
  result.range_type = value_of("maple_range_64", result.range_type);
  result.allocation_range_type = value_of("maple_arange_64", result.allocation_range_type);
  return result;
}

} // namespace lararium::linux_guest
