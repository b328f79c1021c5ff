// What tests that make ELF files, and pack them, have in common.
#pragma once

#include "lararium/base/bytes.h"

#include <cstddef>
#include <cstring>
#include <elf.h>
#include <gtest/gtest.h>
#include <vector>
#include <zlib.h>

namespace lararium {

// Of a file of x86-64; where its sections are is left to the caller.
inline Elf64_Ehdr elf_header() {
  Elf64_Ehdr header{};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_machine = EM_X86_64;
  header.e_shentsize = sizeof(Elf64_Shdr);
  return header;
}

inline std::vector<std::byte> gzip(Bytes plain) {
  std::vector<std::byte> out(plain.size() + 256);
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 9, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  stream.next_in = reinterpret_cast<Bytef *>(const_cast<std::byte *>(plain.data()));
  stream.avail_in = static_cast<uInt>(plain.size());
  stream.next_out = reinterpret_cast<Bytef *>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

} // namespace lararium
