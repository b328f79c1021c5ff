// What the writers of cores share.
#pragma once

#include "output.h"

#include "lararium/driver/dump.h"

#include <elf.h>
#include <vector>

namespace lararium::dump {

// The headers of a core of these segments, which lie at `offset` of the file. More segments than 16 bits count go into
// a section header behind them, as ELF's PN_XNUM wants it.
struct CoreHeaders {
  Elf64_Ehdr file{};
  std::vector<std::byte> segments; // program headers, and the section header
};
[[nodiscard]] CoreHeaders make_core_headers(const std::vector<Elf64_Phdr> &segments, std::uint64_t offset);
[[nodiscard]] std::uint64_t core_headers_size(std::size_t segments);

// Copies memory into an output, with zeros as holes, and tells how far it is.
class Copier {
public:
  Copier(Output &output, const WriteOptions &options, std::uint64_t total) : output_(output), options_(options) {
    progress_.total = total;
  }
  // Writes the bytes, leaving out pages of zeros; pages are counted from the first byte.
  [[nodiscard]] Result<void> copy(Bytes bytes);
  // Leaves a hole.
  [[nodiscard]] Result<void> skip(std::uint64_t size);
  // Counts bytes of the source that have no place in the output.
  [[nodiscard]] Result<void> pass(std::uint64_t size) { return advance(size); }
  [[nodiscard]] Result<void> finish();
  [[nodiscard]] std::uint64_t stored() const { return stored_; }

private:
  [[nodiscard]] Result<void> advance(std::uint64_t size);
  [[nodiscard]] Result<void> report();

  Output &output_;
  const WriteOptions &options_;
  WriteProgress progress_;
  std::uint64_t reported_ = 0, stored_ = 0;
};

} // namespace lararium::dump
