// Look-ups in indexed BTF. Nothing here trusts the index or the BTF: every offset is checked where it is used.
#include "format.h"
#include "lararium/symbols/btf.h"
#include "lararium/symbols/name_index.h"

namespace lararium {

using namespace btf_format;

struct BtfTypes::Record {
  TypeEntry entry;
  std::size_t behind; // where the entries that belong to it start
};

std::optional<BtfTypes::Record> BtfTypes::record(TypeId id) const {
  if (id <= base_count_ || id - base_count_ > index_.offsets.size())
    return std::nullopt;
  const std::size_t offset = index_.offsets[id - base_count_ - 1];
  const auto entry = load<TypeEntry>(sections_.types, offset);
  if (!entry)
    return std::nullopt;
  return Record{*entry, offset + sizeof(TypeEntry)};
}

std::string_view BtfTypes::text(std::uint32_t offset) const {
  return offset < base_.strings.size()
             ? string_at(base_.strings, offset)
             : string_at(sections_.strings, offset - static_cast<std::uint32_t>(base_.strings.size()));
}

std::uint32_t BtfTypes::count() const {
  return base_count_ + static_cast<std::uint32_t>(std::min<std::size_t>(index_.offsets.size(), btf_type_limit));
}

std::optional<TypeInfo> BtfTypes::info(TypeId id) const {
  if (id != 0 && id <= base_count_)
    return base_.types->info(id);
  const auto found = record(id);
  if (!found)
    return std::nullopt;
  const auto &entry = found->entry;
  TypeInfo info;
  info.id = id;
  info.kind = entry.kind();
  info.name = text(entry.name);
  switch (info.kind) {
  case TypeKind::integer: {
    const IntegerEncoding encoding{load<std::uint32_t>(sections_.types, found->behind).value_or(0)};
    info.size = entry.size_or_type;
    info.is_signed = encoding.is_signed();
    info.is_char = encoding.is_char();
    info.is_bool = encoding.is_bool();
    break;
  }
  case TypeKind::enumeration:
  case TypeKind::enumeration64:
    info.is_signed = entry.kind_flag() || !index_.flags.signed_enumerations;
    info.size = entry.size_or_type;
    info.count = entry.count();
    break;
  case TypeKind::structure:
  case TypeKind::union_type:
  case TypeKind::data_section:
    info.size = entry.size_or_type;
    info.count = entry.count();
    break;
  case TypeKind::floating: info.size = entry.size_or_type; break;
  case TypeKind::array:
    if (const auto array = load<ArrayEntry>(sections_.types, found->behind)) {
      info.target = array->element;
      info.count = array->count;
    }
    break;
  case TypeKind::function_prototype: info.count = entry.count(); [[fallthrough]];
  case TypeKind::pointer:
  case TypeKind::type_definition:
  case TypeKind::volatile_type:
  case TypeKind::constant:
  case TypeKind::restricted:
  case TypeKind::function:
  case TypeKind::variable:
  case TypeKind::declaration_tag:
  case TypeKind::type_tag: info.target = entry.size_or_type; break;
  case TypeKind::forward:
  case TypeKind::none: break;
  }
  return info;
}

// `wanted(name)` gets where a member's name lies in the strings.
template <class Wanted> std::vector<MemberInfo> BtfTypes::collect_members(TypeId id, Wanted &&wanted) const {
  const auto found = record(id);
  if (!found)
    return {};
  const TypeKind kind = found->entry.kind();
  const bool aggregate = kind == TypeKind::structure || kind == TypeKind::union_type;
  if (!aggregate && kind != TypeKind::function_prototype)
    return {};
  const std::size_t step = aggregate ? sizeof(MemberEntry) : sizeof(ParameterEntry);
  if (found->behind > sections_.types.size())
    return {};
  const std::size_t there =
      std::min<std::size_t>({found->entry.count(), btf_member_limit, (sections_.types.size() - found->behind) / step});
  std::vector<MemberInfo> result;
  for (std::size_t i = 0; i < there; ++i) {
    if (!aggregate) {
      const auto parameter = *load<ParameterEntry>(sections_.types, found->behind + i * step);
      if (wanted(parameter.name))
        result.push_back({text(parameter.name), parameter.type, 0, 0});
      continue;
    }
    const auto entry = *load<MemberEntry>(sections_.types, found->behind + i * step);
    if (!wanted(entry.name))
      continue;
    MemberInfo member{text(entry.name), entry.type, entry.offset, 0};
    if (found->entry.kind_flag()) {
      member.bit_offset = entry.offset & 0xffffff;
      member.bit_size = entry.offset >> 24;
    } else if (index_.flags.odd_integers) {
      // The older way: an integer type of fewer bits than its size holds.
      const TypeId type = strip(entry.type);
      if (const auto integer = record(type); integer && integer->entry.kind() == TypeKind::integer) {
        const IntegerEncoding encoding{load<std::uint32_t>(sections_.types, integer->behind).value_or(0)};
        if (encoding.bits() != 0 && encoding.bits() < std::uint64_t{integer->entry.size_or_type} * 8) {
          member.bit_offset += encoding.bit_offset();
          member.bit_size = encoding.bits();
        }
      }
    }
    result.push_back(member);
  }
  return result;
}

std::vector<MemberInfo> BtfTypes::members(TypeId id) const {
  if (id != 0 && id <= base_count_)
    return base_.types->members(id);
  return collect_members(id, [](std::uint32_t) { return true; });
}

std::vector<MemberInfo> BtfTypes::members_for(TypeId id, std::string_view name) const {
  if (id != 0 && id <= base_count_)
    return base_.types->members_for(id, name);
  const char first = name.empty() ? '\0' : name.front();
  return collect_members(id, [&](std::uint32_t offset) {
    const bool in_base = offset < base_.strings.size();
    const Bytes strings = in_base ? base_.strings : sections_.strings;
    const std::size_t at = in_base ? offset : offset - base_.strings.size();
    // Most names differ in their first character.
    const char start = at < strings.size() ? static_cast<char>(strings[at]) : '\0';
    return start == '\0' || (start == first && text(offset) == name);
  });
}

std::vector<Types::Enumerator> BtfTypes::enumerators(TypeId id) const {
  if (id != 0 && id <= base_count_)
    return base_.types->enumerators(id);
  const auto found = record(id);
  if (!found || found->behind > sections_.types.size())
    return {};
  const bool wide = found->entry.kind() == TypeKind::enumeration64;
  if (!wide && found->entry.kind() != TypeKind::enumeration)
    return {};
  const bool is_signed = found->entry.kind_flag() || !index_.flags.signed_enumerations;
  const std::size_t step = wide ? sizeof(Enumerator64Entry) : sizeof(EnumeratorEntry);
  const std::size_t there =
      std::min<std::size_t>({found->entry.count(), btf_member_limit, (sections_.types.size() - found->behind) / step});
  std::vector<Enumerator> result;
  result.reserve(there);
  for (std::size_t i = 0; i < there; ++i) {
    const std::size_t at = found->behind + i * step;
    if (wide) {
      const auto entry = *load<Enumerator64Entry>(sections_.types, at);
      result.push_back({text(entry.name), value_of(entry.low, entry.high)});
    } else {
      const auto entry = *load<EnumeratorEntry>(sections_.types, at);
      result.push_back({text(entry.name), value_of(entry.value, is_signed)});
    }
  }
  return result;
}

std::optional<TypeId> BtfTypes::find(std::string_view name) const {
  if (name.empty())
    return std::nullopt;
  const auto rank = [this](TypeId id) {
    const auto kind = info(id).value_or(TypeInfo{}).kind;
    if (kind == TypeKind::structure || kind == TypeKind::union_type)
      return 0;
    return kind == TypeKind::enumeration || kind == TypeKind::enumeration64 ? 1 : 2;
  };
  std::optional<TypeId> base;
  if (base_.types != nullptr)
    base = base_.types->find(name);
  if (base && rank(*base) == 0)
    return base;
  const auto position = name_index::find(index_.names, hash_name(name, index_.seed), [&](std::uint32_t number) {
    const auto found = number < index_.offsets.size() ? record(base_count_ + number + 1) : std::nullopt;
    return found && text(found->entry.name) == name;
  });
  if (!position)
    return base;
  const TypeId own = base_count_ + *position + 1;
  return base && rank(*base) <= rank(own) ? base : own;
}

std::optional<std::int64_t> BtfTypes::enumerator(std::string_view name) const {
  if (name.empty())
    return std::nullopt;
  if (base_.types != nullptr)
    if (const auto value = base_.types->enumerator(name))
      return value;
  const auto slot = name_index::find(index_.enumerators, hash_name(name, index_.seed), [&](std::uint32_t number) {
    const auto offset = load<std::uint32_t>(sections_.types, EnumeratorSlot::unpack(number).offset);
    return offset && text(*offset) == name;
  });
  if (!slot)
    return std::nullopt;
  const auto place = EnumeratorSlot::unpack(*slot);
  if (place.wide) {
    const auto entry = load<Enumerator64Entry>(sections_.types, place.offset);
    return entry ? std::optional(value_of(entry->low, entry->high)) : std::nullopt;
  }
  const auto entry = load<EnumeratorEntry>(sections_.types, place.offset);
  return entry ? std::optional(value_of(entry->value, place.is_signed)) : std::nullopt;
}

} // namespace lararium
