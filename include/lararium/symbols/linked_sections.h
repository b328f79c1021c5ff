// Sections of a program at the addresses for which their bytes were made.
#pragma once

#include "lararium/base/bytes.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lararium {

struct LinkedSection {
  std::string name;
  std::uint64_t address = 0;
  Bytes content;            // empty: the file has none of it (.bss)
  bool is_code = false;     // the flags of the section: SHF_EXECINSTR
  bool is_writable = false; // and SHF_WRITE
};

class LinkedSections {
public:
  [[nodiscard]] const std::vector<LinkedSection> &sections() const { return sections_; }
  [[nodiscard]] const LinkedSection *section(std::string_view name) const; // null: there is none
  // The bytes that lie at an address; empty where a section does not hold them all.
  [[nodiscard]] Bytes at(std::uint64_t address, std::uint64_t size) const;

protected:
  std::vector<LinkedSection> sections_;
};

} // namespace lararium
