// Makes BTF by hand, right or wrong, for tests.
#pragma once

#include "lararium/symbols/types.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

namespace lararium::test {

class BtfBuilder {
public:
  struct Member {
    std::string_view name;
    TypeId type;
    std::uint32_t offset; // as it is stored: in bits, with a size in the upper byte where the kind flag is set
  };
  struct Enumerator {
    std::string_view name;
    std::int64_t value;
  };

  BtfBuilder() = default;
  // BTF that goes on from another with this many types and bytes of strings.
  BtfBuilder(TypeId base_count, std::size_t base_strings) : next_(base_count + 1), base_strings_(base_strings) {
    strings_.clear();
  }

  std::uint32_t string(std::string_view text) {
    if (text.empty())
      return 0;
    const auto offset = static_cast<std::uint32_t>(base_strings_ + strings_.size());
    strings_ += text;
    strings_ += '\0';
    return offset;
  }
  void word(std::uint32_t value) { words_.push_back(value); }
  TypeId raw(std::uint32_t name, std::uint32_t kind, bool flag, std::uint32_t count, std::uint32_t size_or_type) {
    word(name);
    word((flag ? 1U << 31 : 0U) | kind << 24 | count);
    word(size_or_type);
    return next_++;
  }
  TypeId type(std::string_view name, TypeKind kind, bool flag, std::size_t count, std::uint32_t size_or_type) {
    return raw(string(name), static_cast<std::uint32_t>(kind), flag, static_cast<std::uint32_t>(count), size_or_type);
  }

  TypeId integer(std::string_view name, std::uint32_t size, bool is_signed = false, std::uint32_t bits = 0,
                 std::uint32_t bit_offset = 0) {
    const TypeId id = type(name, TypeKind::integer, false, 0, size);
    word((is_signed ? 1U << 24 : 0U) | bit_offset << 16 | (bits == 0 ? size * 8 : bits));
    return id;
  }
  TypeId refer(TypeKind kind, TypeId target, std::string_view name = {}) { return type(name, kind, false, 0, target); }
  TypeId pointer(TypeId target) { return refer(TypeKind::pointer, target); }
  TypeId define(std::string_view name, TypeId target) { return refer(TypeKind::type_definition, target, name); }
  TypeId variable(std::string_view name, TypeId target) {
    const TypeId id = refer(TypeKind::variable, target, name);
    word(0);
    return id;
  }
  TypeId array(TypeId element, std::uint32_t count) {
    const TypeId id = type({}, TypeKind::array, false, 0, 0);
    word(element);
    word(1);
    word(count);
    return id;
  }
  TypeId aggregate(TypeKind kind, std::string_view name, std::uint32_t size, std::initializer_list<Member> members,
                   bool flag = false) {
    const TypeId id = type(name, kind, flag, members.size(), size);
    for (const auto &member : members) {
      word(string(member.name));
      word(member.type);
      word(member.offset);
    }
    return id;
  }
  TypeId structure(std::string_view name, std::uint32_t size, std::initializer_list<Member> members,
                   bool flag = false) {
    return aggregate(TypeKind::structure, name, size, members, flag);
  }
  TypeId enumeration(std::string_view name, std::initializer_list<Enumerator> enumerators, bool is_signed = false) {
    const TypeId id = type(name, TypeKind::enumeration, is_signed, enumerators.size(), 4);
    for (const auto &enumerator : enumerators) {
      word(string(enumerator.name));
      word(static_cast<std::uint32_t>(enumerator.value));
    }
    return id;
  }
  TypeId enumeration64(std::string_view name, std::initializer_list<Enumerator> enumerators, bool is_signed = false) {
    const TypeId id = type(name, TypeKind::enumeration64, is_signed, enumerators.size(), 8);
    for (const auto &enumerator : enumerators) {
      word(string(enumerator.name));
      word(static_cast<std::uint32_t>(enumerator.value));
      word(static_cast<std::uint32_t>(static_cast<std::uint64_t>(enumerator.value) >> 32));
    }
    return id;
  }

  [[nodiscard]] std::size_t string_size() const { return strings_.size(); }

  // `layout`: pairs of what each kind has behind its entry and per element, from kind 0 on; none: the older header.
  [[nodiscard]] std::vector<std::byte> bytes(const std::vector<std::pair<int, int>> &layout = {}) const {
    const auto types = static_cast<std::uint32_t>(words_.size() * 4);
    const auto strings = static_cast<std::uint32_t>(strings_.size());
    std::vector<std::uint32_t> out{0x0001eb9f, layout.empty() ? 24U : 32U, 0, types, types, strings};
    if (!layout.empty()) {
      out.push_back((types + strings + 3) / 4 * 4);
      out.push_back(static_cast<std::uint32_t>(layout.size() * 4));
    }
    out.insert(out.end(), words_.begin(), words_.end());
    std::string text = strings_;
    if (!layout.empty())
      text.resize((text.size() + 3) / 4 * 4);
    for (const auto &[info, element] : layout) {
      text += static_cast<char>(info);
      text += static_cast<char>(element);
      text += std::string(2, '\0');
    }
    std::vector<std::byte> result(out.size() * 4 + text.size());
    std::memcpy(result.data(), out.data(), out.size() * 4);
    std::memcpy(result.data() + out.size() * 4, text.data(), text.size());
    return result;
  }

private:
  std::vector<std::uint32_t> words_;
  std::string strings_ = std::string(1, '\0');
  TypeId next_ = 1;
  std::size_t base_strings_ = 0;
};

} // namespace lararium::test
