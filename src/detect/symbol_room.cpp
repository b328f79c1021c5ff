#include "symbol_room.h"

namespace lararium::detect {

std::uint64_t room_of(const Profile &profile, std::string_view name) {
  const auto symbol = profile.symbol(name);
  if (!symbol)
    return 0;
  // The first symbol beyond it: image symbols stand by value, and then absolute ones by value.
  std::size_t low = 0, high = profile.symbol_count();
  while (low < high) {
    const std::size_t middle = low + (high - low) / 2;
    const ProfileSymbol other = profile.symbol_at(middle);
    const bool is_beyond = other.base == symbol->base ? other.value > symbol->value : symbol->base == SymbolBase::image;
    if (is_beyond)
      high = middle;
    else
      low = middle + 1;
  }
  if (low == profile.symbol_count() || profile.symbol_at(low).base != symbol->base)
    return 0;
  return profile.symbol_at(low).value - symbol->value;
}

} // namespace lararium::detect
