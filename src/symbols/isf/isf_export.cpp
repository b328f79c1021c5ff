#include "lararium/symbols/isf.h"

#include "base64.h"
#include "global_types.h"
#include "json_writer.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace lararium {
namespace {

using namespace isf;

constexpr int nesting_limit = 32;                 // pointers to arrays of pointers ...
constexpr std::uint64_t member_limit = 16U << 20; // of all types; vmlinux has about 120,000

bool is_aggregate(TypeKind kind) { return kind == TypeKind::structure || kind == TypeKind::union_type; }
bool is_enumeration(TypeKind kind) { return kind == TypeKind::enumeration || kind == TypeKind::enumeration64; }
bool is_number(TypeKind kind) { return kind == TypeKind::integer || kind == TypeKind::floating; }

// ISF tells types apart by name alone, BTF by id. Each structure, union, enumeration and base type gets a name that no
// other one has: its own; else, when it has none, that of the first typedef of it; else a made-up one.
class NameAssignment {
public:
  explicit NameAssignment(const Types &types) : types_(types), names_(types.count() + std::size_t{1}) {
    for (TypeId id = 1; id < names_.size(); ++id)
      if (const auto info = types.info(id); info && !info->name.empty() && has_name(info->kind))
        names_[id] = unique(info->kind, std::string(info->name), id);
    for (TypeId id = 1; id < names_.size(); ++id)
      if (const auto info = types.info(id); info && info->kind == TypeKind::type_definition)
        name_by_typedef(*info);
    for (TypeId id = 1; id < names_.size(); ++id)
      if (const auto info = types.info(id); info && names_[id].empty() && has_name(info->kind))
        names_[id] = unique(info->kind, fmt::format("unnamed_{:x}", id), id);
  }

  [[nodiscard]] std::string_view operator[](TypeId id) const {
    return id < names_.size() ? std::string_view(names_[id]) : std::string_view();
  }
  // BTF may have an integer type twice; one of a name is enough.
  [[nodiscard]] bool is_repeated(TypeId id) const { return repeated_.contains(id); }

private:
  static bool has_name(TypeKind kind) { return is_aggregate(kind) || is_enumeration(kind) || is_number(kind); }

  std::unordered_set<std::string> &taken(TypeKind kind) {
    return is_aggregate(kind) ? aggregates_ : is_enumeration(kind) ? enumerations_ : numbers_;
  }

  std::string unique(TypeKind kind, std::string name, TypeId id) {
    if (taken(kind).insert(name).second)
      return name;
    if (is_number(kind)) {
      repeated_.insert(id);
      return name;
    }
    name += fmt::format("___{}", id); // as tools of libbpf write the second of a name
    taken(kind).insert(name);
    return name;
  }

  void name_by_typedef(const TypeInfo &definition) {
    const auto target = types_.info(definition.target);
    if (!target || definition.target >= names_.size() || !names_[definition.target].empty() ||
        definition.name.empty() || !has_name(target->kind))
      return;
    std::string name(definition.name);
    if (taken(target->kind).insert(name).second)
      names_[definition.target] = std::move(name);
  }

  const Types &types_;
  std::vector<std::string> names_;
  std::unordered_set<std::string> aggregates_, enumerations_, numbers_;
  std::unordered_set<TypeId> repeated_;
};

struct BaseTypeText {
  std::string_view name;
  std::uint32_t size;
  bool is_signed;
  std::string_view kind;
};

// What Volatility takes for granted, beside what the kernel's BTF happens to spell this way.
constexpr auto assumed_base_types = std::to_array<BaseTypeText>({
    {"void", 0, false, "void"},
    {"pointer", 8, false, "int"},
    {"char", 1, true, "char"},
    {"unsigned char", 1, false, "char"},
    {"short int", 2, true, "int"},
    {"short unsigned int", 2, false, "int"},
    {"unsigned short", 2, false, "int"},
    {"int", 4, true, "int"},
    {"unsigned int", 4, false, "int"},
    {"long int", 8, true, "int"},
    {"long", 8, true, "int"},
    {"long unsigned int", 8, false, "int"},
    {"unsigned long", 8, false, "int"},
    {"long long int", 8, true, "int"},
    {"long long unsigned int", 8, false, "int"},
    {"unsigned long long", 8, false, "int"},
    {"_Bool", 1, false, "bool"},
    {"__int128", 16, true, "int"},
    {"__int128 unsigned", 16, false, "int"},
});

class Exporter {
public:
  Exporter(const Profile &profile, const TextSink &sink, const IsfExportOptions &options)
      : profile_(profile), types_(profile.types()), options_(options), names_(types_), json_(sink) {}

