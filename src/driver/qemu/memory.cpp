#include "lararium/driver/qemu/memory.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <fmt/format.h>
#include <iterator>
#include <poll.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

namespace lararium::qemu {
namespace {

// A page at a time is best for following pointers: what is read next is rarely near, and more at once costs more than
// it saves.
constexpr std::size_t copy_count = 1024;                 // 4 MiB; what is read again is read soon
constexpr std::size_t slot_count = 4 * copy_count;       // few collide
constexpr std::size_t cached_read_limit = 4 * page_size; // longer reads go past the cache
constexpr std::size_t bulk_size = 4 * page_size;
constexpr std::size_t max_runs = 1 << 18;
constexpr std::uint64_t min_hole = 64 << 10; // smaller ones are read through: a system call costs as much

bool is_hugetlbfs(int file) {
  constexpr auto magic = 0x958458f6U;
  struct statfs status{};
  return ::fstatfs(file, &status) == 0 && static_cast<std::uint32_t>(status.f_type) == magic;
}

// Opens the file behind a mapping, whatever became of its name. `original` are the mappings as the kernel lists them.
UniqueFd open_mapped_file(const Process &process, const HostMapping &mapping,
                          const std::vector<HostMapping> &original) {
  // The link in map_files leads to the very file; it takes CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE.
  const auto piece = std::ranges::find(original, mapping.begin, &HostMapping::begin);
  if (piece != original.end()) {
    UniqueFd file(::open(process.path(fmt::format("map_files/{:x}-{:x}", piece->begin.value, piece->end.value)).c_str(),
                         O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
    if (file)
      return file;
  }
  const auto descriptors = process.descriptors();
  if (!descriptors)
    return {};
  for (const auto &descriptor : *descriptors) {
    if (!descriptor.target.starts_with('/') || descriptor.target.starts_with("/dev/"))
      continue; // a file's path, be it "/memfd:x (deleted)"; opening a device could do something
    UniqueFd file(::open(process.path(fmt::format("fd/{}", descriptor.number)).c_str(),
                         O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
    struct stat status{};
    if (file && ::fstat(file.get(), &status) == 0 && status.st_ino == mapping.inode &&
        ::major(status.st_dev) == mapping.device_major && ::minor(status.st_dev) == mapping.device_minor)
      return file;
  }
  return {};
}

} // namespace

std::vector<SharedRange> QemuMemory::shared_ranges() const {
  std::vector<SharedRange> ranges;
  for (const Region &region : regions_)
    if (!region.mapped.empty() && region.file >= 0)
      ranges.push_back({region.base, region.size, region.file, region.file_offset});
  return ranges;
}

namespace {

std::string_view kind_of_file(const HostMapping &mapping, int file) {
  if (is_hugetlbfs(file))
    return "hugetlbfs";
  if (mapping.path.starts_with("/memfd:"))
    return "memfd";
  if (mapping.path.starts_with("/dev/zero"))
    return "shared anonymous";
  return "file";
}

// Adds [begin, end), joined to the last one when little lies between.
void add_run(std::vector<RamRange> &out, Gpa begin, Gpa end, const std::string &block) {
  if (!out.empty()) {
    auto &last = out.back();
    if (const auto last_end = last.base + last.size;
        last.block == block && begin >= last_end && begin - last_end < min_hole) {
      last.size = end - last.base;
      return;
    }
  }
  out.push_back({begin, end - begin, block});
}

// The union of two sorted lists of runs.
std::vector<RamRange> unite(std::vector<RamRange> first, std::vector<RamRange> second) {
  std::ranges::move(second, std::back_inserter(first));
  std::ranges::sort(first, {}, &RamRange::base);
  std::vector<RamRange> result;
  for (const auto &run : first) {
    if (!result.empty() && run.base - result.back().base < result.back().size + min_hole)
      result.back().size = std::max(result.back().size, run.base - result.back().base + run.size);
    else
      result.push_back(run);
  }
  return result;
}

} // namespace

Result<HostMemory> HostMemory::open(const Process &process) {
  UniqueFd file(::open(process.path("mem").c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) {
    const auto error = fail_errno(fmt::format("cannot read the memory of process {}", process.pid()), errno);
    return process.explain(error.error());
  }
  UniqueFd pidfd(::fcntl(process.pidfd(), F_DUPFD_CLOEXEC, 0));
  if (!pidfd)
    return fail_errno("cannot duplicate a descriptor", errno);
  // Had the process ended before the open, the file could be of another one.
  if (!process.alive())
    return process.explain({});
  return HostMemory(std::move(file), std::move(pidfd), process.pid());
}

bool HostMemory::read_at_once(Hva address, std::span<std::byte> out) const {
  const iovec local{out.data(), out.size()};
  const iovec remote{reinterpret_cast<void *>(address.value), out.size()};
  if (::process_vm_readv(pid_, &local, 1, &remote, 1, 0) != static_cast<ssize_t>(out.size()))
    return false;
  pollfd ended{pidfd_.get(), POLLIN, 0};
  return ::poll(&ended, 1, 0) == 0;
}

bool HostMemory::read(Hva address, std::span<std::byte> out) const {
  if (address.value > INT64_MAX - out.size())
    return false;
  if (out.size() >= bulk_size && read_at_once(address, out))
    return true;
  while (!out.empty()) {
    const auto count = ::pread(file_.get(), out.data(), out.size(), static_cast<off_t>(address.value));
    if (count < 0 && errno == EINTR)
      continue;
    if (count <= 0) // the process ended, or nothing is mapped there
      return false;
    out = out.subspan(static_cast<std::size_t>(count));
    address += static_cast<std::uint64_t>(count);
  }
  return true;
}

std::size_t HostMemory::read_pages(std::span<const Page> pages) const {
  std::array<iovec, pages_at_once> local, remote;
  const auto count = std::min(pages.size(), pages_at_once);
  for (std::size_t i = 0; i < count; i++) {
    local[i] = {pages[i].out, page_size};
    remote[i] = {reinterpret_cast<void *>(pages[i].address.value), page_size};
  }
  const auto got = ::process_vm_readv(pid_, local.data(), count, remote.data(), count, 0);
  pollfd ended{pidfd_.get(), POLLIN, 0}; // then another process may have the pid
  return got <= 0 || ::poll(&ended, 1, 0) != 0 ? 0 : static_cast<std::size_t>(got) / page_size;
}

Result<std::unique_ptr<QemuMemory>> QemuMemory::open(const Process &process, std::vector<GuestRegion> regions) {
  TRY_ASSIGN(auto host, HostMemory::open(process));
  TRY_ASSIGN(const auto original, process.mappings());
  const auto joined = join_mappings(original);
  std::unique_ptr<QemuMemory> memory(new QemuMemory(std::move(host)));
  memory->pagemap_.reset(::open(process.path("pagemap").c_str(), O_RDONLY | O_CLOEXEC));

  std::ranges::sort(regions, {}, &GuestRegion::base);
  for (std::size_t i = 0; i < regions.size(); i++) {
    const auto &region = regions[i];
    if (region.size == 0 || region.base.value > UINT64_MAX - region.size ||
        (i > 0 && region.base - regions[i - 1].base < regions[i - 1].size))
      return fail(ErrorCode::corrupt, "QEMU's memory ranges overlap");
    memory->regions_.push_back({{region}, {}, -1, 0, false, false, {}, {}});
  }

  // One mapping of ours for each shared mapping of QEMU's that holds RAM: from the first to the last byte in use.
  std::string access;
  const auto add_access = [&](std::string text) {
    if (access.find(text) == std::string::npos)
      access += access.empty() ? std::move(text) : ", " + text;
  };
  for (const auto &mapping : joined) {
    const auto inside = [&](const Region &region) {
      return region.host >= mapping.begin && region.host < mapping.end && region.size <= mapping.end - region.host;
    };
    std::uint64_t first = UINT64_MAX, last = 0;
    for (auto &region : memory->regions_)
      if (inside(region)) {
        region.extent_begin = mapping.begin;
        region.extent_end = mapping.end;
        first = std::min(first, region.host.value);
        last = std::max(last, region.host.value + region.size);
      }
    if (first >= last)
      continue;
    UniqueFd file = mapping.inode != 0 ? open_mapped_file(process, mapping, original) : UniqueFd();
    const bool huge = file && is_hugetlbfs(file.get());
    std::string_view why_not = mapping.shared ? "its file cannot be opened" : "private memory";
    Bytes bytes;
    if (mapping.shared && file) {
      const auto offset = mapping.offset + (first - mapping.begin.value);
      auto mapped = Mapping::map_file(file.get(), offset, last - first);
      if (mapped) {
        bytes = mapped->bytes();
        memory->mappings_.push_back(std::move(*mapped));
      } else {
        why_not = "its file cannot be mapped";
      }
    }
    for (auto &region : memory->regions_)
      if (inside(region)) {
        region.file = file.get();
        region.file_offset = mapping.offset + (region.host - mapping.begin);
        region.seekable = file && !huge;
        region.file_behind = !mapping.shared && mapping.inode != 0;
        if (!bytes.empty())
          region.mapped = bytes.subspan(region.host.value - first, region.size);
      }
    add_access(bytes.empty() ? fmt::format("process_vm_readv ({})", why_not)
                             : fmt::format("mapped ({})", kind_of_file(mapping, file.get())));
    if (file)
      memory->files_.push_back(std::move(file));
  }

  std::vector<RamRange> ranges;
  std::vector<MappedRun> runs;
  for (const auto &region : memory->regions_) {
    if (region.extent_begin == region.extent_end)
      return fail(ErrorCode::protocol, fmt::format("QEMU has no memory where it says that {} is", region.block));
    ranges.push_back({region.base, region.size, region.block});
    if (!region.mapped.empty())
      runs.push_back({region.base, region.mapped});
  }
  // Most reads are of the largest runs.
  std::ranges::sort(runs, std::ranges::greater{}, [](const MappedRun &run) { return run.bytes.size(); });
  memory->set_ranges(std::move(ranges));
  memory->set_mapped_runs(std::move(runs));
  memory->access_ = std::move(access);
  return memory;
}

const QemuMemory::Region *QemuMemory::region_of(Gpa address) const {
  const auto after = std::ranges::upper_bound(regions_, address, {}, &Region::base);
  if (after == regions_.begin())
    return nullptr;
  const auto &region = *std::prev(after);
  return address - region.base < region.size ? &region : nullptr;
}

std::optional<Hva> QemuMemory::host_address(Gpa address) const {
  const auto *region = region_of(address);
  if (region == nullptr)
    return std::nullopt;
  return region->host + (address - region->base);
}

bool QemuMemory::read_unmapped(Gpa address, std::span<std::byte> out) const {
  while (!out.empty()) {
    const auto *region = region_of(address);
    if (region == nullptr)
      return false;
    const auto offset = address - region->base;
    const auto part = out.first(std::min<std::uint64_t>(out.size(), region->size - offset));
    if (!region->mapped.empty())
      std::memcpy(part.data(), region->mapped.data() + offset, part.size());
    else if (!read_private(region->host + offset, part))
      return false;
    out = out.subspan(part.size());
    address += part.size();
  }
  return true;
}

bool QemuMemory::read_private(Hva address, std::span<std::byte> out) const {
  if (out.size() > cached_read_limit)
    return host_.read(address, out);
  while (!out.empty()) {
    const auto offset = address.value % page_size;
    const auto part = out.first(std::min<std::uint64_t>(out.size(), page_size - offset));
    const std::byte *const page = cached_page(Hva{address.value - offset});
    if (page == nullptr)
      return false;
    std::memcpy(part.data(), page + offset, part.size());
    out = out.subspan(part.size());
    address += part.size();
  }
  return true;
}

void QemuMemory::make_cache() const {
  if (copies_ != nullptr)
    return;
  slots_.resize(slot_count);
  copies_ = std::make_unique_for_overwrite<std::byte[]>(copy_count * page_size);
}

void QemuMemory::empty_cache() const {
  if (used_ == 0)
    return;
  used_ = 0;
  if (++age_ == 0) { // what the first age left would look new
    std::ranges::fill(slots_, Slot{});
    age_ = 1;
  }
  end_copies();
}

// The slot that has the page, or a free one. There is one: most are.
QemuMemory::Slot &QemuMemory::slot_for(std::uint64_t page) const {
  std::size_t at = (page / page_size * 0x9e37'79b9'7f4a'7c15 >> 32) % slot_count;
  while (slots_[at].age == age_ && slots_[at].page != page)
    at = (at + 1) % slot_count;
  return slots_[at];
}

std::byte *QemuMemory::data_of(const Slot &slot) const { return copies_.get() + slot.copy * page_size; }

// Private memory: all pages that the cache lacks are read by few system calls, which is twice as fast as one by one.
void QemuMemory::expect(std::span<const Gpa> addresses) const {
  PhysicalMemory::expect(addresses);
  if (std::ranges::all_of(regions_, [](const Region &region) { return !region.mapped.empty(); }))
    return;
  make_cache();
  if (addresses.size() > copy_count - used_)
    empty_cache();
  expected_.clear();
  expected_slots_.clear();
  const auto read_expected = [&] {
    const auto done = host_.read_pages(expected_);
    for (std::size_t i = 0; i < done; i++)
      expected_slots_[i]->filled = true;
    expected_.clear();
    expected_slots_.clear();
  };
  for (const auto address : addresses) {
    const auto *region = region_of(address);
    if (region == nullptr || !region->mapped.empty() || used_ == copy_count)
      continue;
    const auto page = (region->host + (address - region->base)).value / page_size * page_size;
    auto &slot = slot_for(page);
    if (slot.age == age_)
      continue;
    slot = {page, age_, used_++, false};
    expected_.push_back({Hva{page}, data_of(slot)});
    expected_slots_.push_back(&slot);
    if (expected_.size() == HostMemory::pages_at_once)
      read_expected();
  }
  if (!expected_.empty())
    read_expected();
}

const std::byte *QemuMemory::cached_page(Hva page) const {
  make_cache();
  Slot *slot = &slot_for(page.value);
  if (slot->age != age_) {
    if (used_ == copy_count) {
      empty_cache();
      slot = &slot_for(page.value);
    }
    *slot = {page.value, age_, used_++, false};
  }
  if (!slot->filled)
    slot->filled = host_.read(page, {data_of(*slot), page_size});
  return slot->filled ? data_of(*slot) : nullptr;
}

const std::byte *QemuMemory::copy_of_page(Gpa page) const {
  const auto *region = region_of(page);
  if (region == nullptr || !region->mapped.empty() || region->size - (page - region->base) < page_size)
    return nullptr;
  const Hva address = region->host + (page - region->base);
  return address.page_offset() == 0 ? cached_page(address) : nullptr;
}

std::vector<RamRange> QemuMemory::populated(Gpa base, std::uint64_t size) const {
  std::vector<RamRange> result;
  for (const auto &region : regions_) {
    const auto last = base.value > UINT64_MAX - size ? UINT64_MAX : base.value + size;
    const auto begin = std::max(region.base.value, base.value), end = std::min(region.base.value + region.size, last);
    if (begin >= end)
      continue;
    const auto first = begin - region.base.value, past = end - region.base.value;
    if (!region.mapped.empty() && region.seekable) {
      add_data_runs(region, first, past, result);
    } else if (pagemap_ && !region.file_behind) {
      add_present_runs(region, first, past, result);
    } else if (pagemap_ && region.seekable) {
      // Private memory over a file: what the guest wrote, and what the file had before.
      std::vector<RamRange> data, present;
      add_data_runs(region, first, past, data);
      add_present_runs(region, first, past, present);
      for (auto &run : unite(std::move(data), std::move(present)))
        result.push_back(std::move(run));
    } else {
      result.push_back({Gpa{begin}, end - begin, region.block});
    }
  }
  return result;
}

// Offsets are in the region. A file says where it has data (swapped out or not).
void QemuMemory::add_data_runs(const Region &region, std::uint64_t begin, std::uint64_t end,
                               std::vector<RamRange> &out) const {
  while (begin < end) {
    const auto data = ::lseek(region.file, static_cast<off_t>(region.file_offset + begin), SEEK_DATA);
    if (data < 0 && errno == ENXIO) // nothing but a hole up to the end
      return;
    auto hole = data < 0 ? data : ::lseek(region.file, data, SEEK_HOLE);
    if (data < 0 || hole < 0 || out.size() >= max_runs) {
      add_run(out, region.base + begin, region.base + end, region.block); // it cannot be told: all
      return;
    }
    const auto first = std::max<std::uint64_t>(begin, static_cast<std::uint64_t>(data) - region.file_offset);
    const auto last = std::min<std::uint64_t>(end, static_cast<std::uint64_t>(hole) - region.file_offset);
    if (first >= end)
      return;
    add_run(out, region.base + first, region.base + last, region.block);
    begin = std::max(last, begin + 1);
  }
}

// The kernel's Documentation/admin-guide/mm/pagemap.rst: a word for each page, bit 63 present, bit 62 swapped out. It
// is QEMU's own page table, through which the guest's accesses go as well.
void QemuMemory::add_present_runs(const Region &region, std::uint64_t begin, std::uint64_t end,
                                  std::vector<RamRange> &out) const {
  constexpr std::uint64_t has_data = 3ULL << 62;
  std::array<std::uint64_t, 8192> words;
  const std::uint64_t shift = region.host.value % page_size; // 0: QEMU's blocks are whole pages
  if (shift != 0) {
    add_run(out, region.base + begin, region.base + end, region.block);
    return;
  }
  for (std::uint64_t page = begin / page_size; page * page_size < end;) {
    const auto count = std::min<std::uint64_t>(words.size(), (end + page_mask) / page_size - page);
    const auto at = (region.host.value / page_size + page) * sizeof(std::uint64_t);
    const auto got = ::pread(pagemap_.get(), words.data(), count * sizeof(std::uint64_t), static_cast<off_t>(at));
    if (got < static_cast<ssize_t>(sizeof(std::uint64_t)) || out.size() >= max_runs) {
      add_run(out, region.base + std::max(begin, page * page_size), region.base + end, region.block);
      return;
    }
    const auto known = static_cast<std::uint64_t>(got) / sizeof(std::uint64_t);
    for (std::uint64_t i = 0; i < known; i++)
      if ((words[i] & has_data) != 0)
        add_run(out, region.base + std::max(begin, (page + i) * page_size),
                region.base + std::min(end, (page + i + 1) * page_size), region.block);
    page += known;
  }
}

} // namespace lararium::qemu
