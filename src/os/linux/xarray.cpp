#include "lararium/os/linux/xarray.h"

#include <algorithm>
#include <array>
#include <bit>

namespace lararium::linux_guest {
namespace {

constexpr std::size_t node_size_limit = 1024;
constexpr std::uint32_t slot_limit = 64; // XA_CHUNK_SIZE; 16 with CONFIG_BASE_SMALL

// Entries, as include/linux/xarray.h describes them: the low bits tell pointers (00), values (x1) and internal entries
// (10) apart. Internal entries above a page are nodes, lower ones siblings, retry and zero marks; negative ones errors.
constexpr std::uint64_t tag_mask = 3;
constexpr std::uint64_t xarray_internal = 2;
constexpr std::uint64_t lowest_node = 4096;
constexpr std::uint64_t lowest_error = ~std::uint64_t{0} - 4 * 4096;
// Before 4.20 (include/linux/radix-tree.h): bit 0 marks a node, bit 1 an exceptional entry.
constexpr std::uint64_t radix_internal = 1;
constexpr std::uint64_t radix_exceptional = 2;

enum class EntryKind : std::uint8_t { empty, pointer, value, node, sibling, other };

EntryKind classify(std::uint64_t entry, bool radix_tree, std::uint32_t slots) {
  if (entry == 0)
    return EntryKind::empty;
  if (radix_tree) {
    if ((entry & tag_mask) == radix_internal)
      return EntryKind::node; // or a sibling, which points into the node itself: the caller tells
    return (entry & radix_exceptional) != 0 ? EntryKind::value : EntryKind::pointer;
  }
  if ((entry & 1) != 0)
    return EntryKind::value;
  if ((entry & tag_mask) != xarray_internal)
    return EntryKind::pointer;
  if (entry >> 63 != 0 && entry < lowest_error)
    return EntryKind::node;
  return entry < lowest_node && entry >> 2 < slots ? EntryKind::sibling : EntryKind::other;
}

} // namespace

struct XarrayReader::Walk {
  const Visitor &visit;
  std::size_t limit;
  std::uint64_t nodes_left;
  WalkResult result;

