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
  const std::size_t first = first_way(key);
  for (std::size_t way = first; way < first + ways; ++way)
    if (ways_[way].key == key) {
      ways_[way].last_use = ++clock_;
      return bytes(way);
    }
  return {};
}

std::span<std::byte> BlockCache::place(std::uint64_t key) {
  if (ways_.empty()) {
    ways_.resize(sets_ * ways);
    data_.resize(sets_ * ways * block_size_);
  }
  const std::size_t first = first_way(key);
  std::size_t oldest = first;
  for (std::size_t way = first + 1; way < first + ways; ++way)
    if (ways_[way].last_use < ways_[oldest].last_use)
      oldest = way;
  ways_[oldest] = {key, ++clock_};
  return bytes(oldest);
}

void BlockCache::forget(std::uint64_t key) {
  if (ways_.empty())
    return;
  const std::size_t first = first_way(key);
  for (std::size_t way = first; way < first + ways; ++way)
    if (ways_[way].key == key)
      ways_[way] = {};
}

} // namespace lararium::dump
