// LiME and AVML images: headers, each followed by one range of memory. LiME's doc/README ("lime" format, version 1;
// its "padded" and "raw" formats are flat images); AVML's src/image.rs: version 1 is LiME's, version 2 compresses each
// range as a snappy stream (framing_format.txt of snappy) and adds 8 bytes with the stream's length.
#include "blocks.h"
#include "formats.h"
#include "memory.h"

#include <algorithm>
#include <fmt/format.h>

namespace lararium::dump {
namespace {

struct RangeHeader {
  std::uint32_t magic, version;
  std::uint64_t first, last; // inclusive
  std::uint64_t reserved;
};
static_assert(sizeof(RangeHeader) == 32);
constexpr std::uint32_t lime_magic = 0x4c694d45, avml_magic = 0x4c4d5641;
constexpr std::uint32_t lime_version = 1, avml_version = 2;

bool sane(const RangeHeader &header) { return header.first <= header.last && header.last < physical_limit; }

bool starts_with(const DumpFile &file, std::uint32_t magic, std::uint32_t version) {
  std::uint32_t words[2];
  return file.read(0, std::as_writable_bytes(std::span(words))) && words[0] == magic && words[1] == version;
}

Target make_target(std::string access) {
  Target target;
  target.identity.kind = TargetKind::dump;
  target.identity.architecture = Architecture::x86_64; // neither format tells
  target.identity.memory_access = std::move(access);
  set_vcpus(target, {});
  return target;
}

void add_truncation(Target &target, std::uint64_t missing, bool strange) {
  if (missing != 0)
    target.limitations.push_back(
        fmt::format("the dump was cut short: {} of its last range are missing", human_size(missing)));
  if (strange)
    target.limitations.push_back("the dump has something other than a range in its middle; what follows is not read");
}

// ---- AVML: blocks of at most 64 KiB, each compressed by itself

constexpr std::uint64_t snappy_block = 65536;

struct SnappyBlock {
  std::uint64_t start;  // guest-physical
  std::uint64_t source; // of the compressed bytes
  std::uint32_t stored; // their number
  std::uint32_t size;   // when decompressed
  Compression compression;
};

class AvmlMemory final : public PhysicalMemory {
public:
  AvmlMemory(std::shared_ptr<const DumpFile> file, std::vector<SnappyBlock> blocks, std::vector<RamRange> ranges)
      : file_(std::move(file)), blocks_(std::move(blocks)), cache_(snappy_block) {
    std::ranges::sort(blocks_, {}, &SnappyBlock::start);
    set_ranges(std::move(ranges));
  }

protected:
  [[nodiscard]] bool read_unmapped(Gpa address, std::span<std::byte> out) const override {
    while (!out.empty()) {
      // The last block that starts at or before the address. Blocks that overlap are not repaired, only safe.
      auto next = std::ranges::upper_bound(blocks_, address.value, {}, &SnappyBlock::start);
      if (next == blocks_.begin())
        return false;
      const SnappyBlock &block = *--next;
      const std::uint64_t offset = address.value - block.start;
      if (offset >= block.size)
        return false;
      const std::span<std::byte> bytes = load_block(block, std::uint64_t(next - blocks_.begin()));
      if (bytes.empty())
        return false;
      const std::size_t length = std::min<std::uint64_t>(out.size(), block.size - offset);
      std::memcpy(out.data(), bytes.data() + offset, length);
      out = out.subspan(length);
      address += length;
    }
    return true;
  }

private:
  std::span<std::byte> load_block(const SnappyBlock &block, std::uint64_t key) const {
    std::span<std::byte> bytes = cache_.find(key);
    if (!bytes.empty())
      return bytes;
    bytes = cache_.place(key);
    if (!decompressor_.run(block.compression, file_->view(block.source, block.stored), bytes.first(block.size))) {
      cache_.forget(key);
      return {};
    }
    return bytes;
  }