  // False: stop.
  bool give(const XarrayEntry &entry) {
    if (result.visited >= limit) {
      result.end = WalkEnd::limit;
      return false;
    }
    ++result.visited;
    if (visit(entry))
      return true;
    result.end = WalkEnd::stopped;
    return false;
  }
};

Result<XarrayReader> XarrayReader::create(const Kernel &kernel) {
  XarrayReader reader(kernel);
  LayoutResolver layout(kernel.types());
  reader.radix_tree_ = !layout.optional("xarray", "xa_head");
  const char *root = reader.radix_tree_ ? "radix_tree_root" : "xarray";
  const char *node = reader.radix_tree_ ? "radix_tree_node" : "xa_node";
  reader.head_ = layout.require(root, reader.radix_tree_ ? "rnode" : "xa_head");
  reader.shift_ = layout.require(node, "shift");
  reader.offset_ = layout.require(node, "offset");
  reader.parent_ = layout.require(node, "parent");
  reader.slots_ = layout.require(node, "slots");
  const auto node_size = layout.require_size(node);
  reader.idr_tree_ = layout.require("idr", "idr_rt");
  reader.idr_base_ = layout.optional("idr", "idr_base");
  TRY(layout.check());
  reader.slot_count_ = reader.slots_.size / 8;
  if (reader.slot_count_ < 2 || reader.slot_count_ > slot_limit || !std::has_single_bit(reader.slot_count_) ||
      reader.slots_.offset + reader.slots_.size > node_size || node_size > node_size_limit)
    return fail(ErrorCode::corrupt, std::string("the kernel's type information describes an impossible ") + node);
  reader.node_size_ = static_cast<std::uint32_t>(node_size);
  reader.slot_bits_ = static_cast<std::uint32_t>(std::countr_zero(reader.slot_count_));
  return reader;
}

std::optional<std::uint32_t> XarrayReader::read_node(Gva node, Gva parent, std::uint32_t slot, std::uint32_t above,
                                                     std::span<std::byte> bytes) const {
  if (!kernel_->is_kernel_address(node) || !kernel_->space().read(node, bytes))
    return std::nullopt;
  const auto shift = load<std::uint8_t>(bytes, shift_.offset);
  const auto offset = load<std::uint8_t>(bytes, offset_.offset);
  const auto its_parent = load<std::uint64_t>(bytes, parent_.offset);
  // Levels go down by one, save that the root may be anywhere.
  const bool level_fits =
      shift && *shift < 64 && *shift % slot_bits_ == 0 && (parent ? *shift + slot_bits_ == above : *shift < above);
  if (!level_fits || !offset || !its_parent || *its_parent != parent.value || (parent && *offset != slot))
    return std::nullopt;
  return *shift;
}

bool XarrayReader::visit_node(Walk &walk, Gva node, Gva parent, std::uint32_t slot, std::uint32_t above,
                              std::uint64_t base) const {
  std::array<std::byte, node_size_limit> buffer;
  const auto bytes = std::span(buffer).first(node_size_);
  if (walk.nodes_left == 0) {
    walk.result.end = WalkEnd::limit;
    walk.result.at = node;
    return false;
  }
  --walk.nodes_left;
  const auto shift = read_node(node, parent, slot, above, bytes);
  if (!shift) {
    ++walk.result.mismatches;
    walk.result.at = node;
    return true;
  }
  const auto entry_at = [&](std::uint32_t i) {
    return load<std::uint64_t>(bytes, slots_.offset + 8 * std::size_t{i}).value_or(0);
  };
  const auto is_sibling = [&](std::uint64_t entry, std::uint32_t of) {
    if (!radix_tree_)
      return classify(entry, false, slot_count_) == EntryKind::sibling && entry >> 2 == of;
    return (entry & tag_mask) == radix_internal &&
           entry - radix_internal == node.value + slots_.offset + 8 * std::uint64_t{of};
  };
  for (std::uint32_t i = 0; i < slot_count_; ++i) {
    const auto entry = entry_at(i);
    const std::uint64_t index = base + (std::uint64_t{i} << *shift);
    switch (classify(entry, radix_tree_, slot_count_)) {
    case EntryKind::empty:
    case EntryKind::sibling: // of an entry that is gone
    case EntryKind::other: break;
    case EntryKind::node: {
      const Gva child{entry & ~tag_mask};
      if (radix_tree_ && child - (node + slots_.offset) < slots_.size)
        break; // a sibling of an entry that is gone
      if (*shift == 0) {
        ++walk.result.mismatches;
      } else if (!visit_node(walk, child, node, i, *shift, index)) {
        return false;
      }
      break;
    }
    case EntryKind::pointer:
    case EntryKind::value: {
      std::uint32_t slots = 1;
      while (i + slots < slot_count_ && is_sibling(entry_at(i + slots), i))
        ++slots;
      const bool is_value = classify(entry, radix_tree_, slot_count_) == EntryKind::value;
      const std::uint64_t value = is_value ? entry >> (radix_tree_ ? 2 : 1) : entry;
      if (!walk.give({index, std::uint64_t{slots} << *shift, value, is_value}))
        return false;
      i += slots - 1;
      break;
    }
    }
  }
  return true;
}

WalkResult XarrayReader::for_each_from(Gva xarray, std::uint64_t base, std::size_t limit, const Visitor &visit) const {
  // Each node is met at most once, so that more of them than fit into memory are a lie.
  Walk walk{visit, limit, kernel_->memory().total_size() / node_size_ + 1, {}};
  const auto head = kernel_->read_pointer(xarray, head_);
  if (!head) {
    walk.result.end = WalkEnd::broken;
    walk.result.at = xarray;
    return walk.result;
  }
  switch (classify(head->value, radix_tree_, slot_count_)) {
  case EntryKind::empty:
  case EntryKind::sibling:
  case EntryKind::other: break;
  case EntryKind::pointer: walk.give({base, 1, head->value, false}); break;
  case EntryKind::value: walk.give({base, 1, head->value >> (radix_tree_ ? 2 : 1), true}); break;
  case EntryKind::node: visit_node(walk, Gva{head->value & ~tag_mask}, Gva{}, 0, 64, base); break;
  }
  return walk.result;
}

WalkResult XarrayReader::for_each(Gva xarray, std::size_t limit, const Visitor &visit) const {
  return for_each_from(xarray, 0, limit, visit);
}

WalkResult XarrayReader::for_each_of_idr(Gva idr, std::size_t limit, const Visitor &visit) const {
  const std::uint64_t base = idr_base_ ? kernel_->read_field(idr, *idr_base_).value_or(0) : 0;
  return for_each_from(idr + idr_tree_.offset, base, limit, visit);
}

Result<std::optional<Gva>> XarrayReader::find_in_idr(Gva idr, std::uint64_t id) const {
  const std::uint64_t base = idr_base_ ? kernel_->read_field(idr, *idr_base_).value_or(0) : 0;
  const auto head = kernel_->read_pointer(idr + idr_tree_.offset, head_);
  if (!head)
    return fault(idr);
  if (id < base)
    return std::nullopt;
  std::array<std::byte, node_size_limit> buffer;
  const auto bytes = std::span(buffer).first(node_size_);
  std::uint64_t index = id - base, entry = head->value;
  Gva parent;
  for (std::uint32_t slot = 0, above = 64; classify(entry, radix_tree_, slot_count_) == EntryKind::node;) {
    const Gva node{entry & ~tag_mask};
    const auto shift = read_node(node, parent, slot, above, bytes);
    if (!shift || (above != 64 && *shift >= above))
      return fault(node);
    slot = static_cast<std::uint32_t>(index >> *shift);
    if (index >> *shift >= slot_count_)
      return std::nullopt; // beyond the largest that is in use
    index &= (std::uint64_t{1} << *shift) - 1;
    entry = load<std::uint64_t>(bytes, slots_.offset + 8 * std::size_t{slot}).value_or(0);
    above = *shift;
    parent = node;
    if (*shift == 0)
      break;
  }
  if (index != 0 || classify(entry, radix_tree_, slot_count_) != EntryKind::pointer)
    return std::nullopt;
  return Gva{entry};
}

} // namespace lararium::linux_guest
