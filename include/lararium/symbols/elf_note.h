// Build ids inside a kernel image. A kernel's image carries several: its own in `.notes`, and those of the ELF files
// embedded in it (the vDSO images; user mode helpers), so that finding is one thing and choosing another.
#pragma once

#include "lararium/base/bytes.h"
#include "lararium/symbols/build_id.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lararium {

struct BuildIdNote {
  BuildId id;
  std::size_t offset = 0;    // of the id's bytes in the image
  bool in_elf_file = false;  // a PT_NOTE segment of an ELF file that is embedded in the image covers it
  bool beside_linux = false; // the note before or behind it has the owner "Linux" or "Xen", as in the kernel's `.notes`
};

// The GNU build id notes (type 3, owner "GNU", 8 to 32 bytes) in the order of the image, at most `limit`. Notes are
// aligned to 4 bytes; the image must start at a page boundary. It may be changing meanwhile.
[[nodiscard]] std::vector<BuildIdNote> find_build_ids(Bytes image, std::size_t limit = 64);

// The kernel's own: the one that VMCOREINFO names, where `expected` is not empty; else the first outside of embedded
// ELF files, those beside other notes of the kernel before the rest. Null where there is none.
[[nodiscard]] const BuildIdNote *choose_build_id(const std::vector<BuildIdNote> &notes, const BuildId &expected = {});

} // namespace lararium
