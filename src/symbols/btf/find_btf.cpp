#include "format.h"
#include "lararium/symbols/btf.h"
#include "lararium/symbols/name_index.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace lararium {
namespace {

struct Candidate {
  std::size_t offset = 0, size = 0;
};

// A hostile image may hold a header at every other byte. Only so many are looked at in full.
constexpr std::size_t candidate_limit = 4096;
constexpr std::size_t check_limit = 8;

// BTF that building on another (a module's, in an initramfs) does not pass the check on its own.
std::vector<Candidate> candidates(Bytes image) {
  constexpr std::array<std::uint8_t, 4> pattern{0x9f, 0xeb, 1, 0}; // magic, version, flags
  std::vector<Candidate> result;
  std::size_t at = 0;
  // .BTF has no alignment before Linux 7, so that every byte counts. The magic's first byte is rare in kernels (one in
  // 2000), so that memchr does nearly all of the work, many times faster than memmem.
  while (result.size() < candidate_limit && at < image.size()) {
    const void *hit = std::memchr(image.data() + at, pattern[0], image.size() - at);
    if (hit == nullptr)
      break;
    at = static_cast<std::size_t>(static_cast<const std::byte *>(hit) - image.data());
    const Bytes rest = image.subspan(at++);
    if (load<std::array<std::uint8_t, 4>>(rest, 0) != pattern)
      continue;
    // Newer headers may have grown further; the sizes bound what is worth a closer look.
    if (const auto length = load<std::uint32_t>(rest, 4); length && *length >= 24 && *length <= 256)
      if (const auto sections = btf_sections(rest))
        result.push_back({static_cast<std::size_t>(rest.data() - image.data()), sections->size});
  }
  return result;
}

} // namespace

Result<FoundBtf> find_btf(Bytes image) {
  auto found = candidates(image);
  std::ranges::sort(found, [](const Candidate &a, const Candidate &b) {
    return a.size != b.size ? a.size > b.size : a.offset < b.offset;
  });
  if (found.size() > check_limit)
    found.resize(check_limit);
  for (const auto &candidate : found) {
    const Bytes place = image.subspan(candidate.offset, candidate.size);
    FoundBtf btf{candidate.offset, {place.begin(), place.end()}};
    const auto sections = btf_sections(btf.bytes);
    if (!sections || sections->types.empty() || !index_btf(*sections, random_seed()))
      continue;
    btf.bytes.resize(sections->size); // it may have shrunk meanwhile
    return btf;
  }
  return fail(ErrorCode::no_types, "the kernel's image holds no BTF");
}

} // namespace lararium
