#include "unpack.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <lzma.h>
#include <zlib.h>

namespace lararium::isf {
namespace {

constexpr std::uint64_t xz_memory_limit = 256U << 20; // xz -9 needs 65 MiB

std::unexpected<Error> damaged() { return fail(ErrorCode::corrupt, "the compressed ISF file is damaged"); }

// Doubles the room up to the limit; false when there is no more to be had.
bool grow(std::vector<std::byte> &storage, std::size_t limit) {
  if (storage.size() >= limit)
    return false;
  storage.resize(std::min(limit, std::max<std::size_t>(storage.size() * 2, 1U << 20)));
  return true;
}

Result<Bytes> too_large(std::size_t limit) {
  return fail(ErrorCode::corrupt, fmt::format("the ISF file unpacks to more than {} MiB", limit >> 20));
}

Result<Bytes> unpack_gzip(Bytes file, std::size_t limit, std::vector<std::byte> &storage) {
  z_stream stream{};
  if (inflateInit2(&stream, 15 + 16) != Z_OK) // 16: gzip only
    return fail(ErrorCode::io, "zlib cannot start");
  struct End {
    z_stream *stream;
    ~End() { inflateEnd(stream); }
  } const end{&stream};
  if (file.size() > limit) // which also keeps it within zlib's 32 bits
    return too_large(limit);
  stream.next_in = reinterpret_cast<Bytef *>(const_cast<std::byte *>(file.data()));
  stream.avail_in = static_cast<uInt>(file.size());
  std::size_t used = 0;
  while (true) {
    if (used == storage.size() && !grow(storage, limit))
      return too_large(limit);
    stream.next_out = reinterpret_cast<Bytef *>(storage.data() + used);
    stream.avail_out = static_cast<uInt>(storage.size() - used);
    const int state = inflate(&stream, Z_NO_FLUSH);
    used = storage.size() - stream.avail_out;
    if (state == Z_STREAM_END)
      break;
    if (state != Z_OK) // Z_BUF_ERROR: it ends in the middle
      return damaged();
  }
  storage.resize(used);
  return Bytes(storage);
}

Result<Bytes> unpack_xz(Bytes file, std::size_t limit, std::vector<std::byte> &storage) {
  lzma_stream stream = LZMA_STREAM_INIT;
  if (lzma_stream_decoder(&stream, xz_memory_limit, LZMA_CONCATENATED) != LZMA_OK)
    return fail(ErrorCode::io, "liblzma cannot start");
  struct End {
    lzma_stream *stream;
    ~End() { lzma_end(stream); }
  } const end{&stream};
  stream.next_in = reinterpret_cast<const std::uint8_t *>(file.data());
  stream.avail_in = file.size();
  std::size_t used = 0;
  while (true) {
    if (used == storage.size() && !grow(storage, limit))
      return too_large(limit);
    stream.next_out = reinterpret_cast<std::uint8_t *>(storage.data() + used);
    stream.avail_out = storage.size() - used;
    const lzma_ret state = lzma_code(&stream, LZMA_FINISH);
    used = storage.size() - stream.avail_out;
    if (state == LZMA_STREAM_END)
      break;
    if (state != LZMA_OK)
      return damaged();
  }
  storage.resize(used);
  return Bytes(storage);
}

} // namespace

Result<Bytes> unpack(Bytes file, std::size_t limit, std::vector<std::byte> &storage) {
  using Magic = std::array<std::uint8_t, 6>;
  const auto start = load<Magic>(file, 0).value_or(Magic{});
  if (start[0] == 0x1f && start[1] == 0x8b)
    return unpack_gzip(file, limit, storage);
  if (start == Magic{0xfd, '7', 'z', 'X', 'Z', 0})
    return unpack_xz(file, limit, storage);
  if (file.size() > limit)
    return too_large(limit);
  return file;
}

} // namespace lararium::isf