  Result<void> run() {
    json_.begin_object();
    write_metadata();
    write_base_types();
    TRY(write_user_types());
    TRY(write_enumerations());
    TRY(write_symbols());
    json_.end_object();
    return json_.finish();
  }

private:
  void write_metadata() {
    json_.key("metadata").begin_object();
    json_.key("format").value("6.2.0");
    json_.key("producer").begin_object();
    json_.key("name").value("lararium").key("version").value(options_.producer_version);
    json_.end_object();
    json_.key("linux").begin_object().end_object();
    json_.end_object();
  }

  void write_base_type(const BaseTypeText &type) {
    json_.key(type.name).begin_object();
    json_.key("size").number(type.size).key("signed").boolean(type.is_signed);
    json_.key("kind").value(type.kind).key("endian").value("little");
    json_.end_object();
  }

  void write_base_types() {
    json_.key("base_types").begin_object();
    std::unordered_set<std::string_view> written;
    for (TypeId id = 1; id <= types_.count(); ++id) {
      const auto info = types_.info(id);
      if (!info || !is_number(info->kind) || names_.is_repeated(id) || info->size > 16)
        continue;
      if (!written.insert(names_[id]).second)
        continue;
      const bool is_char = info->size == 1 && (info->is_char || info->name.find("char") != std::string_view::npos);
      const std::string_view kind = info->kind == TypeKind::floating ? "float"
                                    : info->is_bool                  ? "bool"
                                    : is_char                        ? "char"
                                                                     : "int";
      const BaseTypeText text{names_[id], static_cast<std::uint32_t>(info->size), info->is_signed, kind};
      write_base_type(text);
      if (kind == "int" && text.name != "pointer")
        integers_.push_back(text);
    }
    for (const auto &type : assumed_base_types)
      if (written.insert(type.name).second) {
        write_base_type(type);
        if (type.kind == "int" && type.name != "pointer")
          integers_.push_back(type);
      }
    write_base_type({"enumerator_u1", 1, false, "int"}); // for enumerations of a size that no integer type above has
    write_base_type({"enumerator_s1", 1, true, "int"});
    integers_.push_back({"enumerator_u1", 1, false, "int"});
    integers_.push_back({"enumerator_s1", 1, true, "int"});
    json_.end_object();
  }

  std::string_view integer_of(std::uint64_t size, bool is_signed) const {
    for (const auto &type : integers_)
      if (type.size == size && type.is_signed == is_signed)
        return type.name;
    return is_signed ? "int" : "unsigned int";
  }

  void begin_descriptor(std::string_view kind) { json_.begin_object().key("kind").value(kind); }
  void write_named(std::string_view kind, std::string_view name) {
    begin_descriptor(kind);
    json_.key("name").value(name);
    json_.end_object();
  }

  void write_type(TypeId type, int depth = 0) {
    const auto info = types_.info(types_.strip(type));
    if (!info || depth == nesting_limit)
      return write_named("base", "void");
    switch (info->kind) {
    case TypeKind::integer:
    case TypeKind::floating: return write_named("base", info->size > 16 ? std::string_view("void") : names_[info->id]);
    case TypeKind::structure: return write_named("struct", names_[info->id]);
    case TypeKind::union_type: return write_named("union", names_[info->id]);
    case TypeKind::enumeration:
    case TypeKind::enumeration64:
      return info->count != 0 ? write_named("enum", names_[info->id])
                              : write_named("base", integer_of(info->size, info->is_signed)); // declared, not defined
    case TypeKind::forward: return write_named("struct", info->name.empty() ? std::string_view("void") : info->name);
    case TypeKind::function:
    case TypeKind::function_prototype: begin_descriptor("function"); break;
    case TypeKind::pointer:
      begin_descriptor("pointer");
      json_.key("subtype");
      write_type(info->target, depth + 1);
      break;
    case TypeKind::array:
      begin_descriptor("array");
      json_.key("count").number(info->count).key("subtype");
      write_type(info->target, depth + 1);
      break;
    default: return write_named("base", "void");
    }
    json_.end_object();
  }

