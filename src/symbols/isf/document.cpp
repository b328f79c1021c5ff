#include "document.h"

#include "lararium/symbols/name_index.h"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace lararium::isf {
namespace {

// Real files have about 200,000 of the most frequent.
constexpr std::size_t table_limit = 4U << 20;
constexpr std::size_t depth_limit = 64;

// Reads with the SAX interface: a document tree of a 100 MiB file would take more than 1 GiB.
class Reader final : public nlohmann::json_sax<nlohmann::json> {
public:
  explicit Reader(Document &document) : document_(document) {}

  std::string error;

  bool null() override { return true; }
  bool boolean(bool value) override {
    if (key_ == "signed" && top() == Where::base_type)
      document_.base_types.back().is_signed = value;
    else if (key_ == "anonymous" && top() == Where::field)
      document_.fields.back().anonymous = value;
    return true;
  }
  bool number_integer(number_integer_t value) override { return number(static_cast<std::uint64_t>(value)); }
  bool number_unsigned(number_unsigned_t value) override { return number(value); }
  bool number_float(number_float_t, const string_t &) override { return true; }
  bool binary(binary_t &) override { return true; }

  bool string(string_t &value) override {
    switch (top()) {
    case Where::metadata:
      if (key_ == "format")
        document_.format = value;
      break;
    case Where::base_type:
      if (key_ == "kind")
        document_.base_types.back().kind = document_.names.intern(value);
      break;
    case Where::user_type:
      if (key_ == "kind")
        document_.user_types.back().kind = document_.names.intern(value);
      break;
    case Where::enumeration:
      if (key_ == "base")
        document_.enumerations.back().base = document_.names.intern(value);
      break;
    case Where::symbol:
      if (key_ == "constant_data" && document_.names.text(document_.symbols.back().name) == "linux_banner")
        document_.banner_base64 = value;
      break;
    case Where::type:
      if (key_ == "kind")
        descriptor().kind = kind_of(value);
      else if (key_ == "name")
        descriptor().name = document_.names.intern(value);
      break;
    default: break;
    }
    return true;
  }

  bool key(string_t &value) override {
    std::swap(key_, value);
    if (top() == Where::constants) {
      if (document_.constants.size() >= table_limit)
        return too_many();
      document_.constants.push_back({document_.names.intern(key_), 0});
      ++document_.enumerations.back().constant_count;
    }
    return true;
  }

  bool start_object(std::size_t) override {
    if (frames_.size() >= depth_limit)
      return refuse("nested too deeply");
    const Where inner = frames_.empty() ? Where::root : where_leads(top());
    Frame frame{inner, 0};
    switch (inner) {
    case Where::base_type:
      if (document_.base_types.size() >= table_limit)
        return too_many();
      document_.base_types.push_back({document_.names.intern(key_), 0, 0, false});
      break;
    case Where::user_type:
      if (document_.user_types.size() >= table_limit)
        return too_many();
      document_.user_types.push_back(
          {document_.names.intern(key_), 0, 0, static_cast<std::uint32_t>(document_.fields.size()), 0});
      break;
    case Where::field:
      if (document_.fields.size() >= table_limit)
        return too_many();
      document_.fields.push_back({document_.names.intern(key_), 0, 0, false});
      ++document_.user_types.back().field_count;
      break;
    case Where::enumeration:
      if (document_.enumerations.size() >= table_limit)
        return too_many();
      document_.enumerations.push_back(
          {document_.names.intern(key_), 0, 0, static_cast<std::uint32_t>(document_.constants.size()), 0});
      break;
    case Where::symbol:
      if (document_.symbols.size() >= table_limit)
        return too_many();
      document_.symbols.push_back({document_.names.intern(key_), 0, 0});
      break;
    case Where::type: {
      if (document_.descriptors.size() >= table_limit)
        return too_many();
      const auto index = static_cast<std::uint32_t>(document_.descriptors.size());
      frame.index = index;
      if (top() == Where::field)
        document_.fields.back().type = index;
      else if (top() == Where::symbol)
        document_.symbols.back().type = index;
      else
        descriptor().inner = index;
      document_.descriptors.emplace_back();
      break;
    }
    default: break;
    }
    frames_.push_back(frame);
    key_.clear();
    return true;
  }
  bool end_object() override {
    frames_.pop_back();
    key_.clear();
    return true;
  }
  // Only metadata has arrays; nothing in them is of use.
  bool start_array(std::size_t) override {
    if (frames_.size() >= depth_limit)
      return refuse("nested too deeply");
    frames_.push_back({Where::elsewhere, 0});
    return true;
  }
  bool end_array() override {
    frames_.pop_back();
    key_.clear();
    return true;
  }
  bool parse_error(std::size_t position, const std::string &, const nlohmann::detail::exception &) override {
    return refuse(fmt::format("no valid JSON at byte {}", position));
  }

private:
  enum class Where : std::uint8_t {
    elsewhere,
    root,
    metadata,
    base_types,
    base_type,
    user_types,
    user_type,
    fields,
    field,
    enumerations,
    enumeration,
    constants,
    symbols,
    symbol,
    type,
  };
  struct Frame {
    Where where;
    std::uint32_t index; // of a type's Descriptor
  };

