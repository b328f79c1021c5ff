// Compressed blocks of memory, and a bounded cache of what was decompressed.
#pragma once

#include "lararium/base/bytes.h"

#include <cstdint>
#include <memory>
#include <vector>

namespace lararium::dump {

enum class Compression : std::uint8_t { none, zlib, lzo, snappy, zstd, unknown };

// Whether this build can decompress it (lzo is optional).
[[nodiscard]] bool supported(Compression compression);

// Keeps the state that the libraries would otherwise take and clear for every block: a zstd context costs ten times as
// much as a page's decompression.
class Decompressor {
public:
  Decompressor();
  Decompressor(const Decompressor &) = delete;
  Decompressor &operator=(const Decompressor &) = delete;
  ~Decompressor();
  // Fills the whole of `out`, or fails; input of any content is safe.
  [[nodiscard]] bool run(Compression compression, Bytes input, std::span<std::byte> out);

private:
  [[nodiscard]] bool inflate(Bytes input, std::span<std::byte> out);
  struct State;
  std::unique_ptr<State> state_;
};

// A set-associative cache with four ways: a page table walk does not throw out what a search streams through, and the
// other way about. Memory is taken block by block, as the cache fills.
class BlockCache {
public:
  static constexpr std::size_t budget = std::size_t{16} << 20;

  explicit BlockCache(std::size_t block_size);

  // The block's bytes where it is cached, else empty.
  [[nodiscard]] std::span<std::byte> find(std::uint64_t key);
  // A place for the block, whose old content is gone. If filling it fails, call forget().
  [[nodiscard]] std::span<std::byte> place(std::uint64_t key);
  void forget(std::uint64_t key);

private:
  static constexpr std::size_t ways = 4;
  static constexpr std::uint64_t empty = UINT64_MAX; // no key
  struct Way {
    std::uint64_t key = empty;
    std::uint64_t last_use = 0;
    std::unique_ptr<std::byte[]> bytes;
  };
  [[nodiscard]] std::span<Way> set_of(std::uint64_t key) { return std::span(ways_).subspan(key % sets_ * ways, ways); }

  std::size_t block_size_, sets_;
  std::uint64_t clock_ = 0;
  std::vector<Way> ways_;
};

} // namespace lararium::dump
