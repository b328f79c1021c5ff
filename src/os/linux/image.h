// The kernel image's bytes, and a profile from them.
#pragma once

#include "lararium/os/linux/kernel.h"

#include <vector>

namespace lararium::linux_guest {

// The image in one span: in place where the driver has guest memory mapped (then it changes under the reader's eyes),
// else a copy. Pages that cannot be read are zeros.
class KernelImage {
public:
  KernelImage(const PhysicalMemory &memory, const KernelLocation &location);
  [[nodiscard]] Bytes bytes() const { return bytes_; }

private:
  std::vector<std::byte> copy_;
  Bytes bytes_;
};

struct ImageProfile {
  std::shared_ptr<const Profile> profile;
  std::vector<std::string> warnings;
};

// A profile from the image alone: build id, banner, kallsyms, BTF. Fails with unknown_os when the image holds no Linux
// banner, with not_found or corrupt when it holds no usable kallsyms. A kernel without BTF gives a profile without
// types.
[[nodiscard]] Result<ImageProfile> profile_from_image(const KernelImage &image, const KernelLocation &location);

} // namespace lararium::linux_guest
