#include "lararium/symbols/btf.h"

#include "format.h"
#include "lararium/symbols/name_index.h"

#include <fmt/format.h>
#include <functional>

namespace lararium {

using namespace btf_format;

namespace btf_format {

std::optional<std::uint64_t> trailing_size(const TypeEntry &entry, Bytes layout) {
  const std::uint64_t count = entry.count();
  switch (entry.kind()) {
  case TypeKind::integer:
  case TypeKind::variable:
  case TypeKind::declaration_tag: return 4;
  case TypeKind::array: return sizeof(ArrayEntry);
  case TypeKind::structure:
  case TypeKind::union_type: return count * sizeof(MemberEntry);
  case TypeKind::enumeration: return count * sizeof(EnumeratorEntry);
  case TypeKind::enumeration64: return count * sizeof(Enumerator64Entry);
  case TypeKind::function_prototype: return count * sizeof(ParameterEntry);
  case TypeKind::data_section: return count * sizeof(SectionVariableEntry);
  case TypeKind::pointer:
  case TypeKind::forward:
  case TypeKind::type_definition:
  case TypeKind::volatile_type:
  case TypeKind::constant:
  case TypeKind::restricted:
  case TypeKind::function: // its count is the linkage
  case TypeKind::floating:
  case TypeKind::type_tag: return 0;
  case TypeKind::none: break;
  }
  if (entry.kind_number() == 0)
    return std::nullopt;
  const auto sizes = load<KindLayout>(layout, entry.kind_number() * sizeof(KindLayout));
  if (!sizes || sizes->info_size % 4 != 0 || sizes->element_size % 4 != 0)
    return std::nullopt;
  return sizes->info_size + count * sizes->element_size;
}

std::string_view string_at(Bytes strings, std::uint32_t offset) {
  const auto text = c_string(strings, offset, btf_name_limit);
  return text.size() == btf_name_limit ? std::string_view() : text;
}

} // namespace btf_format

namespace {

std::unexpected<Error> corrupt(std::string_view what, TypeId id) {
  return fail(ErrorCode::corrupt, fmt::format("BTF type {}: {}", id, what));
}

// One pass that measures the entries, one that checks what they refer to and fills the name tables.
class Indexer {
public:
  Indexer(const BtfSections &sections, std::uint64_t seed, const BtfBase &base)
      : types_(sections.types), strings_(sections.strings), layout_(sections.layout), base_(base),
        base_count_(base.types == nullptr ? 0 : base.types->count()),
        string_end_(base.strings.size() + sections.strings.size()) {
    index_.seed = seed;
  }

  Result<BtfIndex> run() {
    TRY(measure());
    index_.names.resize(name_index::slots_for(named_));
    index_.enumerators.resize(name_index::slots_for(enumerators_));
    // Structures before enumerations before typedefs: the first of a name stays in the table.
    for (std::uint32_t position = 0; position < index_.offsets.size(); ++position)
      TRY(check(position));
    for (const auto &positions : {std::cref(structures_), std::cref(enumerations_), std::cref(definitions_)})
      for (const std::uint32_t position : positions.get())
        TRY(add_name(position));
    return std::move(index_);
  }

private:
  Result<void> measure() {
    index_.offsets.reserve(types_.size() / 40);
    std::uint64_t at = 0;
    while (at < types_.size()) {
      const TypeId id = base_count_ + static_cast<TypeId>(index_.offsets.size()) + 1;
      if (index_.offsets.size() >= btf_type_limit)
        return corrupt("too many types", id);
      const auto entry = load<TypeEntry>(types_, at);
      if (!entry)
        return corrupt("cut off", id);
      const auto trailing = trailing_size(*entry, layout_);
      if (!trailing)
        return corrupt("unknown kind", id);
      if (*trailing > types_.size() - at - sizeof(TypeEntry))
        return corrupt("larger than its section", id);
      index_.offsets.push_back(static_cast<std::uint32_t>(at));
      count(*entry);
      at += sizeof(TypeEntry) + *trailing;
    }
    if (enumerators_ > btf_enumerator_limit)
      return fail(ErrorCode::corrupt, "BTF has too many enumerators");
    last_ = base_count_ + static_cast<TypeId>(index_.offsets.size());
    return {};
  }

  void count(const TypeEntry &entry) {
    switch (entry.kind()) {
    case TypeKind::enumeration64: index_.flags.signed_enumerations = true; [[fallthrough]];
    case TypeKind::enumeration:
      index_.flags.signed_enumerations |= entry.kind_flag();
      enumerators_ += entry.count();
      [[fallthrough]];
    case TypeKind::structure:
    case TypeKind::union_type:
    case TypeKind::type_definition: named_ += entry.name != 0 ? 1 : 0; break;
    default: break;
    }
  }

