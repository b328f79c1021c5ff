// The types of global variables that BTF leaves out.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

namespace lararium::isf {

struct GlobalType {
  enum class Shape : std::uint8_t { plain, pointer, pointer_to_pointer, array, array_of_pointers };
  std::string_view symbol;
  std::string_view type; // a structure's tag, or an integer type of C
  Shape shape = Shape::plain;
  std::uint32_t count = 0; // of arrays
};

// The variables whose types plugins of Volatility need, over the kernels that it reads, and some that people ask for in
// its shell. Declarations: the kernel's tree, at each variable's definition.
[[nodiscard]] std::span<const GlobalType> global_types();

} // namespace lararium::isf
