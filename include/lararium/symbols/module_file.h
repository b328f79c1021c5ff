// A loadable module as its package brings it: NAME.ko, an ELF file that is to be relocated, which may be packed. The
// file is the operator's, but still foreign bytes.
#pragma once

#include "lararium/base/bytes.h"
#include "lararium/base/mapping.h"
#include "lararium/base/result.h"
#include "lararium/symbols/build_id.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lararium {

class ModuleFile {
public:
  struct Section {
    std::string name;
    std::uint64_t size = 0;
    Bytes content; // empty: the file has none of it
    bool is_loaded = false, is_code = false, is_writable = false;
  };
  struct Symbol {
    std::string_view name;
    std::uint64_t value = 0;   // from its section's begin on
    std::uint16_t section = 0; // SHN_UNDEF: another module's, or the kernel's
  };
  struct Relocation {
    std::uint64_t offset = 0; // in the section
    std::uint32_t type = 0;   // R_X86_64_*
    std::uint32_t symbol = 0;
    std::int64_t addend = 0;
  };
  // Of one section. A number that is too large has none of them.
  struct Relocations {
    std::size_t section = 0; // that they change
    Bytes entries;
    [[nodiscard]] std::size_t count() const;
    [[nodiscard]] Relocation at(std::size_t number) const;
  };

  // An unpacked `file` must outlive the result. Errors: `corrupt`; `unsupported`, for another way of packing, another
  // architecture, or no module at all.
  [[nodiscard]] static Result<ModuleFile> parse(Bytes file);
  [[nodiscard]] static Result<ModuleFile> open(const std::string &path);

  [[nodiscard]] const BuildId &build_id() const { return build_id_; }                 // of size 0: there is none
  [[nodiscard]] const std::string &source_version() const { return source_version_; } // empty: there is none
  [[nodiscard]] const std::vector<Section> &sections() const { return sections_; }    // by their number in the file
  [[nodiscard]] const std::vector<Relocations> &relocations() const { return relocations_; }
  [[nodiscard]] std::size_t symbol_count() const;
  [[nodiscard]] std::optional<Symbol> symbol(std::size_t number) const;

private:
  Mapping file_;                    // what all lies in, or
  std::vector<std::byte> unpacked_; // what came out of it
  std::vector<Section> sections_;
  std::vector<Relocations> relocations_;
  Bytes symbols_, symbol_names_;
  BuildId build_id_;
  std::string source_version_;
};

} // namespace lararium
