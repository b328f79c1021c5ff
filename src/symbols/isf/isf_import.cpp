#include "lararium/symbols/isf.h"

#include "base64.h"
#include "btf_writer.h"
#include "document.h"
#include "lararium/base/mapping.h"
#include "lararium/symbols/btf.h"
#include "unpack.h"

#include <algorithm>
#include <fmt/format.h>
#include <limits>
#include <map>
#include <tuple>

namespace lararium {
namespace {

using namespace isf;

constexpr std::size_t isf_size_limit = 512U << 20;
constexpr std::uint64_t image_limit = 1ULL << 30;      // x86-64 maps a kernel image within 1 GiB
constexpr std::uint64_t before_text_limit = 16U << 20; // symbols may lie a little before `_text`
constexpr std::uint64_t image_alignment = 2U << 20;

// dwarf2json and its like name what has no name.
bool is_made_up(std::string_view name) { return name.starts_with("unnamed_"); }

// Types of a document as BTF. Ids are known before anything is written: base types, then structures and unions, then
// enumerations, each in the document's order; what is built from them (pointers, arrays, ...) follows as it is met.
class TypeConverter {
public:
  explicit TypeConverter(const Document &document) : document_(document) {}

  Result<std::vector<std::byte>> run() {
    assign_ids();
    for (const auto &base : written_bases_)
      write_base(*base);
    for (const auto &type : document_.user_types)
      TRY(write_user_type(type));
    for (const auto &enumeration : document_.enumerations)
      TRY(write_enumeration(enumeration));
    declare_variables();
    for (const auto &derived : derived_) // grows no further: all its parts were resolved before it
      write_derived(derived);
    if (writer_.size() > btf_size_limit || writer_.next_id() > btf_type_limit)
      return fail(ErrorCode::corrupt, "the ISF file has too many types");
    return writer_.finish();
  }

private:
  struct Derived {
    TypeKind kind = TypeKind::none;
    bool flag = false;
    Name name = 0;
    TypeId target = 0;
    std::uint32_t count = 0;
    auto operator<=>(const Derived &) const = default;
  };

  void assign_ids() {
    TypeId id = 0;
    for (const auto &base : document_.base_types) {
      const auto kind = document_.names.text(base.kind);
      if (kind == "void" || document_.names.text(base.name) == "pointer" || base.size == 0 || base.size > 16)
        continue;
      written_bases_.push_back(&base);
      base_ids_.emplace(base.name, ++id);
      signed_bases_[base.name] = base.is_signed;
    }
    for (const auto &type : document_.user_types)
      user_ids_.emplace(type.name, ++id);
    for (const auto &enumeration : document_.enumerations)
      enumeration_ids_.emplace(enumeration.name, ++id);
    first_derived_ = id + 1;
  }

  [[nodiscard]] std::uint32_t string(Name name) { return writer_.string(name, document_.names.text(name)); }
  [[nodiscard]] std::uint32_t type_name(Name name) { return is_made_up(document_.names.text(name)) ? 0 : string(name); }

  TypeId derive(const Derived &derived) {
    const auto [place, is_new] = derived_ids_.emplace(derived, first_derived_ + static_cast<TypeId>(derived_.size()));
    if (is_new)
      derived_.push_back(derived);
    return place->second;
  }

  TypeId named(const std::unordered_map<Name, TypeId> &ids, Name name, bool is_union) {
    if (const auto found = ids.find(name); found != ids.end())
      return found->second;
    return name == 0 ? 0 : derive({TypeKind::forward, is_union, name, 0, 0});
  }

  // The reader bounds how deep descriptors nest.
  TypeId resolve(std::uint32_t index) {
    const Descriptor &type = document_.descriptors[index];
    switch (type.kind) {
    case Descriptor::Kind::base: {
      if (document_.names.text(type.name) == "pointer")
        return derive({TypeKind::pointer, false, 0, 0, 0});
      const auto found = base_ids_.find(type.name);
      return found == base_ids_.end() ? 0 : found->second;
    }
    case Descriptor::Kind::pointer: return derive({TypeKind::pointer, false, 0, resolve(type.inner), 0});
    case Descriptor::Kind::array:
      return derive(
          {TypeKind::array, false, 0, resolve(type.inner),
           static_cast<std::uint32_t>(std::min<std::uint64_t>(type.count, std::numeric_limits<std::uint32_t>::max()))});
    case Descriptor::Kind::structure: return named(user_ids_, type.name, false);
    case Descriptor::Kind::union_type: return named(user_ids_, type.name, true);
    case Descriptor::Kind::enumeration: {
      const auto found = enumeration_ids_.find(type.name);
      return found == enumeration_ids_.end() ? 0 : found->second;
    }
    case Descriptor::Kind::function: return derive({TypeKind::function_prototype, false, 0, 0, 0});
    case Descriptor::Kind::bit_field: return resolve(type.inner);
    case Descriptor::Kind::none: break;
    }
    return 0;
  }