  // What an object under the current key is.
  [[nodiscard]] Where where_leads(Where outer) const {
    switch (outer) {
    case Where::root:
      return key_ == "metadata"     ? Where::metadata
             : key_ == "base_types" ? Where::base_types
             : key_ == "user_types" ? Where::user_types
             : key_ == "enums"      ? Where::enumerations
             : key_ == "symbols"    ? Where::symbols
                                    : Where::elsewhere;
    case Where::base_types: return Where::base_type;
    case Where::user_types: return Where::user_type;
    case Where::user_type: return key_ == "fields" ? Where::fields : Where::elsewhere;
    case Where::fields: return Where::field;
    case Where::enumerations: return Where::enumeration;
    case Where::enumeration: return key_ == "constants" ? Where::constants : Where::elsewhere;
    case Where::symbols: return Where::symbol;
    case Where::field:
    case Where::symbol: return key_ == "type" ? Where::type : Where::elsewhere;
    case Where::type: return key_ == "subtype" || key_ == "type" ? Where::type : Where::elsewhere;
    default: return Where::elsewhere;
    }
  }

  static Descriptor::Kind kind_of(std::string_view text) {
    using enum Descriptor::Kind;
    return text == "base"                        ? base
           : text == "pointer"                   ? pointer
           : text == "array"                     ? array
           : text == "struct" || text == "class" ? structure
           : text == "union"                     ? union_type
           : text == "enum"                      ? enumeration
           : text == "function"                  ? function
           : text == "bitfield"                  ? bit_field
                                                 : none;
  }

  bool number(std::uint64_t value) {
    switch (top()) {
    case Where::base_type:
      if (key_ == "size")
        document_.base_types.back().size = value;
      break;
    case Where::user_type:
      if (key_ == "size")
        document_.user_types.back().size = value;
      break;
    case Where::enumeration:
      if (key_ == "size")
        document_.enumerations.back().size = value;
      break;
    case Where::constants: document_.constants.back().value = static_cast<std::int64_t>(value); break;
    case Where::field:
      if (key_ == "offset")
        document_.fields.back().offset = value;
      break;
    case Where::symbol:
      if (key_ == "address")
        document_.symbols.back().address = value;
      break;
    case Where::type:
      if (key_ == "count")
        descriptor().count = value;
      else if (key_ == "bit_position")
        descriptor().bit_position = static_cast<std::uint32_t>(std::min<std::uint64_t>(value, UINT32_MAX));
      else if (key_ == "bit_length")
        descriptor().bit_length = static_cast<std::uint32_t>(std::min<std::uint64_t>(value, UINT32_MAX));
      break;
    default: break;
    }
    return true;
  }

  [[nodiscard]] Where top() const { return frames_.empty() ? Where::elsewhere : frames_.back().where; }
  [[nodiscard]] Descriptor &descriptor() { return document_.descriptors[frames_.back().index]; }
  bool too_many() { return refuse("too many entries"); }
  bool refuse(std::string what) {
    error = std::move(what);
    return false;
  }

  Document &document_;
  std::vector<Frame> frames_;
  std::string key_;
};

} // namespace

std::size_t NameTable::Hash::operator()(std::string_view text) const { return hash_name(text, seed); }

NameTable::NameTable() : texts_(1), names_(0, Hash{random_seed()}) {}

Name NameTable::intern(std::string_view text) {
  if (text.empty())
    return 0;
  if (const auto found = names_.find(text); found != names_.end())
    return found->second;
  const auto name = static_cast<Name>(texts_.size());
  texts_.emplace_back(text);
  names_.emplace(texts_.back(), name);
  return name;
}

Result<Document> read_document(std::string_view json) {
  Document document;
  Reader reader(document);
  if (!nlohmann::json::sax_parse(json.begin(), json.end(), &reader))
    return fail(ErrorCode::corrupt, "the ISF file: " + reader.error);
  return document;
}

} // namespace lararium::isf
