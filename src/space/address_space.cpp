#include "lararium/space/address_space.h"

#include <algorithm>

namespace lararium {

std::optional<std::uint64_t> AddressSpace::read_entry(Gpa address) const {
  std::uint64_t value = 0;
  if (!memory_->read(address, writable_bytes_of(value)))
    return std::nullopt;
  return value;
}

std::optional<x86_64::Translation> AddressSpace::translate(Gva address) const {
  return x86_64::translate(root_, address, [this](Gpa entry) { return read_entry(entry); });
}

AddressSpace::CacheLine *AddressSpace::look_up(Gva address) const {
  CacheLine &line = cache_[slot_of(address)];
  if (line.tag == tag_of(address))
    return &line;
  const auto physical = page_of(address.page());
  if (!physical)
    return nullptr;
  line = {tag_of(address), *physical, nullptr, no_host};
  return &line;
}

void AddressSpace::find_host(CacheLine &line) const {
  const Bytes bytes = memory_->view(line.physical);
  line.host = bytes.size() >= page_size ? bytes.data() : memory_->copy_of_page(line.physical);
  line.host_age = line.host != nullptr ? memory_->copies_age() : no_host;
}

std::optional<Gpa> AddressSpace::page_of(Gva page) const {
  constexpr std::uint64_t unit_bytes = std::uint64_t{1} << large_page_shift;
  const std::uint64_t unit = page.value >> large_page_shift, within = page.value & (unit_bytes - 1);
  LargePage &large = large_pages_[unit % large_page_lines];
  if (large.tag == unit + 1)
    return large.physical + within;
  const auto translation = translate(page);
  if (!translation)
    return std::nullopt;
  if (translation->page_bytes >= unit_bytes)
    large = {unit + 1, Gpa{translation->address.value - within}};
  return translation->address;
}

void AddressSpace::expect(std::span<const Gva> addresses) const {
  expected_.clear();
  for (const Gva address : addresses)
    if (const CacheLine *line = look_up(address))
      expected_.push_back(line->physical + address.page_offset());
  memory_->expect(expected_);
}

bool AddressSpace::read_slowly(Gva address, std::span<std::byte> out) const {
  while (!out.empty()) {
    CacheLine *const line = look_up(address);
    if (line == nullptr)
      return false;
    if (line->host_age != memory_->copies_age())
      find_host(*line);
    const std::uint64_t offset = address.page_offset();
    const auto part = out.first(std::min<std::size_t>(out.size(), page_size - offset));
    if (line->host != nullptr)
      std::memcpy(part.data(), line->host + offset, part.size());
    else if (!memory_->read(line->physical + offset, part))
      return false;
    out = out.subspan(part.size());
    address += part.size();
  }
  return true;
}

std::size_t AddressSpace::read_prefix(Gva address, std::span<std::byte> out) const {
  std::size_t done = 0;
  while (done < out.size()) {
    const std::size_t part = std::min<std::size_t>(out.size() - done, page_size - (address + done).page_offset());
    if (!read(address + done, out.subspan(done, part)))
      break;
    done += part;
  }
  return done;
}

std::optional<std::string> AddressSpace::read_c_string(Gva address, std::size_t limit) const {
  std::string text;
  std::array<std::byte, 256> buffer{};
  while (text.size() < limit) {
    const std::size_t part =
        std::min({buffer.size(), limit - text.size(), static_cast<std::size_t>(page_size - address.page_offset())});
    if (!read(address, std::span(buffer).first(part))) {
      if (text.empty())
        return std::nullopt;
      break;
    }
    const std::string_view piece = c_string(std::span(buffer).first(part), 0);
    text += piece;
    if (piece.size() < part)
      break;
    address += part;
  }
  return text;
}

namespace {

struct ExtentSearch {
  Gva begin, last; // inclusive
  int levels;
  std::size_t limit;
  std::vector<MappedExtent> found;

  void add(const MappedExtent &piece) {
    if (!found.empty()) {
      MappedExtent &previous = found.back();
      if (previous.base + previous.size == piece.base && previous.physical + previous.size == piece.physical &&
          previous.writable == piece.writable && previous.user == piece.user &&
          previous.executable == piece.executable) {
        previous.size += piece.size;
        return;
      }
    }
    found.push_back(piece);
  }
};

struct Rights {
  bool writable = true, user = true, executable = true;
};

} // namespace

std::vector<MappedExtent> AddressSpace::extents(Gva begin, Gva end, std::size_t limit) const {
  ExtentSearch search{begin.page(), end - 1, root_.levels, limit, {}};
  if (begin >= end)
    return {};
  // Depth is at most `levels`; a table that points to itself is read again for each of its entries, so the work is
  // bounded by the entries that cover [begin, end), which is what the caller asked for, and by `limit`.
  const auto visit = [&](auto &self, Gpa table, int level, std::uint64_t table_base, Rights rights) -> void {
    const int shift = 12 + 9 * (level - 1);
    std::array<std::uint64_t, 512> entries; // one read per table
    if (!memory_->read(table, std::as_writable_bytes(std::span(entries))))
      return;
    const std::uint64_t entry_bytes = std::uint64_t{1} << shift;
    for (std::uint64_t index = 0; index < 512 && search.found.size() < search.limit; ++index) {
      const Gva base = x86_64::sign_extend(table_base + (index << shift), search.levels);
      const Gva last = base + (entry_bytes - 1);
      if (last < search.begin || base > search.last)
        continue;
      const std::uint64_t value = entries[index];
      if ((value & x86_64::entry::present) == 0)
        continue;
      const Rights below{rights.writable && (value & x86_64::entry::writable) != 0,
                         rights.user && (value & x86_64::entry::user) != 0,
                         rights.executable && (value & x86_64::entry::no_execute) == 0};
      const bool leaf = level == 1 || (value & x86_64::entry::large) != 0;
      if (leaf && level > 3)
        continue;
      if (!leaf) {
        self(self, Gpa{value & x86_64::entry::address_mask}, level - 1, table_base + (index << shift), below);
        continue;
      }
      const Gva from = std::max(base, search.begin);
      const Gva to = std::min(last, search.last);
      const Gpa physical{(value & x86_64::entry::address_mask & ~(entry_bytes - 1)) + (from - base)};
      search.add({from, physical, to - from + 1, below.writable, below.user, below.executable});
    }
  };
  visit(visit, root_.table, root_.levels, 0, {});
  return std::move(search.found);
}

std::size_t read_uncached(const PhysicalMemory &memory, x86_64::PageTableRoot root, Gva address,
                          std::span<std::byte> out) {
  std::size_t done = 0;
  while (done < out.size()) {
    const auto translation = x86_64::translate(root, address + done, [&](Gpa entry) -> std::optional<std::uint64_t> {
      std::uint64_t value = 0;
      if (!memory.read(entry, writable_bytes_of(value)))
        return std::nullopt;
      return value;
    });
    if (!translation)
      break;
    const std::uint64_t rest_of_page =
        translation->page_bytes - (translation->address.value & (translation->page_bytes - 1));
    const auto part = out.subspan(done, std::min<std::uint64_t>(out.size() - done, rest_of_page));
    if (!memory.read(translation->address, part))
      break;
    done += part.size();
  }
  return done;
}

} // namespace lararium
