// A module's file as a kernel has it in memory before it changes anything: every section at its address, every address
// in it filled in. A pure function of the file and of what is told of the guest.
#pragma once

#include "lararium/symbols/linked_sections.h"
#include "lararium/symbols/module_file.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
#include <vector>

namespace lararium {

class RelocatedModule : public LinkedSections {
public:
  RelocatedModule(RelocatedModule &&) = default;
  RelocatedModule &operator=(RelocatedModule &&) = default;
  RelocatedModule(const RelocatedModule &) = delete; // its sections lie in what it keeps
  RelocatedModule &operator=(const RelocatedModule &) = delete;
  ~RelocatedModule() = default;

  struct Place {
    std::uint64_t at = 0;
    std::uint8_t length = 0;
  };
  using Find = std::function<std::optional<std::uint64_t>(std::string_view name)>;

  // `section` gives the address of each loaded section, `symbol` of what the module does not define itself. A section
  // that has no address (the kernel threw it away) is put behind `elsewhere`, so that tables can be read that name
  // places in others; nothing in others leads to it. Fails with `corrupt` where the file has more than
  // modules have.
  [[nodiscard]] static Result<RelocatedModule> make(const ModuleFile &file, const Find &section, const Find &symbol,
                                                    std::uint64_t elsewhere);

  // Whether the guest has the section of that number in sections().
  [[nodiscard]] bool is_placed(std::size_t number) const { return placed_[number]; }
  // What is not known, as its symbol is not: the bytes there are those of the file. By address.
  [[nodiscard]] const std::vector<Place> &unknown() const { return unknown_; }
  // Trampolines of static calls: symbols that begin with __SCT__.
  [[nodiscard]] const std::vector<std::uint64_t> &trampolines() const { return trampolines_; }

private:
  class Maker;
  RelocatedModule() = default;
  std::vector<std::vector<std::byte>> contents_;
  std::vector<bool> placed_;
  std::vector<Place> unknown_;
  std::vector<std::uint64_t> trampolines_;
};

} // namespace lararium
