#include "blocks.h"

#include <algorithm>
#if LARARIUM_LZO
#include <lzo/lzo1x.h>
#endif
#include <snappy-c.h>
#include <zlib.h>
#include <zstd.h>

namespace lararium::dump {

bool supported(Compression compression) {
  switch (compression) {
  case Compression::none:
  case Compression::zlib:
  case Compression::snappy:
  case Compression::zstd: return true;
  case Compression::lzo: return LARARIUM_LZO != 0;
  case Compression::unknown: return false;
  }
  return false;
}

struct Decompressor::State {
  z_stream zlib{};
  bool zlib_ready = false;
  std::unique_ptr<ZSTD_DCtx, decltype(&ZSTD_freeDCtx)> zstd{nullptr, ZSTD_freeDCtx};
  ~State() {
    if (zlib_ready)
      ::inflateEnd(&zlib);
  }
};

Decompressor::Decompressor() : state_(std::make_unique<State>()) {}
Decompressor::~Decompressor() = default;

bool Decompressor::inflate(Bytes input, std::span<std::byte> out) {
  z_stream &stream = state_->zlib;
  if (!state_->zlib_ready)
    state_->zlib_ready = ::inflateInit(&stream) == Z_OK;
  else if (::inflateReset(&stream) != Z_OK)
    return false;
  if (!state_->zlib_ready)
    return false;
  stream.next_in = reinterpret_cast<Bytef *>(const_cast<std::byte *>(input.data())); // zlib only reads it
  stream.avail_in = static_cast<uInt>(input.size());
  stream.next_out = reinterpret_cast<Bytef *>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  return ::inflate(&stream, Z_FINISH) == Z_STREAM_END && stream.avail_out == 0;
}

bool Decompressor::run(Compression compression, Bytes input, std::span<std::byte> out) {
  switch (compression) {
  case Compression::none:
    if (input.size() != out.size())
      return false;
    std::memcpy(out.data(), input.data(), out.size());
    return true;
  case Compression::zlib: return inflate(input, out);
  case Compression::lzo: {
#if LARARIUM_LZO
    lzo_uint size = out.size();
    return ::lzo1x_decompress_safe(reinterpret_cast<const unsigned char *>(input.data()), input.size(),
                                   reinterpret_cast<unsigned char *>(out.data()), &size, nullptr) == LZO_E_OK &&
           size == out.size();
#else
    return false;
#endif
  }
  case Compression::snappy: {
    std::size_t size = out.size();
    return ::snappy_uncompress(reinterpret_cast<const char *>(input.data()), input.size(),
                               reinterpret_cast<char *>(out.data()), &size) == SNAPPY_OK &&
           size == out.size();
  }
  case Compression::zstd:
    if (state_->zstd == nullptr)
      state_->zstd.reset(::ZSTD_createDCtx());
    return state_->zstd != nullptr &&
           ::ZSTD_decompressDCtx(state_->zstd.get(), out.data(), out.size(), input.data(), input.size()) == out.size();
  case Compression::unknown: return false;
  }
  return false;
}

BlockCache::BlockCache(std::size_t block_size)
    : block_size_(block_size), sets_(std::max<std::size_t>(1, budget / block_size / ways)) {}

std::span<std::byte> BlockCache::find(std::uint64_t key) {
  if (ways_.empty())
    return {};
  for (Way &way : set_of(key))
    if (way.key == key) {
      way.last_use = ++clock_;
      return {way.bytes.get(), block_size_};
    }
  return {};
}

std::span<std::byte> BlockCache::place(std::uint64_t key) {
  if (ways_.empty())
    ways_.resize(sets_ * ways);
  Way &oldest = *std::ranges::min_element(set_of(key), {}, &Way::last_use);
  if (oldest.bytes == nullptr)
    oldest.bytes = std::make_unique_for_overwrite<std::byte[]>(block_size_);
  oldest.key = key;
  oldest.last_use = ++clock_;
  return {oldest.bytes.get(), block_size_};
}

void BlockCache::forget(std::uint64_t key) {
  if (ways_.empty())
    return;
  for (Way &way : set_of(key))
    if (way.key == key) {
      way.key = empty;
      way.last_use = 0;
    }
}

} // namespace lararium::dump
