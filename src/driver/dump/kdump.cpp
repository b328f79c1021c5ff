// kdump-compressed dumps, as makedumpfile and QEMU's dump-guest-memory write them. Layout: makedumpfile's
// IMPLEMENTATION and diskdump_mod.h; the structures are those of a 64-bit machine, as QEMU always has them for x86-64.
#include "blocks.h"
#include "formats.h"
#include "memory.h"
#include "notes.h"

#include <algorithm>
#include <bit>
#include <fmt/format.h>

namespace lararium::dump {
namespace {

constexpr std::string_view signature = "KDUMP   ";
constexpr std::uint64_t bitmap_limit = std::uint64_t{128} << 20; // bytes: 4 TiB of physical addresses

struct MainHeader {
  char magic[8];
  std::int32_t version;
  char system[65], node[65], release[65], kernel_version[65], machine[65], domain[65];
  char padding1[6];
  std::int64_t time[2];
  std::uint32_t status;
  std::int32_t block_size;
  std::int32_t sub_header_blocks;
  std::uint32_t bitmap_blocks;
  std::uint32_t max_mapnr; // cut to 32 bits; the sub header has it whole from version 6 on
  std::uint32_t total_ram_blocks, device_blocks, written_blocks, current_cpu;
  std::int32_t cpus;
};
static_assert(offsetof(MainHeader, status) == 424 && sizeof(MainHeader) == 464);

struct SubHeader {
  std::uint64_t phys_base;
  std::int32_t dump_level; // version 1 and later
  std::int32_t split;      // 2
  std::uint64_t start_pfn, end_pfn;
  std::uint64_t vmcoreinfo_offset, vmcoreinfo_size;     // 3
  std::uint64_t note_offset, note_size;                 // 4
  std::uint64_t erase_offset, erase_size;               // 5
  std::uint64_t start_pfn_64, end_pfn_64, max_mapnr_64; // 6
};
static_assert(sizeof(SubHeader) == 104);

struct PageDescriptor {
  std::uint64_t offset;
  std::uint32_t size;
  std::uint32_t flags;
  std::uint64_t page_flags;
};
static_assert(sizeof(PageDescriptor) == 24);

constexpr std::uint32_t status_incomplete = 0x8;
constexpr std::int32_t level_without_zeros = 1;

Compression compression_of(std::uint32_t flags) {
  switch (flags & 0x27) {
  case 0: return Compression::none;
  case 0x1: return Compression::zlib;
  case 0x2: return Compression::lzo;
  case 0x4: return Compression::snappy;
  case 0x20: return Compression::zstd;
  default: return Compression::unknown;
  }
}

// One bit per page frame, with the number of bits set before each position.
class PageBitmap {
public:
  explicit PageBitmap(std::vector<std::uint64_t> words) : words_(std::move(words)) {
    before_.reserve(words_.size() / words_per_count + 1);
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < words_.size(); ++i) {
      if (i % words_per_count == 0)
        before_.push_back(sum);
      sum += std::popcount(words_[i]);
    }
    total_ = sum;
  }
  [[nodiscard]] std::uint64_t bits() const { return words_.size() * 64; }
  [[nodiscard]] std::uint64_t total() const { return total_; }
  [[nodiscard]] bool test(std::uint64_t bit) const { return bit < bits() && (words_[bit / 64] >> bit % 64 & 1) != 0; }
  // How many bits before `bit` are set.
  [[nodiscard]] std::uint64_t rank(std::uint64_t bit) const {
    if (bit >= bits())
      return total_;
    const std::size_t word = bit / 64;
    std::uint64_t count = before_[word / words_per_count];
    for (std::size_t i = word / words_per_count * words_per_count; i < word; ++i)
      count += std::popcount(words_[i]);
    return count + std::popcount(words_[word] & ((std::uint64_t{1} << bit % 64) - 1));
  }
  // The first bit at or after `bit` that has this value; bits() if there is none.
  [[nodiscard]] std::uint64_t find(std::uint64_t bit, bool value) const {
    while (bit < bits()) {
      const std::uint64_t word = (value ? words_[bit / 64] : ~words_[bit / 64]) >> bit % 64;
      if (word != 0)
        return bit + std::countr_zero(word);
      bit = (bit / 64 + 1) * 64;
    }
    return bits();
  }

private:
  static constexpr std::size_t words_per_count = 8; // a cache line
  std::vector<std::uint64_t> words_, before_;
  std::uint64_t total_ = 0;
};

// The runs of set bits as ranges of memory. A hostile bitmap has a thousand million of them: beyond the limit, ever
// larger holes are taken for memory too (which then cannot be read).
std::vector<RamRange> ranges_of(const PageBitmap &bitmap, std::uint64_t block_size) {
  std::vector<RamRange> ranges;
  std::uint64_t closed_hole = 0;
  const auto append = [&](const RamRange &range) {
    if (!ranges.empty() && range.base - ranges.back().base - ranges.back().size <= closed_hole)
      ranges.back().size = range.base + range.size - ranges.back().base;
    else
      ranges.push_back(range);
  };
  for (std::uint64_t first = bitmap.find(0, true); first < bitmap.bits();) {
    const std::uint64_t last = bitmap.find(first, false);
    append({Gpa{first * block_size}, (last - first) * block_size, {}});
    while (ranges.size() > range_limit) {
      closed_hole = closed_hole == 0 ? block_size : closed_hole * 4;
      for (const RamRange &range : std::exchange(ranges, {}))
        append(range);
    }
    first = bitmap.find(last, true);
  }
  return ranges;
}

struct Layout {
  std::uint64_t block_size = 0;
  std::uint64_t descriptors = 0;                      // where they start in the file
  std::uint64_t first_pfn = 0, last_pfn = UINT64_MAX; // the part of a split dump that this file has
  bool excluded_are_zeros = false;
};

class KdumpMemory final : public PhysicalMemory {
public:
  KdumpMemory(std::shared_ptr<const DumpFile> file, Layout layout, PageBitmap present, PageBitmap stored,
              std::vector<RamRange> ranges)
      : file_(std::move(file)), layout_(layout), present_(std::move(present)), stored_(std::move(stored)),
        first_rank_(stored_.rank(layout.first_pfn)), cache_(layout.block_size) {
    set_ranges(std::move(ranges));
  }

