// Writes BTF, entry by entry.
#pragma once

#include "lararium/symbols/types.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace lararium::isf {

class BtfWriter {
public:
  [[nodiscard]] TypeId next_id() const { return count_ + 1; }

  // The name's offset in the strings. `key` says which name it is: equal keys, equal names; 0 for none.
  [[nodiscard]] std::uint32_t string(std::uint32_t key, std::string_view text);

  TypeId begin(std::uint32_t name, TypeKind kind, bool kind_flag, std::uint32_t count, std::uint32_t size_or_type);
  void word(std::uint32_t value) { words_.push_back(value); }

  [[nodiscard]] std::size_t size() const { return words_.size() * 4 + strings_.size(); }
  [[nodiscard]] std::vector<std::byte> finish() const;

private:
  std::vector<std::uint32_t> words_;
  std::string strings_ = std::string(1, '\0');
  std::vector<std::uint32_t> offsets_; // by key
  TypeId count_ = 0;
};

} // namespace lararium::isf