  void write_base(const BaseType &base) {
    const auto kind = document_.names.text(base.kind);
    const auto size = static_cast<std::uint32_t>(base.size);
    if (kind == "float") {
      writer_.begin(string(base.name), TypeKind::floating, false, 0, size);
      return;
    }
    writer_.begin(string(base.name), TypeKind::integer, false, 0, size);
    writer_.word((base.is_signed ? 1U << 24 : 0U) | (kind == "char" ? 2U << 24 : 0U) |
                 (kind == "bool" ? 4U << 24 : 0U) | size * 8);
  }

  struct Member {
    Name name;
    TypeId type;
    std::uint64_t bit_offset;
    std::uint32_t bit_size;
  };

  Result<void> write_user_type(const UserType &type) {
    std::vector<Member> members;
    bool has_bit_fields = false;
    for (std::uint32_t i = 0; i < type.field_count; ++i) {
      const Field &field = document_.fields[type.first_field + i];
      const Descriptor &descriptor = document_.descriptors[field.type];
      Member member{field.name, resolve(field.type), 0, 0};
      if (field.anonymous || document_.names.text(field.name).starts_with("unnamed_field_"))
        member.name = 0;
      if (field.offset > std::numeric_limits<std::uint32_t>::max() / 8)
        return fail(ErrorCode::corrupt, fmt::format("ISF: a field of {} lies too far out", text(type.name)));
      member.bit_offset = field.offset * 8;
      if (descriptor.kind == Descriptor::Kind::bit_field) {
        member.bit_offset += descriptor.bit_position;
        member.bit_size = descriptor.bit_length;
        if (member.bit_size == 0 || member.bit_size > 128)
          return fail(ErrorCode::corrupt, fmt::format("ISF: a bit field of {} has no sane length", text(type.name)));
        has_bit_fields = true;
      }
      members.push_back(member);
    }
    std::ranges::sort(members, {}, [](const Member &member) { return std::pair(member.bit_offset, member.name); });
    // With bit fields an offset has 24 bits: such structures are never that large.
    const std::uint64_t limit = has_bit_fields ? 0xffffff : std::numeric_limits<std::uint32_t>::max();
    if (members.size() > btf_member_limit || type.size > std::numeric_limits<std::uint32_t>::max() ||
        (!members.empty() && members.back().bit_offset > limit))
      return fail(ErrorCode::corrupt, fmt::format("ISF: {} is too large", text(type.name)));
    const bool is_union = document_.names.text(type.kind) == "union";
    writer_.begin(type_name(type.name), is_union ? TypeKind::union_type : TypeKind::structure, has_bit_fields,
                  static_cast<std::uint32_t>(members.size()), static_cast<std::uint32_t>(type.size));
    for (const auto &member : members) {
      writer_.word(string(member.name));
      writer_.word(member.type);
      writer_.word(member.bit_size << 24 | static_cast<std::uint32_t>(member.bit_offset));
    }
    return {};
  }

  Result<void> write_enumeration(const Enumeration &enumeration) {
    const auto constants =
        std::span(document_.constants).subspan(enumeration.first_constant, enumeration.constant_count);
    const auto [least, most] =
        std::ranges::minmax(constants.empty() ? std::span<const Constant>(&zero_, 1) : constants, {}, &Constant::value);
    const auto base = signed_bases_.find(enumeration.base);
    const bool is_signed = least.value < 0 || (base != signed_bases_.end() && base->second);
    // The wide kind also for what does not fit into 31 bits: 32 would be read as signed in BTF without signed ones.
    const bool wide =
        least.value < std::numeric_limits<std::int32_t>::min() || most.value > std::numeric_limits<std::int32_t>::max();
    if (constants.size() > btf_member_limit || enumeration.size > 16)
      return fail(ErrorCode::corrupt, fmt::format("ISF: {} is too large", text(enumeration.name)));
    writer_.begin(type_name(enumeration.name), wide ? TypeKind::enumeration64 : TypeKind::enumeration, is_signed,
                  static_cast<std::uint32_t>(constants.size()), static_cast<std::uint32_t>(enumeration.size));
    for (const auto &constant : constants) {
      writer_.word(string(constant.name));
      writer_.word(static_cast<std::uint32_t>(constant.value));
      if (wide)
        writer_.word(static_cast<std::uint32_t>(static_cast<std::uint64_t>(constant.value) >> 32));
    }
    return {};
  }

