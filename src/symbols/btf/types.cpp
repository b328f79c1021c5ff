// What every kind of Types can do, on top of the virtual calls. Types come from guests: chains may be cycles, members
// may nest without end, sizes may overflow. Depth and work are bounded; beyond the bounds there is no such field.
#include "lararium/symbols/types.h"

#include <algorithm>
#include <charconv>
#include <limits>

namespace lararium {
namespace {

constexpr int chain_limit = 32;                 // typedefs, qualifiers, dimensions; real ones have fewer than 10
constexpr int nesting_limit = 16;               // anonymous structures in each other
constexpr std::uint32_t visit_limit = 1U << 17; // members looked at for one path

bool is_aggregate(TypeKind kind) { return kind == TypeKind::structure || kind == TypeKind::union_type; }

struct Place {
  TypeId type = 0;
  std::uint64_t bit_offset = 0;
  std::uint32_t bit_size = 0;
};

class MemberSearch {
public:
  MemberSearch(const Types &types) : types_(types) {}

  std::optional<Place> find(TypeId type, std::string_view name, int depth = 0) {
    const auto aggregate = types_.info(type);
    if (!aggregate || visited_ > visit_limit)
      return std::nullopt;
    visited_ += std::min(aggregate->count, visit_limit);
    for (const auto &member : types_.members_for(type, name)) {
      // What begins behind the end of its structure (an array without a length at the most ends it) is none of it.
      if (member.bit_offset > std::uint64_t{aggregate->size} * 8)
        continue;
      if (member.name == name)
        return Place{member.type, member.bit_offset, member.bit_size};
      if (!member.name.empty() || depth == nesting_limit)
        continue;
      const TypeId inner = types_.strip(member.type);
      const auto info = types_.info(inner);
      if (!info || !is_aggregate(info->kind))
        continue;
      if (auto place = find(inner, name, depth + 1)) {
        place->bit_offset += member.bit_offset;
        return place;
      }
    }
    return std::nullopt;
  }

private:
  const Types &types_;
  std::uint32_t visited_ = 0;
};

// Takes "[3]" off the front of `text`.
std::optional<std::uint64_t> take_index(std::string_view &text) {
  std::uint64_t index = 0;
  const auto [end, error] = std::from_chars(text.data() + 1, text.data() + text.size(), index);
  if (error != std::errc() || end == text.data() + text.size() || *end != ']')
    return std::nullopt;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()) + 1);
  return index;
}

bool step_into_element(const Types &types, Place &place, std::uint64_t index) {
  const auto array = types.info(types.strip(place.type));
  if (!array || array->kind != TypeKind::array || place.bit_size != 0)
    return false;
  if (array->count != 0 && index >= array->count) // 0: a flexible array, whose end only its user knows
    return false;
  const auto size = types.size_of(array->target);
  constexpr std::uint64_t limit = std::numeric_limits<std::uint32_t>::max();
  if (!size || *size > limit || index > limit)
    return false;
  const std::uint64_t distance = *size * index;
  if (distance > limit)
    return false;
  place.bit_offset += distance * 8;
  place.type = array->target;
  return true;
}

std::optional<FieldLocation> located(const Types &types, const Place &place) {
  if (place.bit_offset > std::numeric_limits<std::uint32_t>::max())
    return std::nullopt;
  const std::uint64_t size = types.size_of(place.type).value_or(0);
  if (size > std::numeric_limits<std::uint32_t>::max())
    return std::nullopt;
  FieldLocation location;
  location.type = types.strip(place.type);
  location.bit_offset = static_cast<std::uint32_t>(place.bit_offset);
  location.bit_size = place.bit_size;
  location.offset = location.bit_offset / 8;
  location.size = static_cast<std::uint32_t>(size);
  if (place.bit_size == 0)
    return place.bit_offset % 8 == 0 ? std::optional(location) : std::nullopt;
  // The storage unit of the declared type, as compilers lay bit fields out; in a packed structure a field may cross
  // from one unit into the next, and then just its own bytes.
  if (size == 0)
    return std::nullopt;
  location.offset = static_cast<std::uint32_t>(place.bit_offset / 8 / size * size);
  if (place.bit_offset + place.bit_size > (location.offset + size) * 8) {
    location.offset = location.bit_offset / 8;
    location.size = (location.bit_offset % 8 + place.bit_size + 7) / 8;
  }
  return location;
}

} // namespace

