#include "unpack_kernel.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <lz4.h>
#include <lzma.h>
#include <memory>
#include <string_view>
#include <zlib.h>
#include <zstd.h>

namespace lararium::kernel_file {
namespace {

constexpr std::uint64_t xz_memory_limit = 256U << 20; // the kernel's build uses dictionaries of up to 128 MiB
constexpr std::size_t step = 8U << 20;

std::unexpected<Error> damaged() { return fail(ErrorCode::corrupt, "what the file packs is damaged"); }

bool begins_with(Bytes bytes, std::string_view magic) {
  return bytes.size() >= magic.size() &&
         std::ranges::equal(bytes.first(magic.size()), std::as_bytes(std::span(magic.data(), magic.size())));
}

// Room for some more; false when the limit is reached.
bool grow(std::vector<std::byte> &out) {
  if (out.size() >= largest_kernel)
    return false;
  out.resize(std::min(largest_kernel, out.size() + std::max(step, out.size() / 2)));
  return true;
}

Result<std::vector<std::byte>> unpack_gzip(Bytes packed) {
  z_stream stream{};
  if (inflateInit2(&stream, 15 + 16) != Z_OK) // 16: gzip only
    return fail(ErrorCode::io, "zlib cannot start");
  const std::unique_ptr<z_stream, int (*)(z_stream *)> end(&stream, inflateEnd);
  stream.next_in = reinterpret_cast<Bytef *>(const_cast<std::byte *>(packed.data()));
  stream.avail_in = static_cast<uInt>(std::min<std::size_t>(packed.size(), UINT32_MAX));
  std::vector<std::byte> out;
  std::size_t used = 0;
  for (int state = Z_OK; state != Z_STREAM_END;) {
    if (used == out.size() && !grow(out))
      return damaged();
    stream.next_out = reinterpret_cast<Bytef *>(out.data() + used);
    stream.avail_out = static_cast<uInt>(out.size() - used);
    state = inflate(&stream, Z_NO_FLUSH);
    used = out.size() - stream.avail_out;
    if (state != Z_OK && state != Z_STREAM_END)
      return damaged();
  }
  out.resize(used);
  return out;
}

Result<std::vector<std::byte>> unpack_xz(Bytes packed) {
  lzma_stream stream = LZMA_STREAM_INIT;
  if (lzma_stream_decoder(&stream, xz_memory_limit, 0) != LZMA_OK)
    return fail(ErrorCode::io, "liblzma cannot start");
  const std::unique_ptr<lzma_stream, void (*)(lzma_stream *)> end(&stream, lzma_end);
  stream.next_in = reinterpret_cast<const std::uint8_t *>(packed.data());
  stream.avail_in = packed.size();
  std::vector<std::byte> out;
  std::size_t used = 0;
  for (lzma_ret state = LZMA_OK; state != LZMA_STREAM_END;) {
    if (used == out.size() && !grow(out))
      return damaged();
    stream.next_out = reinterpret_cast<std::uint8_t *>(out.data() + used);
    stream.avail_out = out.size() - used;
    state = lzma_code(&stream, LZMA_FINISH);
    used = out.size() - stream.avail_out;
    if (state != LZMA_OK && state != LZMA_STREAM_END)
      return damaged();
  }
  out.resize(used);
  return out;
}

Result<std::vector<std::byte>> unpack_zstd(Bytes packed) {
  const std::unique_ptr<ZSTD_DStream, std::size_t (*)(ZSTD_DStream *)> stream(ZSTD_createDStream(), ZSTD_freeDStream);
  // The kernel's build takes the largest window there is (--ultra -22: 128 MiB).
  if (stream == nullptr || ZSTD_isError(ZSTD_DCtx_setParameter(stream.get(), ZSTD_d_windowLogMax, 27)))
    return fail(ErrorCode::io, "zstd cannot start");
  ZSTD_inBuffer in{packed.data(), packed.size(), 0};
  std::vector<std::byte> out;
  std::size_t used = 0;
  for (std::size_t left = 1; left != 0;) {
    if (used == out.size() && !grow(out))
      return damaged();
    ZSTD_outBuffer room{out.data(), out.size(), used};
    const std::size_t before = in.pos;
    left = ZSTD_decompressStream(stream.get(), &room, &in);
    if (ZSTD_isError(left) || (left != 0 && in.pos == before && room.pos == used && room.pos < room.size))
      return damaged(); // it ends in the middle
    used = room.pos;
  }
  out.resize(used);
  return out;
}

// The old format (lz4 -l), which is all that the kernel's build uses: blocks, each after its packed length, each of at
// most 8 MiB unpacked.
Result<std::vector<std::byte>> unpack_lz4(Bytes packed) {
  constexpr std::size_t block = 8U << 20, magic = 4, length_bytes = 4;
  std::vector<std::byte> out;
  std::size_t at = magic;
  while (const auto length = load<std::uint32_t>(packed, at)) {
    at += length_bytes;
    if (*length == 0 || *length > packed.size() - at)
      break; // the unpacked size, behind the last block
    if (out.size() + block > largest_kernel)
      return damaged();
    const std::size_t used = out.size();
    out.resize(used + block);
    const int got = LZ4_decompress_safe(reinterpret_cast<const char *>(packed.data() + at),
                                        reinterpret_cast<char *>(out.data() + used), static_cast<int>(*length),
                                        static_cast<int>(block));
    if (got < 0)
      return damaged();
    out.resize(used + static_cast<std::size_t>(got));
    at += *length;
  }
  return out;
}

} // namespace

Result<std::vector<std::byte>> unpack(Bytes packed) {
  using namespace std::string_view_literals;
  if (begins_with(packed, "\x1f\x8b"sv))
    return unpack_gzip(packed);
  if (begins_with(packed, "\xfd"
                          "7zXZ\0"sv))
    return unpack_xz(packed);
  if (begins_with(packed, "\x28\xb5\x2f\xfd"sv))
    return unpack_zstd(packed);
  if (begins_with(packed, "\x02\x21\x4c\x18"sv))
    return unpack_lz4(packed);
  return fail(ErrorCode::unsupported, "the file is packed in a way that is not known here (known: gzip, xz, zstd, "
                                      "lz4); unpack it first: a vmlinuz with "
                                      "extract-vmlinux from the kernel's sources");
}

} // namespace lararium::kernel_file