  // Variables of known type: so that an export knows them as well.
  void declare_variables() {
    for (const auto &symbol : document_.symbols) {
      if (document_.descriptors[symbol.type].kind == Descriptor::Kind::function)
        continue;
      if (const TypeId type = resolve(symbol.type); type != 0)
        derive({TypeKind::variable, false, symbol.name, type, 0});
    }
  }

  void write_derived(const Derived &derived) {
    const bool is_array = derived.kind == TypeKind::array;
    writer_.begin(string(derived.name), derived.kind, derived.flag, 0, is_array ? 0 : derived.target);
    if (is_array) {
      writer_.word(derived.target);
      writer_.word(written_bases_.empty() ? 0 : 1); // the index's type, which nobody reads
      writer_.word(derived.count);
    } else if (derived.kind == TypeKind::variable) {
      writer_.word(0); // static
    }
  }

  [[nodiscard]] std::string_view text(Name name) const { return document_.names.text(name); }

  static constexpr Constant zero_{};

  const Document &document_;
  BtfWriter writer_;
  std::vector<const BaseType *> written_bases_;
  std::unordered_map<Name, TypeId> base_ids_, user_ids_, enumeration_ids_;
  std::unordered_map<Name, bool> signed_bases_;
  std::map<Derived, TypeId> derived_ids_;
  std::vector<Derived> derived_;
  TypeId first_derived_ = 0;
};

std::optional<std::uint64_t> address_of(const Document &document, std::string_view name) {
  for (const auto &symbol : document.symbols)
    if (document.names.text(symbol.name) == name)
      return symbol.address;
  return std::nullopt;
}

char letter_of(const Descriptor &type) {
  switch (type.kind) {
  case Descriptor::Kind::none:
  case Descriptor::Kind::base: return '?'; // `void` stands for unknown
  case Descriptor::Kind::function: return 'T';
  default: return 'D';
  }
}

Result<void> convert_symbols(const Document &document, ProfileSource &source) {
  auto base = address_of(document, "_text");
  if (!base)
    if (const auto start = address_of(document, "_stext"))
      base = *start / image_alignment * image_alignment;
  source.symbols.reserve(document.symbols.size());
  for (const auto &symbol : document.symbols) {
    const bool in_image = base && symbol.address - *base + before_text_limit < image_limit + before_text_limit &&
                          symbol.address >= image_limit; // not a per-CPU offset, even where the base is a lie
    source.symbols.push_back({document.names.text(symbol.name), in_image ? symbol.address - *base : symbol.address,
                              in_image ? SymbolBase::image : SymbolBase::absolute,
                              letter_of(document.descriptors[symbol.type])});
  }
  if (!base && !document.symbols.empty())
    return fail(ErrorCode::corrupt, "the ISF file has neither _text nor _stext: it is no Linux kernel's");
  return {};
}

} // namespace

Result<std::shared_ptr<const Profile>> import_isf(Bytes isf, const BuildId &build_id, std::uint64_t build_id_offset) {
  Document document;
  {
    std::vector<std::byte> storage;
    TRY_ASSIGN(const Bytes text, unpack(isf, isf_size_limit, storage));
    TRY_ASSIGN(document, read_document({reinterpret_cast<const char *>(text.data()), text.size()}));
  }
  if (document.format.size() < 2 || document.format[1] != '.' || document.format[0] < '4' || document.format[0] > '6')
    return fail(ErrorCode::unsupported,
                fmt::format("ISF of format \"{}\" is not read, only 4 to 6", document.format.substr(0, 32)));

  ProfileSource source;
  source.build_id = build_id;
  source.build_id_offset = build_id_offset;
  source.banner = base64_decode(document.banner_base64);
  while (!source.banner.empty() && (source.banner.back() == '\0' || source.banner.back() == '\n'))
    source.banner.pop_back();
  TRY(convert_symbols(document, source));
  TRY_ASSIGN(const auto btf, TypeConverter(document).run());
  source.btf = btf;
  return Profile::build(source);
}

Result<std::shared_ptr<const Profile>> import_isf_file(const std::filesystem::path &file, const BuildId &build_id,
                                                       std::uint64_t build_id_offset) {
  TRY_ASSIGN(const auto mapping, map_whole_file(file.string()));
  auto profile = import_isf(mapping.bytes(), build_id, build_id_offset);
  if (!profile)
    return wrap(std::move(profile).error(), file.string());
  return profile;
}

} // namespace lararium