  [[nodiscard]] bool name_fits(std::uint32_t offset) const { return offset < string_end_; }
  [[nodiscard]] bool type_fits(std::uint32_t id) const { return id <= last_; }
  [[nodiscard]] std::string_view text(std::uint32_t offset) const {
    return offset < base_.strings.size()
               ? string_at(base_.strings, offset)
               : string_at(strings_, offset - static_cast<std::uint32_t>(base_.strings.size()));
  }

  // The entries of one kind behind a type; measure() has seen that they lie inside.
  template <class Entry, class Fits>
  [[nodiscard]] bool each(std::uint64_t at, std::uint32_t number, Fits &&fits) const {
    for (std::uint32_t i = 0; i < number; ++i)
      if (!fits(*load<Entry>(types_, at + i * sizeof(Entry))))
        return false;
    return true;
  }

  Result<void> check(std::uint32_t position) {
    const TypeId id = base_count_ + position + 1;
    const std::uint64_t offset = index_.offsets[position];
    const auto entry = *load<TypeEntry>(types_, offset);
    const std::uint64_t behind = offset + sizeof(TypeEntry);
    if (!name_fits(entry.name))
      return corrupt("name outside of the strings", id);
    bool fits = true;
    switch (entry.kind()) {
    case TypeKind::integer: {
      const IntegerEncoding encoding{*load<std::uint32_t>(types_, behind)};
      index_.flags.odd_integers |= encoding.bits() != entry.size_or_type * 8 || encoding.bit_offset() != 0;
      break;
    }
    case TypeKind::pointer:
    case TypeKind::volatile_type:
    case TypeKind::constant:
    case TypeKind::restricted:
    case TypeKind::type_tag:
    case TypeKind::declaration_tag:
    case TypeKind::function:
    case TypeKind::variable: fits = type_fits(entry.size_or_type); break;
    case TypeKind::type_definition:
      fits = type_fits(entry.size_or_type);
      definitions_.push_back(position);
      break;
    case TypeKind::array: {
      const auto array = *load<ArrayEntry>(types_, behind);
      fits = type_fits(array.element) && type_fits(array.index_type);
      break;
    }
    case TypeKind::structure:
    case TypeKind::union_type:
      structures_.push_back(position);
      fits = each<MemberEntry>(behind, entry.count(), [this](const MemberEntry &member) {
        return type_fits(member.type) && name_fits(member.name);
      });
      break;
    case TypeKind::function_prototype:
      fits = type_fits(entry.size_or_type) &&
             each<ParameterEntry>(behind, entry.count(), [this](const ParameterEntry &parameter) {
               return type_fits(parameter.type) && name_fits(parameter.name);
             });
      break;
    case TypeKind::data_section:
      fits = each<SectionVariableEntry>(
          behind, entry.count(), [this](const SectionVariableEntry &variable) { return type_fits(variable.type); });
      break;
    case TypeKind::enumeration:
    case TypeKind::enumeration64: {
      enumerations_.push_back(position);
      EnumeratorSlot slot{0, entry.kind() == TypeKind::enumeration64,
                          entry.kind_flag() || !index_.flags.signed_enumerations};
      const std::size_t step = slot.wide ? sizeof(Enumerator64Entry) : sizeof(EnumeratorEntry);
      for (std::uint32_t i = 0; i < entry.count(); ++i) {
        slot.offset = static_cast<std::uint32_t>(behind + i * step);
        TRY(add_enumerator(slot, id));
      }
      break;
    }
    case TypeKind::forward:
    case TypeKind::floating:
    case TypeKind::none: break;
    }
    return fits ? Result<void>() : corrupt("refers to a type or name outside", id);
  }

  Result<void> add_enumerator(const EnumeratorSlot &slot, TypeId id) {
    const auto name_offset = *load<std::uint32_t>(types_, slot.offset);
    if (!name_fits(name_offset))
      return corrupt("name outside of the strings", id);
    const auto name = text(name_offset);
    if (name.empty())
      return {};
    const bool placed =
        name_index::insert(index_.enumerators, hash_name(name, index_.seed), slot.pack(), [&](std::uint32_t other) {
          return name == text(*load<std::uint32_t>(types_, EnumeratorSlot::unpack(other).offset));
        });
    return placed ? Result<void>() : corrupt("the table of enumerators is clogged", id);
  }

