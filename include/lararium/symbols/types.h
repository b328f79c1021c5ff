// The types of one kernel (or of one of its modules), held as BTF: structures, members, enumerators.
// BTF's format: Documentation/bpf/btf.rst in the kernel's tree. ISF files are converted to BTF on import, so that there
// is one representation.
#pragma once

#include "lararium/base/bytes.h"
#include "lararium/base/result.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

namespace lararium {

using TypeId = std::uint32_t; // 0 is void

enum class TypeKind : std::uint8_t { // BTF_KIND_*
  none,
  integer,
  pointer,
  array,
  structure,
  union_type,
  enumeration,
  forward,
  type_definition,
  volatile_type,
  constant,
  restricted,
  function,
  function_prototype,
  variable,
  data_section,
  floating,
  declaration_tag,
  type_tag,
  enumeration64,
};

struct TypeInfo {
  TypeId id = 0;
  TypeKind kind = TypeKind::none;
  std::string_view name;   // empty: anonymous
  std::uint64_t size = 0;  // bytes; of structures, unions, integers, enumerations, floats
  TypeId target = 0;       // what a pointer, typedef, qualifier, array (its element), variable, tag, function (its
                           // prototype) or prototype (what it returns) refers to
  std::uint32_t count = 0; // elements of an array; members, enumerators, parameters of the others
  bool is_signed = false, is_bool = false, is_char = false; // of integers; is_signed of enumerations too
};

struct MemberInfo {
  std::string_view name; // empty: an anonymous structure or union
  TypeId type = 0;
  std::uint32_t bit_offset = 0;
  std::uint32_t bit_size = 0; // 0: not a bit field
};

// Where a member lies, resolved through nested and anonymous structures.
struct FieldLocation {
  std::uint32_t offset = 0;     // bytes from the start of the outer type
  std::uint32_t size = 0;       // bytes of the member's type; of the storage unit for a bit field
  TypeId type = 0;              // with typedefs and qualifiers stripped
  std::uint32_t bit_offset = 0; // of a bit field, from the start of the outer type; else 8 * offset
  std::uint32_t bit_size = 0;   // 0: not a bit field
};

class Types {
public:
  virtual ~Types() = default;

  [[nodiscard]] virtual std::uint32_t count() const = 0; // ids are 1 .. count()
  [[nodiscard]] virtual std::optional<TypeInfo> info(TypeId id) const = 0;
  // Of structures and unions; of function prototypes the parameters, without offsets. At most `count` of the TypeInfo,
  // empty for what has none.
  [[nodiscard]] virtual std::vector<MemberInfo> members(TypeId id) const = 0;
  // Of these, those that are called `name` and those that have no name: what a search for `name` looks at. A view
  // resolves a hundred members, most of them of structures that have hundreds.
  [[nodiscard]] virtual std::vector<MemberInfo> members_for(TypeId id, std::string_view name) const;
  struct Enumerator {
    std::string_view name;
    std::int64_t value = 0;
  };
  [[nodiscard]] virtual std::vector<Enumerator> enumerators(TypeId id) const = 0;

  // The first structure or union (else enumeration, else typedef) of that name; forward declarations never.
  [[nodiscard]] virtual std::optional<TypeId> find(std::string_view name) const = 0;
  // The value of an enumerator of any enumeration, anonymous ones included.
  [[nodiscard]] virtual std::optional<std::int64_t> enumerator(std::string_view name) const = 0;

  // `path`: members joined by dots ("__sk_common.skc_family"); anonymous structures and unions are looked through;
  // an element of an array as "name[3]". Nothing when any part is not there: callers decide by presence.
  [[nodiscard]] std::optional<FieldLocation> field(std::string_view type, std::string_view path) const;
  [[nodiscard]] std::optional<FieldLocation> field(TypeId type, std::string_view path) const;
  [[nodiscard]] std::optional<std::uint64_t> size_of(std::string_view type) const;
  [[nodiscard]] std::optional<std::uint64_t> size_of(TypeId type) const; // bounded depth
  [[nodiscard]] TypeId strip(TypeId type) const; // typedefs, qualifiers and type tags away; bounded depth
};

} // namespace lararium