  // Leaves out the pages that are not stored.
  [[nodiscard]] std::vector<RamRange> populated(Gpa base, std::uint64_t size) const override {
    std::vector<RamRange> result;
    const std::uint64_t block = layout_.block_size;
    const std::uint64_t end = base.value + std::min(size, UINT64_MAX - base.value);
    const std::uint64_t limit = std::min(layout_.last_pfn, stored_.bits());
    for (std::uint64_t first = stored_.find(std::max(base.value / block, layout_.first_pfn), true);
         first < limit && first * block < end;) {
      const std::uint64_t last = std::min(stored_.find(first, false), limit);
      const std::uint64_t from = std::max(base.value, first * block), to = std::min(end, last * block);
      if (from < to)
        result.push_back({Gpa{from}, to - from, {}});
      first = stored_.find(last, true);
    }
    return result;
  }

protected:
  [[nodiscard]] bool read_unmapped(Gpa address, std::span<std::byte> out) const override {
    while (!out.empty()) {
      const std::uint64_t pfn = address.value / layout_.block_size;
      const std::uint64_t offset = address.value % layout_.block_size;
      const std::size_t length = std::min<std::uint64_t>(out.size(), layout_.block_size - offset);
      if (!read_block(pfn, offset, out.first(length)))
        return false;
      out = out.subspan(length);
      address += length;
    }
    return true;
  }

private:
  bool read_block(std::uint64_t pfn, std::uint64_t offset, std::span<std::byte> out) const {
    if (pfn < layout_.first_pfn || pfn >= layout_.last_pfn)
      return false;
    if (!stored_.test(pfn)) {
      if (!layout_.excluded_are_zeros || !present_.test(pfn))
        return false;
      std::ranges::fill(out, std::byte{0});
      return true;
    }
    std::span<std::byte> block = cache_.find(pfn);
    if (block.empty()) {
      const std::uint64_t index = stored_.rank(pfn) - first_rank_;
      PageDescriptor descriptor{};
      // An incomplete dump has zeros in place of the descriptors that were not written.
      if (!file_->read_object(layout_.descriptors + index * sizeof(descriptor), descriptor) || descriptor.offset == 0)
        return false;
      const Compression compression = compression_of(descriptor.flags);
      // Most often zeros: QEMU points all such pages at one. Whole pages need no cache.
      if (compression == Compression::none && out.size() == layout_.block_size)
        return descriptor.size == layout_.block_size && file_->read(descriptor.offset, out);
      // A page that would grow is stored uncompressed, so this is generous.
      if (descriptor.size == 0 || descriptor.size > 2 * layout_.block_size)
        return false;
      Bytes input = file_->view(descriptor.offset, descriptor.size);
      if (input.size() < descriptor.size) { // across two records of a flattened file, or the end
        gathered_.resize(descriptor.size);
        if (!file_->read(descriptor.offset, gathered_))
          return false;
        input = gathered_;
      }
      block = cache_.place(pfn);
      if (!decompressor_.run(compression, input, block)) {
        cache_.forget(pfn);
        return false;
      }
    }
    std::memcpy(out.data(), block.data() + offset, out.size());
    return true;
  }

