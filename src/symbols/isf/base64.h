#pragma once

#include <string>
#include <string_view>

namespace lararium::isf {

[[nodiscard]] std::string base64_encode(std::string_view bytes);
// Up to the first character that is none of base64's.
[[nodiscard]] std::string base64_decode(std::string_view text);

} // namespace lararium::isf