  void write_field(const MemberInfo &member) {
    std::uint64_t offset = member.bit_offset / 8;
    if (member.bit_size == 0) {
      json_.key("type");
      write_type(member.type);
    } else {
      const std::uint64_t unit = std::clamp<std::uint64_t>(types_.size_of(member.type).value_or(4), 1, 16);
      offset = offset / unit * unit;
      if (member.bit_offset + member.bit_size > (offset + unit) * 8)
        offset = member.bit_offset / 8; // it crosses units: a packed structure
      const auto info = types_.info(types_.strip(member.type));
      json_.key("type");
      begin_descriptor("bitfield");
      json_.key("bit_position").number(member.bit_offset - offset * 8).key("bit_length").number(member.bit_size);
      json_.key("type");
      if (info && (is_number(info->kind) || is_enumeration(info->kind)))
        write_type(info->id);
      else
        write_named("base", "unsigned int");
      json_.end_object();
    }
    json_.key("offset").number(offset);
  }

  Result<void> write_user_types() {
    json_.key("user_types").begin_object();
    std::uint64_t written = 0;
    std::unordered_set<std::string_view> fields;
    for (TypeId id = 1; id <= types_.count() && !json_.failed(); ++id) {
      const auto info = types_.info(id);
      if (!info || !is_aggregate(info->kind))
        continue;
      json_.key(names_[id]).begin_object();
      json_.key("kind").value(info->kind == TypeKind::structure ? "struct" : "union");
      json_.key("size").number(info->size);
      json_.key("fields").begin_object();
      fields.clear();
      std::uint32_t anonymous = 0;
      for (const auto &member : types_.members(id)) {
        if (++written > member_limit)
          return fail(ErrorCode::corrupt, "the profile's types have too many members");
        if (!member.name.empty() && !fields.insert(member.name).second)
          continue; // a key that repeats would hide the first
        if (member.name.empty())
          json_.key(fmt::format("unnamed_field_{:x}", anonymous++));
        else
          json_.key(member.name);
        json_.begin_object();
        write_field(member);
        if (member.name.empty() && is_aggregate(kind_of(member.type)))
          json_.key("anonymous").boolean(true);
        json_.end_object();
      }
      json_.end_object();
      json_.end_object();
    }
    json_.end_object();
    return {};
  }

  TypeKind kind_of(TypeId type) const {
    const auto info = types_.info(types_.strip(type));
    return info ? info->kind : TypeKind::none;
  }

  Result<void> write_enumerations() {
    json_.key("enums").begin_object();
    std::uint64_t written = 0;
    std::unordered_set<std::string_view> constants;
    for (TypeId id = 1; id <= types_.count() && !json_.failed(); ++id) {
      const auto info = types_.info(id);
      if (!info || !is_enumeration(info->kind) || info->count == 0)
        continue;
      json_.key(names_[id]).begin_object();
      json_.key("size").number(info->size);
      json_.key("base").value(integer_of(info->size, info->is_signed));
      json_.key("constants").begin_object();
      constants.clear();
      for (const auto &enumerator : types_.enumerators(id)) {
        if (++written > member_limit)
          return fail(ErrorCode::corrupt, "the profile's types have too many enumerators");
        if (enumerator.name.empty() || !constants.insert(enumerator.name).second)
          continue;
        json_.key(enumerator.name).number_signed(enumerator.value);
      }
      json_.end_object();
      json_.end_object();
    }
    json_.end_object();
    return {};
  }

  // The base type or the structure of that name.
  void write_type_named(std::string_view name) {
    if (is_assumed(name))
      write_named("base", name);
    else
      write_type(types_.find(name).value_or(0));
  }