  std::shared_ptr<const DumpFile> file_;
  Layout layout_;
  PageBitmap present_, stored_;
  std::uint64_t first_rank_;
  mutable BlockCache cache_;
  mutable Decompressor decompressor_;
  mutable std::vector<std::byte> gathered_;
};

Result<PageBitmap> read_bitmap(const DumpFile &file, std::uint64_t offset, std::uint64_t size, std::uint64_t pages) {
  std::vector<std::uint64_t> words(size / sizeof(std::uint64_t));
  if (!file.read(offset, std::as_writable_bytes(std::span(words))))
    return fail(ErrorCode::corrupt, "a kdump file that ends inside its page bitmaps");
  // Bits past the last page would be found as RAM.
  if (pages < words.size() * 64) {
    words.resize((pages + 63) / 64);
    if (pages % 64 != 0)
      words.back() &= (std::uint64_t{1} << pages % 64) - 1;
  }
  return PageBitmap(std::move(words));
}

void read_notes(const DumpFile &file, const MainHeader &header, const SubHeader &sub, bool x86_64, Target &target) {
  Notes notes;
  if (header.version >= 4 && sub.note_size != 0) {
    std::vector<std::byte> bytes;
    if (sub.note_size <= notes_limit && sub.note_offset <= file.size()) {
      bytes.resize(sub.note_size);
      if (!file.read(sub.note_offset, bytes))
        bytes.clear();
    }
    if (bytes.empty())
      target.limitations.push_back("the notes of the dump are missing or too large");
    notes = parse_notes(bytes, x86_64);
  }
  if (notes.vmcoreinfo.empty() && header.version >= 3 && sub.vmcoreinfo_size != 0 &&
      sub.vmcoreinfo_size <= vmcoreinfo_limit && sub.vmcoreinfo_offset <= file.size()) {
    std::vector<std::byte> text(sub.vmcoreinfo_size);
    if (file.read(sub.vmcoreinfo_offset, text))
      notes.vmcoreinfo = c_string(text, 0);
  }
  target.hints.vmcoreinfo = std::move(notes.vmcoreinfo);
  set_vcpus(target, std::move(notes.vcpus));
}

std::string_view name_of(Compression compression) {
  switch (compression) {
  case Compression::none: return "not compressed";
  case Compression::zlib: return "zlib";
  case Compression::lzo: return "lzo";
  case Compression::snappy: return "snappy";
  case Compression::zstd: return "zstd";
  case Compression::unknown: return "unknown compression";
  }
  return {};
}

} // namespace

bool is_kdump(const DumpFile &file) {
  char magic[8];
  return file.read(0, std::as_writable_bytes(std::span(magic))) && std::string_view(magic, sizeof(magic)) == signature;
}