std::vector<MemberInfo> Types::members_for(TypeId id, std::string_view name) const {
  auto result = members(id);
  std::erase_if(result, [&](const MemberInfo &member) { return !member.name.empty() && member.name != name; });
  return result;
}

std::optional<FieldLocation> Types::field(std::string_view type, std::string_view path) const {
  const auto id = find(type);
  return id ? field(*id, path) : std::nullopt;
}

std::optional<FieldLocation> Types::field(TypeId type, std::string_view path) const {
  Place place{type, 0, 0};
  MemberSearch search(*this);
  // The path is ours, and each round takes at least one character of it.
  for (bool more = true; more;) {
    const auto end = path.find('.');
    std::string_view part = path.substr(0, end);
    more = end != std::string_view::npos;
    path.remove_prefix(more ? end + 1 : path.size());

    const auto name = part.substr(0, part.find('['));
    part.remove_prefix(name.size());
    if (name.empty() || place.bit_size != 0)
      return std::nullopt;
    const auto outer = info(strip(place.type));
    if (!outer || !is_aggregate(outer->kind))
      return std::nullopt;
    const auto member = search.find(outer->id, name);
    if (!member)
      return std::nullopt;
    place = {member->type, place.bit_offset + member->bit_offset, member->bit_size};
    while (!part.empty()) {
      const auto index = part.front() == '[' ? take_index(part) : std::nullopt;
      if (!index || !step_into_element(*this, place, *index))
        return std::nullopt;
    }
  }
  return located(*this, place);
}

std::optional<std::uint64_t> Types::size_of(std::string_view type) const {
  const auto id = find(type);
  return id ? size_of(*id) : std::nullopt;
}

std::optional<std::uint64_t> Types::size_of(TypeId type) const {
  std::uint64_t elements = 1;
  for (int depth = 0; depth < chain_limit; ++depth) {
    const auto found = info(type);
    if (!found)
      return std::nullopt;
    std::uint64_t size = 0;
    switch (found->kind) {
    case TypeKind::pointer: size = 8; break; // only 64-bit guests so far
    case TypeKind::integer:
    case TypeKind::structure:
    case TypeKind::union_type:
    case TypeKind::enumeration:
    case TypeKind::enumeration64:
    case TypeKind::floating:
    case TypeKind::data_section: size = found->size; break;
    case TypeKind::array:
      if (__builtin_mul_overflow(elements, std::uint64_t{found->count}, &elements))
        return std::nullopt;
      [[fallthrough]];
    case TypeKind::type_definition:
    case TypeKind::volatile_type:
    case TypeKind::constant:
    case TypeKind::restricted:
    case TypeKind::type_tag:
    case TypeKind::variable: type = found->target; continue;
    case TypeKind::none:
    case TypeKind::forward:
    case TypeKind::function:
    case TypeKind::function_prototype:
    case TypeKind::declaration_tag: return std::nullopt;
    }
    if (__builtin_mul_overflow(elements, size, &size))
      return std::nullopt;
    return size;
  }
  return std::nullopt;
}

TypeId Types::strip(TypeId type) const {
  for (int depth = 0; depth < chain_limit; ++depth) {
    const auto found = info(type);
    if (!found)
      return 0;
    switch (found->kind) {
    case TypeKind::type_definition:
    case TypeKind::volatile_type:
    case TypeKind::constant:
    case TypeKind::restricted:
    case TypeKind::type_tag: type = found->target; break;
    default: return type;
    }
  }
  return 0; // a cycle
}

} // namespace lararium