  std::shared_ptr<const DumpFile> file_;
  std::vector<SnappyBlock> blocks_;
  mutable BlockCache cache_;
  mutable Decompressor decompressor_;
};

// The number of bytes that a snappy block decompresses to: a little-endian base-128 number before it.
std::uint64_t snappy_size(Bytes block) {
  std::uint64_t size = 0;
  for (unsigned i = 0; i < 5 && i < block.size(); ++i) {
    const auto byte = std::to_integer<std::uint64_t>(block[i]);
    size |= (byte & 0x7f) << (7 * i);
    if ((byte & 0x80) == 0)
      return size;
  }
  return 0;
}

enum class StreamEnd { complete, truncated, corrupt };

// Walks the chunks of one snappy stream until `size` bytes are described.
StreamEnd index_stream(const DumpFile &file, std::uint64_t &position, std::uint64_t start, std::uint64_t size,
                       std::vector<SnappyBlock> &blocks) {
  constexpr std::uint32_t compressed = 0, uncompressed = 1, checksum_size = 4;
  for (const std::uint64_t end = start + size; start < end;) {
    std::uint32_t header = 0;
    if (!file.read_object(position, header))
      return StreamEnd::truncated;
    const std::uint32_t type = header & 0xff, length = header >> 8;
    position += sizeof(header);
    if (type == compressed || type == uncompressed) {
      const Bytes chunk = file.view(position, length);
      if (chunk.size() < length)
        return StreamEnd::truncated;
      if (length < checksum_size)
        return StreamEnd::corrupt;
      const Bytes data = chunk.subspan(checksum_size);
      const std::uint64_t plain = type == compressed ? snappy_size(data) : data.size();
      if (plain == 0 || plain > snappy_block || plain > end - start)
        return StreamEnd::corrupt;
      blocks.push_back({start, position + checksum_size, static_cast<std::uint32_t>(data.size()),
                        static_cast<std::uint32_t>(plain),
                        type == compressed ? Compression::snappy : Compression::none});
      start += plain;
    } else if (type < 0x80) {
      return StreamEnd::corrupt; // 0x80 to 0xff may be skipped, as may the stream's identifier, 0xff
    }
    position += length;
  }
  return StreamEnd::complete;
}

} // namespace

bool is_lime(const DumpFile &file) { return starts_with(file, lime_magic, lime_version); }
bool is_avml(const DumpFile &file) { return starts_with(file, avml_magic, avml_version); }

Result<Target> open_lime(std::shared_ptr<const DumpFile> file) {
  std::vector<Extent> extents;
  std::vector<RamRange> ranges;
  std::uint64_t position = 0, missing = 0;
  bool strange = false;
  RangeHeader header{};
  while (file->read_object(position, header)) {
    strange = header.magic != lime_magic || header.version != lime_version || !sane(header);
    if (strange)
      break;
    if (ranges.size() == range_limit)
      return fail(ErrorCode::unsupported, fmt::format("a LiME image of more than {} ranges", range_limit));
    const std::uint64_t size = header.last - header.first + 1;
    position += sizeof(header);
    missing = size - file->locate(position, size, header.first, extents);
    ranges.push_back({Gpa{header.first}, size, {}});
    position += size;
  }
  if (ranges.empty())
    return fail(ErrorCode::corrupt, "a LiME image with a broken header");
  Target target = make_target("LiME image");
  add_truncation(target, missing, strange);
  target.memory =
      std::make_unique<ExtentMemory>(std::move(file), ExtentMap(std::move(extents)), unite(std::move(ranges)));
  return target;
}

Result<Target> open_avml(std::shared_ptr<const DumpFile> file) {
  constexpr std::uint64_t trailer_size = 8;
  std::vector<SnappyBlock> blocks;
  std::vector<RamRange> ranges;
  std::uint64_t position = 0, missing = 0;
  bool strange = false;
  RangeHeader header{};
  while (missing == 0 && !strange && file->read_object(position, header)) {
    strange = header.magic != avml_magic || header.version != avml_version || !sane(header);
    if (strange)
      break;
    if (ranges.size() == range_limit)
      return fail(ErrorCode::unsupported, fmt::format("an AVML image of more than {} ranges", range_limit));
    const std::uint64_t size = header.last - header.first + 1;
    position += sizeof(header);
    ranges.push_back({Gpa{header.first}, size, {}});
    const std::size_t before = blocks.size();
    const StreamEnd end = index_stream(*file, position, header.first, size, blocks);
    strange = end == StreamEnd::corrupt;
    if (end == StreamEnd::truncated) {
      missing = size;
      for (std::size_t i = before; i < blocks.size(); ++i)
        missing -= blocks[i].size;
    }
    position += trailer_size;
  }
  if (blocks.empty())
    return fail(ErrorCode::corrupt, "an AVML image with a broken header or without memory");
  Target target = make_target("AVML image (snappy)");
  add_truncation(target, missing, strange);
  target.memory = std::make_unique<AvmlMemory>(std::move(file), std::move(blocks), unite(std::move(ranges)));
  return target;
}

} // namespace lararium::dump