  [[nodiscard]] static bool is_assumed(std::string_view name) {
    return std::ranges::find(assumed_base_types, name, &BaseTypeText::name) != assumed_base_types.end();
  }
  [[nodiscard]] bool is_known(std::string_view type) const { return is_assumed(type) || types_.find(type); }

  void write_global_type(const GlobalType &global) {
    using enum GlobalType::Shape;
    int open = 0;
    const auto wrap_in = [&](std::string_view kind) {
      begin_descriptor(kind);
      if (kind == "array")
        json_.key("count").number(global.count);
      json_.key("subtype");
      ++open;
    };
    if (global.shape == array || global.shape == array_of_pointers)
      wrap_in("array");
    if (global.shape != plain && global.shape != array)
      wrap_in("pointer");
    if (global.shape == pointer_to_pointer)
      wrap_in("pointer");
    write_type_named(global.type);
    for (; open > 0; --open)
      json_.end_object();
  }

  void write_banner_type() {
    begin_descriptor("array");
    json_.key("count").number(banner_text().size()).key("subtype");
    write_named("base", "char");
    json_.end_object();
    json_.key("constant_data").value(base64_encode(banner_text()));
  }
  // As it stands in the kernel's memory.
  [[nodiscard]] std::string banner_text() const { return std::string(profile_.banner()) + "\n" + '\0'; }

  Result<void> write_symbols() {
    std::unordered_map<std::string_view, TypeId> variables;
    std::unordered_set<std::string_view> functions;
    for (TypeId id = 1; id <= types_.count(); ++id) {
      const auto info = types_.info(id);
      if (info && info->kind == TypeKind::variable)
        variables.emplace(info->name, info->target);
      else if (info && info->kind == TypeKind::function)
        functions.insert(info->name);
    }
    std::unordered_map<std::string_view, const GlobalType *> globals;
    for (const auto &global : global_types())
      if (is_known(global.type))
        globals.emplace(global.symbol, &global);

    const auto write_known_type = [&](const ProfileSymbol &symbol) {
      if (symbol.name == "linux_banner" && !profile_.banner().empty())
        return write_banner_type();
      if (const auto variable = variables.find(symbol.name); variable != variables.end())
        return write_type(variable->second);
      if (const auto global = globals.find(symbol.name); global != globals.end())
        return write_global_type(*global->second);
      const bool is_code = symbol.type == 't' || symbol.type == 'T' || symbol.type == 'w' || symbol.type == 'W';
      if (is_code || functions.contains(symbol.name)) {
        begin_descriptor("function");
        json_.end_object();
        return;
      }
      write_named("base", "void");
    };

    json_.key("symbols").begin_object();
    bool has_banner = false;
    for (std::size_t i = 0; i < profile_.symbol_count() && !json_.failed(); ++i) {
      const auto symbol = profile_.symbol_at(i);
      // Of several symbols of one name only the first: it is the one that a look-up finds.
      const auto first = profile_.symbol(symbol.name);
      if (symbol.name.empty() || !first || first->name.data() != symbol.name.data())
        continue;
      has_banner |= symbol.name == "linux_banner";
      json_.key(symbol.name).begin_object();
      json_.key("address").number(symbol.base == SymbolBase::image ? options_.link_base + symbol.value : symbol.value);
      json_.key("type");
      write_known_type(symbol);
      json_.end_object();
    }
    // By the banner Volatility chooses the file, so it is there even where kallsyms has functions only.
    if (!has_banner && !profile_.banner().empty()) {
      json_.key("linux_banner").begin_object();
      json_.key("address").number(0).key("type");
      write_banner_type();
      json_.end_object();
    }
    json_.end_object();
    return {};
  }

  const Profile &profile_;
  const Types &types_;
  const IsfExportOptions &options_;
  NameAssignment names_;
  JsonWriter json_;
  std::vector<BaseTypeText> integers_;
};

} // namespace

Result<void> export_isf(const Profile &profile, const TextSink &sink, const IsfExportOptions &options) {
  return Exporter(profile, sink, options).run();
}

} // namespace lararium