  Result<void> add_name(std::uint32_t position) {
    const auto name = text(load<TypeEntry>(types_, index_.offsets[position])->name);
    if (name.empty())
      return {};
    const bool placed =
        name_index::insert(index_.names, hash_name(name, index_.seed), position, [&](std::uint32_t other) {
          return name == text(load<TypeEntry>(types_, index_.offsets[other])->name);
        });
    return placed ? Result<void>() : corrupt("the table of names is clogged", base_count_ + position + 1);
  }

  Bytes types_, strings_, layout_;
  BtfBase base_;
  std::uint32_t base_count_;
  std::uint64_t string_end_;
  TypeId last_ = 0;
  std::size_t named_ = 0, enumerators_ = 0;
  std::vector<std::uint32_t> structures_, enumerations_, definitions_;
  BtfIndex index_;
};

class OwnedBtf {
public:
  static Result<std::shared_ptr<const Types>> make(Bytes btf, std::shared_ptr<const Types> base, Bytes base_btf) {
    auto self = std::make_shared<OwnedBtf>();
    const bool split = base != nullptr;
    BtfBase origin;
    if (split) {
      TRY_ASSIGN(const auto sections, btf_sections(base_btf));
      origin = {base.get(), sections.strings};
    }
    // The header tells how much to copy; what counts is the copy's own.
    TRY_ASSIGN(const auto outside, btf_sections(btf, split));
    self->bytes_.assign(btf.begin(), btf.begin() + static_cast<std::ptrdiff_t>(outside.size));
    TRY_ASSIGN(const auto sections, btf_sections(self->bytes_, split));
    TRY_ASSIGN(self->index_, index_btf(sections, random_seed(), origin));
    const auto &index = self->index_;
    self->types_ = BtfTypes(sections, {index.offsets, index.names, index.enumerators, index.seed, index.flags}, origin);
    self->base_ = std::move(base);
    return std::shared_ptr<const Types>(self, &self->types_);
  }

private:
  std::vector<std::byte> bytes_;
  BtfIndex index_;
  BtfTypes types_;
  std::shared_ptr<const Types> base_;
};

} // namespace

Result<BtfSections> btf_sections(Bytes btf, bool split) {
  const auto header = load<Header>(btf, 0);
  if (!header || header->magic != magic || header->version != version || header->flags != 0)
    return fail(ErrorCode::corrupt, "no BTF header");
  const std::uint64_t start = header->header_length;
  const auto inside = [&](std::uint64_t offset, std::uint64_t length) {
    return start + offset + length <= std::min(btf.size(), btf_size_limit);
  };
  if (start < sizeof(Header) || start % 4 != 0 || !inside(header->type_offset, header->type_length) ||
      !inside(header->string_offset, header->string_length) || header->type_offset % 4 != 0 ||
      header->string_length == 0)
    return fail(ErrorCode::corrupt, "the BTF header's lengths do not fit");
  BtfSections sections;
  sections.types = btf.subspan(start + header->type_offset, header->type_length);
  sections.strings = btf.subspan(start + header->string_offset, header->string_length);
  sections.size = start + std::max(std::uint64_t{header->type_offset} + header->type_length,
                                   std::uint64_t{header->string_offset} + header->string_length);
  if (sections.strings.back() != std::byte{0} || (!split && sections.strings.front() != std::byte{0}))
    return fail(ErrorCode::corrupt, "the BTF strings are not terminated");
  if (start >= sizeof(Header) + 8) {
    const auto offset = *load<std::uint32_t>(btf, sizeof(Header));
    const auto length = *load<std::uint32_t>(btf, sizeof(Header) + 4);
    if (!inside(offset, length))
      return fail(ErrorCode::corrupt, "the BTF header's lengths do not fit");
    sections.layout = btf.subspan(start + offset, length);
    sections.size = std::max(sections.size, static_cast<std::size_t>(start + offset + length));
  }
  return sections;
}

Result<BtfIndex> index_btf(const BtfSections &sections, std::uint64_t seed, const BtfBase &base) {
  return Indexer(sections, seed, base).run();
}

Result<std::shared_ptr<const Types>> parse_btf(Bytes btf) { return OwnedBtf::make(btf, nullptr, {}); }

Result<std::shared_ptr<const Types>> parse_split_btf(Bytes btf, std::shared_ptr<const Types> base, Bytes base_btf) {
  if (base == nullptr)
    return fail(ErrorCode::usage, "split BTF needs the BTF that it builds on");
  return OwnedBtf::make(btf, std::move(base), base_btf);
}

} // namespace lararium