Result<Target> open_kdump(std::shared_ptr<const DumpFile> file) {
  MainHeader header{};
  if (!file->read_object(0, header))
    return fail(ErrorCode::corrupt, "a kdump file that ends inside its header");
  // 64 KiB is the largest page of any architecture. A 32-bit machine's header has the block size elsewhere.
  if (header.block_size < 4096 || header.block_size > 65536 || !std::has_single_bit(std::uint32_t(header.block_size)))
    return fail(ErrorCode::unsupported, "a kdump file of a 32-bit or big-endian machine, or with a broken header");
  if (header.version < 1 || header.version > 255 || header.sub_header_blocks <= 0)
    return fail(ErrorCode::corrupt, "a kdump file with a broken header");
  const std::uint64_t block = header.block_size;
  SubHeader sub{};
  if (!file->read_object(block, sub))
    return fail(ErrorCode::corrupt, "a kdump file that ends inside its header");

  const std::uint64_t bitmap_offset = block * (1 + std::uint64_t(header.sub_header_blocks));
  const std::uint64_t bitmaps_size = block * header.bitmap_blocks; // two, each of half the size
  const std::uint64_t pages = header.version >= 6 ? sub.max_mapnr_64 : header.max_mapnr;
  if (bitmaps_size / 2 > bitmap_limit)
    return fail(ErrorCode::unsupported, "a kdump file of more than 4 TiB of memory");
  if (pages == 0 || bitmaps_size == 0)
    return fail(ErrorCode::corrupt, "a kdump file without memory");
  TRY_ASSIGN(auto present, read_bitmap(*file, bitmap_offset, bitmaps_size / 2, pages));
  TRY_ASSIGN(auto stored, read_bitmap(*file, bitmap_offset + bitmaps_size / 2, bitmaps_size / 2, pages));

  Target target;
  auto &limits = target.limitations;
  target.identity.kind = TargetKind::dump;
  const std::string_view machine = c_string(std::as_bytes(std::span(header.machine)), 0);
  // QEMU since 8.0 says "Unknown": its dump.c is built once for all machines.
  const bool may_be_x86_64 = machine == "x86_64" || machine == "Unknown" || machine.empty();
  const Compression compression = compression_of(header.status);
  target.identity.memory_access =
      fmt::format("kdump ({}{})", name_of(compression), file->flattened() ? ", flattened" : "");
  if (!supported(compression))
    return fail(ErrorCode::unsupported,
                fmt::format("a kdump file with {}, which this build cannot decompress", name_of(compression)));
  read_notes(*file, header, sub, may_be_x86_64, target);
  if (machine == "aarch64")
    target.identity.architecture = Architecture::aarch64;
  else if (machine == "x86_64" || (may_be_x86_64 && target.vcpus != nullptr))
    target.identity.architecture = Architecture::x86_64;
  else
    target.identity.architecture = Architecture::other;

  Layout layout;
  layout.block_size = block;
  layout.descriptors = bitmap_offset + bitmaps_size;
  layout.excluded_are_zeros = (sub.dump_level & level_without_zeros) != 0;
  if (header.version >= 2 && sub.split != 0) {
    layout.first_pfn = header.version >= 6 ? sub.start_pfn_64 : sub.start_pfn;
    layout.last_pfn = header.version >= 6 ? sub.end_pfn_64 : sub.end_pfn;
    limits.push_back("this is one part of a split dump; memory in the other parts cannot be read");
  }
  const std::uint64_t excluded = present.total() - std::min(present.total(), stored.total());
  if (excluded != 0 && sub.dump_level > level_without_zeros)
    limits.push_back(fmt::format(
        "{} were left out when the dump was made (dump level {}){}", human_size(excluded * block), sub.dump_level,
        layout.excluded_are_zeros ? "; they read as zeros, which they may not have been" : ""));
  if ((header.status & status_incomplete) != 0 || !file->complete())
    limits.push_back("the dump is incomplete: pages that were not written cannot be read");
  else if (PageDescriptor last{}; layout.first_pfn == 0 && layout.last_pfn == UINT64_MAX && stored.total() != 0 &&
                                  (!file->read_object(layout.descriptors + (stored.total() - 1) * sizeof(last), last) ||
                                   last.offset > file->size() || file->size() - last.offset < last.size))
    limits.push_back("the dump was cut short: pages at its end cannot be read");

  auto ranges = ranges_of(present, block);
  if (ranges.empty())
    return fail(ErrorCode::corrupt, "a kdump file without memory");
  target.memory =
      std::make_unique<KdumpMemory>(std::move(file), layout, std::move(present), std::move(stored), std::move(ranges));
  return target;
}

} // namespace lararium::dump
