// Places in a guest's memory as a user writes them: 0xADDRESS, phys:0xADDRESS, SYMBOL, SYMBOL+0x10.
#pragma once

#include "context.h"

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace lararium::cli {

struct Place {
  enum class Kind : std::uint8_t { kernel, process, physical };
  Kind kind = Kind::kernel;
  std::uint64_t address = 0;
  std::int32_t pid = 0; // of Kind::process
};

// A symbol is looked up in the guest's kernel, which is attached to only when there is one to look up.
[[nodiscard]] Result<Place> resolve_place(Context &context, std::string_view text, std::optional<std::int32_t> pid);

// Reads pieces of guest memory one after the other.
class PlaceReader {
public:
  [[nodiscard]] static Result<PlaceReader> open(Context &context, const Place &place);
  // As many bytes from the place's address + offset on as can be read.
  [[nodiscard]] Result<std::size_t> read(std::uint64_t offset, std::span<std::byte> out) const;
  [[nodiscard]] Error fault_at(std::uint64_t offset) const;

private:
  PlaceReader(const Place &place, Target *target, OperatingSystem *guest)
      : place_(place), target_(target), guest_(guest) {}
  Place place_;
  Target *target_;
  OperatingSystem *guest_; // null: physical memory needs none
};

} // namespace lararium::cli
