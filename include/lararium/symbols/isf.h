// ISF, the Intermediate Symbol Format of Volatility 3: JSON with the symbols and types of one kernel, which LibVMI and
// DRAKVUF read too. Format: schema-6.2.0.json in Volatility's tree; dwarf2json is what most files are made with.
#pragma once

#include "lararium/base/bytes.h"
#include "lararium/base/result.h"
#include "lararium/symbols/build_id.h"
#include "lararium/symbols/profile.h"

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace lararium {

// A profile from an ISF file of format 4 to 6.2: plain, gzip or xz, at most 512 MiB unpacked. Symbols become distances
// from `_text` (else from `_stext`, rounded down to 2 MiB); those that do not lie in the image (per-CPU offsets,
// constants) become absolute. Types become BTF; there are no typedefs in ISF, and what is anonymous there (named
// "unnamed_...") is anonymous here. ISF knows no build id: give that of the guest, to be able to cache the profile.
[[nodiscard]] Result<std::shared_ptr<const Profile>> import_isf(Bytes isf, const BuildId &build_id = {},
                                                                std::uint64_t build_id_offset = 0);
[[nodiscard]] Result<std::shared_ptr<const Profile>>
import_isf_file(const std::filesystem::path &file, const BuildId &build_id = {}, std::uint64_t build_id_offset = 0);

struct IsfExportOptions {
  std::uint64_t link_base = 0xffffffff81000000; // where `_text` is linked; as Volatility expects it for x86-64
  std::string producer_version = "0.1.0";
};

// Takes the text piece by piece; an error ends the export.
using TextSink = std::function<Result<void>(std::string_view)>;

// All symbols and types as ISF 6.2.0, in pieces. A symbol is given a type when it is a function, when BTF has it (the
// per-CPU variables) or when it is one of those whose types Volatility's plugins need; others are `void`.
[[nodiscard]] Result<void> export_isf(const Profile &profile, const TextSink &sink,
                                      const IsfExportOptions &options = {});

} // namespace lararium
