// Resolving the members that a view needs, once per kernel, by presence and never by version.
#pragma once

#include "lararium/base/result.h"
#include "lararium/symbols/types.h"

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

namespace lararium::linux_guest {

// Looks members up and remembers those that a view cannot do without and that this kernel does not have.
class LayoutResolver {
public:
  explicit LayoutResolver(const Types &types) : types_(&types) {}

  [[nodiscard]] FieldLocation require(std::string_view type, std::string_view path) {
    return require_any(type, {path});
  }
  // The first of several spellings that is there.
  [[nodiscard]] FieldLocation require_any(std::string_view type, std::initializer_list<std::string_view> paths) {
    if (const auto field = optional_any(type, paths))
      return *field;
    missing_ += (missing_.empty() ? "" : ", ") + std::string(type) + "." + std::string(*paths.begin());
    return {};
  }
  [[nodiscard]] std::optional<FieldLocation> optional(std::string_view type, std::string_view path) const {
    return types_->field(type, path);
  }
  [[nodiscard]] std::optional<FieldLocation> optional_any(std::string_view type,
                                                          std::initializer_list<std::string_view> paths) const {
    for (const auto path : paths)
      if (const auto field = types_->field(type, path))
        return field;
    return std::nullopt;
  }
  [[nodiscard]] std::uint64_t require_size(std::string_view type) {
    if (const auto size = types_->size_of(type))
      return *size;
    missing_ += (missing_.empty() ? "" : ", ") + std::string(type);
    return 0;
  }

  [[nodiscard]] Result<void> check() const {
    if (missing_.empty())
      return {};
    return fail(ErrorCode::no_types, "the kernel's type information lacks " + missing_);
  }

private:
  const Types *types_;
  std::string missing_;
};

} // namespace lararium::linux_guest
