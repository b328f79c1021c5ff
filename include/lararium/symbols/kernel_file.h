// A kernel as its package brings it: vmlinuz (a bzImage, Documentation/arch/x86/boot.rst) or vmlinux (ELF). Its
// sections, at the addresses for which it was linked. The file is the operator's, but still foreign bytes.
#pragma once

#include "lararium/base/bytes.h"
#include "lararium/base/mapping.h"
#include "lararium/base/result.h"
#include "lararium/symbols/build_id.h"
#include "lararium/symbols/linked_sections.h"

#include <string>
#include <vector>

namespace lararium {

class KernelFile : public LinkedSections {
public:
  using Section = LinkedSection;

  // Unpacks what a bzImage holds (gzip, xz, zstd, lz4). An ELF `file` must outlive the result. Errors: `corrupt`;
  // `unsupported`, for another way of packing, another architecture, or no kernel at all.
  [[nodiscard]] static Result<KernelFile> parse(Bytes file);
  [[nodiscard]] static Result<KernelFile> open(const std::string &path);

  [[nodiscard]] const BuildId &build_id() const { return build_id_; }

private:
  Mapping file_;                    // what the sections lie in, or
  std::vector<std::byte> unpacked_; // what came out of it
  BuildId build_id_;
};

} // namespace lararium
