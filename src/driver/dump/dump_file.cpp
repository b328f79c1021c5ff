#include "dump_file.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

namespace lararium::dump {
namespace {

// struct makedumpfile_header and makedumpfile_data_header: big-endian, the first padded to 4096 bytes.
constexpr std::string_view flat_signature{"makedumpfile\0\0\0\0", 16};
constexpr std::uint64_t flat_header_size = 4096;
constexpr std::uint64_t flat_type = 1, flat_version = 1;
constexpr std::uint64_t flat_end = UINT64_MAX;              // the offset in the record that ends the file
constexpr std::size_t record_limit = std::size_t{16} << 20; // 384 MiB of index, 256 GiB of QEMU's records
constexpr std::uint64_t offset_limit = std::uint64_t{1} << 62;

std::optional<std::uint64_t> load_big_endian(Bytes bytes, std::uint64_t offset) {
  const auto value = load<std::uint64_t>(bytes, offset);
  return value ? std::optional(std::byteswap(*value)) : std::nullopt;
}

bool starts_with(Bytes bytes, std::string_view prefix) {
  return bytes.size() >= prefix.size() && std::ranges::equal(bytes.first(prefix.size()), bytes_of(prefix));
}

} // namespace

Result<std::shared_ptr<DumpFile>> DumpFile::open(const std::string &path) {
  auto file = std::make_shared<DumpFile>();
  file->descriptor_ = UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file->descriptor_)
    return fail_errno(fmt::format("cannot open {}", path), errno);
  struct stat status{};
  if (::fstat(file->descriptor_.get(), &status) != 0)
    return fail_errno(fmt::format("cannot examine {}", path), errno);
  if (!S_ISREG(status.st_mode))
    return fail(ErrorCode::usage, fmt::format("{} is not a regular file", path));
  auto mapping = Mapping::map_file(file->descriptor_.get(), 0, static_cast<std::size_t>(status.st_size));
  if (!mapping)
    return wrap(std::move(mapping).error(), path);
  file->mapping_ = *std::move(mapping);
  file->image_ = file->mapping_.bytes();
  if (auto indexed = file->index(); !indexed)
    return wrap(std::move(indexed).error(), path);
  return file;
}

Result<std::shared_ptr<DumpFile>> DumpFile::from_image(Bytes image) {
  auto file = std::make_shared<DumpFile>();
  file->image_ = image;
  TRY(file->index());
  return file;
}

Result<void> DumpFile::index() {
  if (!starts_with(image_, flat_signature)) {
    size_ = image_.size();
    records_ = ExtentMap({{0, size_, 0}});
    return {};
  }
  flattened_ = true;
  if (load_big_endian(image_, 16) != flat_type || load_big_endian(image_, 24) != flat_version)
    return fail(ErrorCode::unsupported, "a flattened dump of an unknown version");
  complete_ = false;
  std::vector<Extent> records;
  std::uint64_t position = flat_header_size;
  while (true) {
    const auto offset = load_big_endian(image_, position);
    const auto size = load_big_endian(image_, position + 8);
    if (!offset || !size)
      break; // truncated
    if (*offset == flat_end) {
      complete_ = true;
      break;
    }
    position += 16;
    if (*offset > offset_limit || *size > offset_limit || *size == 0)
      return fail(ErrorCode::corrupt, fmt::format("flattened record at {:#x} is impossible", position - 16));
    if (records.size() == record_limit)
      return fail(ErrorCode::unsupported, fmt::format("more than {} flattened records", record_limit));
    const std::uint64_t present = std::min<std::uint64_t>(*size, image_.size() - position);
    if (present != 0)
      records.push_back({*offset, present, position});
    if (present < *size)
      break; // truncated
    position += *size;
  }
  records_ = ExtentMap(std::move(records));
  if (!records_.all().empty())
    size_ = records_.all().back().end();
  return {};
}

Bytes DumpFile::view(std::uint64_t offset, std::uint64_t limit) const {
  const Extent *record = records_.at(offset);
  if (record == nullptr)
    return {};
  const std::uint64_t skip = offset - record->start;
  return image_.subspan(record->source + skip, std::min(limit, record->size - skip));
}

bool DumpFile::read(std::uint64_t offset, std::span<std::byte> out) const {
  if (offset > size_ || size_ - offset < out.size())
    return false;
  while (!out.empty()) {
    const Extent *record = records_.at_or_after(offset); // not null: offset < size_
    std::size_t length = 0;
    if (record->start > offset) {
      if (!complete_)
        return false;
      length = std::min<std::uint64_t>(out.size(), record->start - offset);
      std::ranges::fill(out.first(length), std::byte{0});
    } else {
      const Bytes bytes = view(offset, out.size());
      length = bytes.size();
      std::memcpy(out.data(), bytes.data(), length);
    }
    out = out.subspan(length);
    offset += length;
  }
  return true;
}

std::uint64_t DumpFile::locate(std::uint64_t offset, std::uint64_t size, std::uint64_t start,
                               std::vector<Extent> &out) const {
  std::uint64_t found = 0;
  const std::uint64_t end = offset + std::min(size, UINT64_MAX - offset);
  for (const Extent *record = records_.at_or_after(offset); record != nullptr && record->start < end;
       record = records_.at_or_after(record->end())) {
    const std::uint64_t begin = std::max(record->start, offset);
    const std::uint64_t length = std::min(record->end(), end) - begin;
    out.push_back({start + (begin - offset), length, record->source + (begin - record->start)});
    found += length;
  }
  return found;
}

std::vector<Extent> DumpFile::data_parts(std::uint64_t begin, std::uint64_t end) const {
  if (!descriptor_)
    return {{begin, end - begin, begin}};
  std::vector<Extent> parts;
  while (begin < end) {
    const off_t data = ::lseek(descriptor_.get(), static_cast<off_t>(begin), SEEK_DATA);
    if (data < 0 && errno == ENXIO)
      break; // a hole up to the end of the file
    const off_t hole = data < 0 ? -1 : ::lseek(descriptor_.get(), data, SEEK_HOLE);
    if (data < 0 || hole <= data) { // a file system that does not tell
      parts.push_back({begin, end - begin, begin});
      break;
    }
    const std::uint64_t from = std::max(begin, static_cast<std::uint64_t>(data));
    const std::uint64_t to = std::min(end, static_cast<std::uint64_t>(hole));
    if (from < to)
      parts.push_back({from, to - from, from});
    begin = static_cast<std::uint64_t>(hole);
  }
  return parts;
}

} // namespace lararium::dump
