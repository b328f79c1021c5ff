// The table of sections of an ELF file of x86-64: what kernels and modules have in common.
#pragma once

#include "lararium/base/bytes.h"
#include "lararium/base/result.h"

#include <elf.h>
#include <string>
#include <string_view>
#include <vector>

namespace lararium {

struct ElfSections {
  Bytes file;
  std::vector<Elf64_Shdr> table;

  [[nodiscard]] Bytes content_of(const Elf64_Shdr &entry) const; // empty: it has none, or not all of it
  [[nodiscard]] std::string name_of(const Elf64_Shdr &entry) const;

  Bytes names;
};

[[nodiscard]] bool is_elf(Bytes file);
// `what` is what the messages call the file: "the kernel in the file".
[[nodiscard]] Result<ElfSections> read_elf_sections(Bytes file, std::string_view what);

} // namespace lararium
