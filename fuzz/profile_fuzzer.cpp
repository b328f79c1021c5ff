// A cached profile that somebody forged: its checksum is put right, so that what is behind it is reached.
#include "lararium/symbols/isf.h"
#include "lararium/symbols/profile.h"

#include "../src/symbols/profile/image.h"
#include "lararium/base/unique_fd.h"

#include <algorithm>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

using namespace lararium;

namespace {

void ask(const Profile &profile) {
  for (std::size_t i = 0; i < std::min<std::size_t>(profile.symbol_count() + 1, 100); ++i) {
    const auto symbol = profile.symbol_at(i);
    (void)profile.symbol(symbol.name);
    (void)profile.nearest(symbol.value);
    (void)profile.nearest(symbol.value - 1);
  }
  (void)profile.symbol("init_task");
  const Types &types = profile.types();
  for (TypeId id = 0; id <= std::min<std::uint32_t>(types.count() + 1, 60); ++id) {
    (void)types.strip(id);
    (void)types.size_of(id);
    (void)types.enumerators(id);
    for (const auto &member : types.members(id))
      (void)types.field(id, member.name);
    if (const auto info = types.info(id))
      (void)types.find(info->name);
  }
  (void)types.field("task_struct", "comm");
  (void)types.enumerator("RUNNING");
  std::size_t length = 0;
  (void)export_isf(profile, [&](std::string_view piece) -> Result<void> {
    length += piece.size();
    return length > (1U << 20) ? Result<void>(fail(ErrorCode::io, "enough")) : Result<void>();
  });
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  std::vector<std::byte> image(size);
  if (size != 0)
    std::memcpy(image.data(), data, size);
  profile_image::Header header;
  if (size >= sizeof header) {
    std::memcpy(&header, image.data(), sizeof header);
    header.magic = profile_image::magic;
    header.version = profile_image::version;
    header.header_size = sizeof header;
    header.total_size = size;
    std::memcpy(image.data(), &header, sizeof header);
    header.checksum = profile_image::checksum_of(image);
    std::memcpy(image.data(), &header, sizeof header);
  }
  const UniqueFd file(::memfd_create("profile", MFD_CLOEXEC));
  if (::write(file.get(), image.data(), image.size()) != static_cast<ssize_t>(image.size()))
    return 0;
  if (const auto profile = Profile::open(file.get()))
    ask(**profile);
  return 0;
}
