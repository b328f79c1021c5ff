// The file format of recordings.
//
//   8 bytes   "LARAREC" and the version, 1
//   8 bytes   size of the payload when decompressed
//   rest      one zstd frame with a checksum
//
// The payload is little-endian and packed; a text is 4 bytes of length and its bytes, a list 4 bytes of length and its
// elements: identity, hints, limitations, ranges, vCPUs, then the numbers of the recorded pages (ascending) and last
// the pages themselves.
#pragma once

#include "lararium/base/bytes.h"
#include "lararium/base/result.h"
#include "lararium/vm/target.h"

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace lararium::replay {

using Page = std::array<std::byte, page_size>;

struct Recording {
  TargetIdentity identity;
  TargetHints hints;
  std::vector<std::string> limitations;
  std::vector<RamRange> ranges;
  bool has_vcpus = false;
  std::vector<VcpuRegisters> vcpus;
  std::vector<std::uint64_t> frames; // ascending
  std::vector<Page> pages;           // of the same length
};

inline constexpr std::string_view magic_name = "LARAREC"; // in every version
inline constexpr std::uint64_t payload_limit = std::uint64_t{256} << 20;

[[nodiscard]] Result<std::vector<std::byte>> encode(const Recording &recording);
[[nodiscard]] Result<Recording> decode(Bytes file);
// What decode() does once the payload is decompressed.
[[nodiscard]] Result<Recording> decode_payload(Bytes payload);

[[nodiscard]] Target make_target(Recording recording);

} // namespace lararium::replay
