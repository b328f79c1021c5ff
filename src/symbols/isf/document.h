// An ISF file as it was read, before anything is made of it: names and types are numbers into tables.
#pragma once

#include "lararium/base/bytes.h"
#include "lararium/base/result.h"

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace lararium::isf {

using Name = std::uint32_t; // 0: none given

class NameTable {
public:
  NameTable();
  [[nodiscard]] Name intern(std::string_view text);
  [[nodiscard]] std::string_view text(Name name) const { return texts_[name]; }

private:
  struct Hash { // keyed, since the file is foreign
    std::uint64_t seed;
    std::size_t operator()(std::string_view text) const;
  };
  std::deque<std::string> texts_; // does not move them
  std::unordered_map<std::string_view, Name, Hash> names_;
};

struct Descriptor {
  enum class Kind : std::uint8_t {
    none,
    base,
    pointer,
    array,
    structure,
    union_type,
    enumeration,
    function,
    bit_field
  };
  Kind kind = Kind::none;
  std::uint32_t bit_position = 0, bit_length = 0;
  Name name = 0;
  std::uint32_t inner = 0; // index of what a pointer, array or bit field is of; 0: none
  std::uint64_t count = 0;
};

struct BaseType {
  Name name = 0, kind = 0;
  std::uint64_t size = 0;
  bool is_signed = false;
};

struct Field {
  Name name = 0;
  std::uint32_t type = 0; // index of a Descriptor
  std::uint64_t offset = 0;
  bool anonymous = false;
};

struct UserType {
  Name name = 0, kind = 0;
  std::uint64_t size = 0;
  std::uint32_t first_field = 0, field_count = 0;
};

struct Constant {
  Name name = 0;
  std::int64_t value = 0;
};

struct Enumeration {
  Name name = 0, base = 0;
  std::uint64_t size = 0;
  std::uint32_t first_constant = 0, constant_count = 0;
};

struct Symbol {
  Name name = 0;
  std::uint32_t type = 0; // index of a Descriptor
  std::uint64_t address = 0;
};

struct Document {
  NameTable names;
  std::string format;
  std::vector<Descriptor> descriptors{1}; // index 0: none
  std::vector<BaseType> base_types;
  std::vector<UserType> user_types;
  std::vector<Field> fields;
  std::vector<Enumeration> enumerations;
  std::vector<Constant> constants;
  std::vector<Symbol> symbols;
  std::string banner_base64;
};

[[nodiscard]] Result<Document> read_document(std::string_view json);

} // namespace lararium::isf
