#include "lararium/symbols/linked_sections.h"

#include <algorithm>

namespace lararium {

const LinkedSection *LinkedSections::section(std::string_view name) const {
  const auto found = std::ranges::find(sections_, name, &LinkedSection::name);
  return found == sections_.end() ? nullptr : &*found;
}

Bytes LinkedSections::at(std::uint64_t address, std::uint64_t size) const {
  for (const LinkedSection &section : sections_)
    if (address >= section.address && address - section.address <= section.content.size() &&
        size <= section.content.size() - (address - section.address) && size != 0)
      return section.content.subspan(address - section.address, size);
  return {};
}

} // namespace lararium
