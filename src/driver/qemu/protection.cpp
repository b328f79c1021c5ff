#include "protection.h"

#include "userfault.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <map>
#include <optional>
#include <poll.h>
#include <set>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>
#include <unordered_set>

namespace lararium::qemu {
namespace {

// Memory is registered in pieces of this size around what is protected: a registered piece has no huge pages of the
// host's, and each is a mapping of its own to the host's kernel.
constexpr std::uint64_t piece = 2 << 20;
constexpr std::uint64_t pagefault_flag_wp = 1 << 1; // UFFD_PAGEFAULT_FLAG_WP

enum class Kind : std::uint8_t { private_memory, shared_memory, unusable };

struct Region : GuestRegion {
  Hva extent_begin, extent_end; // of the host's mapping around it
  std::uint64_t unit = page_size;
  Kind kind = Kind::private_memory;
  std::shared_ptr<UniqueFd> file; // of shared memory, to write to; null: it cannot be had
  std::uint64_t file_offset = 0;  // of the region
};

class QemuProtection final : public WriteProtection {
public:
  static Result<ProtectionStart> begin(const Process &process, const std::vector<GuestRegion> &guest_regions,
                                       VcpuThreads threads, bool translates) {
    // All that can be refused is asked before the VM's process is touched.
    TRY_ASSIGN(const auto support, ask_userfault_support());
    TRY_ASSIGN(const auto mappings, process.mappings());
    ProtectionStart start;
    TRY_ASSIGN(auto regions, find_regions(process, mappings, guest_regions, support, start.limitations));
    UniqueFd memory(::open(process.path("mem").c_str(), O_RDWR | O_CLOEXEC));
    if (!memory)
      return process.explain(fail_errno("cannot open the VM's memory", errno).error());
    UniqueFd pidfd(::fcntl(process.pidfd(), F_DUPFD_CLOEXEC, 0));
    if (!pidfd)
      return fail_errno("cannot duplicate a descriptor", errno);
    TRY_ASSIGN(auto descriptor, take_userfaultfd(process, start.stopped));
    uffdio_api api{.api = UFFD_API, .features = support.features, .ioctls = 0};
    if (::ioctl(descriptor.get(), UFFDIO_API, &api) != 0)
      return fail_errno("userfaultfd", errno);
    std::unique_ptr<QemuProtection> protection(new QemuProtection);
    protection->descriptor_ = std::move(descriptor);
    protection->memory_ = std::move(memory);
    protection->pidfd_ = std::move(pidfd);
    protection->regions_ = std::move(regions);
    protection->threads_ = std::move(threads);
    protection->exact_ = support.exact;
    protection->translates_ = translates;
    start.protection = std::move(protection);
    return start;
  }

  std::uint64_t unit_at(Gpa address) const override {
    const auto *region = region_of(address);
    return region != nullptr ? region->unit : page_size;
  }

  // TCG invalidates its translations of what is written first, and writes then. Held in between, the write meets vCPUs
  // that translate the old code once more, and nothing invalidates that: the guest goes on with code that is not there.
  bool may_hold_code() const override { return !translates_; }

  Result<void> protect(Gpa base, std::uint64_t size) override {
    return for_each_part(base, size, [&](const Region &region, Hva host, std::uint64_t length) -> Result<void> {
      if (region.kind == Kind::unusable)
        return fail(ErrorCode::unsupported, fmt::format("the host cannot hold writes to RAM block {}", region.block));
      TRY(register_pieces(region, host, length));
      TRY(set(host, length, UFFDIO_WRITEPROTECT_MODE_WP));
      for (std::uint64_t at = 0; at < length; at += region.unit)
        protected_.insert(host.value + at);
      return {};
    });
  }

  Result<void> release(Gpa base, std::uint64_t size) override {
    return for_each_part(base, size, [&](const Region &region, Hva host, std::uint64_t length) -> Result<void> {
      for (std::uint64_t at = 0; at < length; at += region.unit)
        protected_.erase(host.value + at);
      return set(host, length, 0);
    });
  }

  Result<std::size_t> wait(std::span<WriteFault> out, std::chrono::microseconds timeout) override {
    pollfd sources[2] = {{descriptor_.get(), POLLIN, 0}, {pidfd_.get(), POLLIN, 0}};
    const auto us = std::max<std::int64_t>(timeout.count(), 0);
    const timespec limit{us / 1'000'000, us % 1'000'000 * 1000};
    if (::ppoll(sources, 2, &limit, nullptr) <= 0)
      return 0;
    if ((sources[1].revents & POLLIN) != 0 || (sources[0].revents & POLLERR) != 0)
      return fail(ErrorCode::gone, "the VM ended");
    std::array<uffd_msg, 32> messages;
    const auto wanted = std::min(out.size(), messages.size());
    const auto count = ::read(descriptor_.get(), messages.data(), wanted * sizeof messages[0]);
    if (count < 0)
      return errno == EAGAIN || errno == EINTR
                 ? Result<std::size_t>(0)
                 : Result<std::size_t>(fail_errno("cannot read from a userfaultfd", errno));
    std::size_t filled = 0;
    for (std::size_t i = 0; i < static_cast<std::size_t>(count) / sizeof messages[0]; ++i) {
      const auto &message = messages[i];
      if (message.event != UFFD_EVENT_PAGEFAULT)
        continue;
      const Hva host{message.arg.pagefault.address};
      const auto *region = region_at(host);
      if (region == nullptr) { // around the guest's RAM: nothing there is protected
        const Hva page{host.value & ~page_mask};
        static_cast<void>(set(page, page_size, 0));
        continue;
      }
      WriteFault fault;
      fault.address = region->base + (host - region->host);
      fault.exact = exact_ && (host.value & page_mask) != 0;
      fault.thread = static_cast<pid_t>(message.arg.pagefault.feat.ptid);
      // Several vCPUs in one thread (TCG without multi-threading): it is not known which.
      if (std::ranges::count(threads_, fault.thread, &std::pair<std::uint32_t, pid_t>::second) == 1)
        fault.vcpu = std::ranges::find(threads_, fault.thread, &std::pair<std::uint32_t, pid_t>::second)->first;
      out[filled++] = fault;
    }
    return filled;
  }

  Result<void> overwrite(Gpa address, Bytes bytes) override {
    return for_each_part(address, bytes.size(), [&](const Region &region, Hva host, std::uint64_t length) {
      const auto part = bytes.subspan((region.base + (host - region.host)) - address, length);
      return region.kind == Kind::shared_memory ? overwrite_shared(region, host, part)
                                                : overwrite_private(region, host, part);
    });
  }

  std::span<std::byte> page_in_place(Gpa page) override {
    const auto *region = region_of(page);
    if (region == nullptr || region->kind != Kind::shared_memory || !region->file || region->unit != page_size ||
        region->size - (page - region->base) < page_size)
      return {};
    auto &mapped = in_place_[page];
    if (mapped == nullptr) {
      void *const memory = ::mmap(nullptr, page_size, PROT_READ | PROT_WRITE, MAP_SHARED, region->file->get(),
                                  static_cast<off_t>(region->file_offset + (page - region->base)));
      if (memory == MAP_FAILED)
        return {};
      mapped = static_cast<std::byte *>(memory);
    }
    return {mapped, page_size};
  }

  ~QemuProtection() override {
    for (const auto &[page, mapped] : in_place_)
      if (mapped != nullptr)
        ::munmap(mapped, page_size);
  }

private:
  QemuProtection() = default;

  static Result<std::vector<Region>> find_regions(const Process &process, const std::vector<HostMapping> &mappings,
                                                  const std::vector<GuestRegion> &guest_regions,
                                                  const UserfaultSupport &support, std::vector<std::string> &limits) {
    const auto joined = join_mappings(mappings);
    std::vector<Region> regions;
    for (const auto &guest : guest_regions) {
      const auto inside = [&](const HostMapping &mapping) {
        return guest.host >= mapping.begin && guest.host < mapping.end;
      };
      const auto whole = std::ranges::find_if(joined, inside), part = std::ranges::find_if(mappings, inside);
      if (whole == joined.end() || part == mappings.end() || guest.size > whole->end - guest.host)
        return fail(ErrorCode::protocol, fmt::format("QEMU has no memory where it says that {} is", guest.block));
      Region region;
      static_cast<GuestRegion &>(region) = guest;
      region.extent_begin = whole->begin;
      region.extent_end = whole->end;
      if (whole->inode != 0) {
        // Now: what is protected becomes mappings of their own, and this name goes.
        const std::string path = process.path(fmt::format("map_files/{:x}-{:x}", part->begin.value, part->end.value));
        region.file_offset = part->offset + (guest.host - part->begin);
        judge_file(region, *whole, path, support, limits);
      }
      regions.push_back(std::move(region));
    }
    std::ranges::sort(regions, {}, &Region::base);
    return regions;
  }

  static void judge_file(Region &region, const HostMapping &mapping, const std::string &path,
                         const UserfaultSupport &support, std::vector<std::string> &limits) {
    constexpr std::uint32_t tmpfs = 0x01021994, hugetlbfs = 0x958458f6;
    struct statfs status{};
    const bool known = ::statfs(path.c_str(), &status) == 0;
    const auto type = static_cast<std::uint32_t>(status.f_type);
    region.kind = mapping.shared ? Kind::shared_memory : Kind::private_memory;
    if (mapping.shared)
      if (UniqueFd file(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)); file)
        region.file = std::make_shared<UniqueFd>(std::move(file));
    if (known && type == hugetlbfs)
      region.unit = static_cast<std::uint64_t>(status.f_bsize);
    const auto refuse = [&](std::string why) {
      region.kind = Kind::unusable;
      if (std::ranges::find(limits, why) == limits.end())
        limits.push_back(std::move(why));
    };
    if (known && type != tmpfs && type != hugetlbfs)
      refuse(fmt::format("RAM block {} lies in a file that is neither on tmpfs nor on hugetlbfs: the host's kernel "
                         "cannot hold writes to it",
                         region.block));
    else if (!support.shared)
      refuse(fmt::format("RAM block {} is shared memory: this host's kernel cannot hold writes to it (that takes Linux "
                         "5.19)",
                         region.block));
  }

  const Region *region_of(Gpa address) const {
    const auto after = std::ranges::upper_bound(regions_, address, {}, &Region::base);
    if (after == regions_.begin())
      return nullptr;
    const auto &region = *std::prev(after);
    return address - region.base < region.size ? &region : nullptr;
  }

  const Region *region_at(Hva host) const {
    const auto found = std::ranges::find_if(
        regions_, [&](const Region &region) { return host >= region.host && host - region.host < region.size; });
    return found == regions_.end() ? nullptr : &*found;
  }

  template <class Do> Result<void> for_each_part(Gpa base, std::uint64_t size, Do &&act) const {
    while (size != 0) {
      const auto *region = region_of(base);
      if (region == nullptr)
        return fault(base);
      const auto offset = base - region->base;
      const auto length = std::min(size, region->size - offset);
      TRY(act(*region, region->host + offset, length));
      base += length;
      size -= length;
    }
    return {};
  }

  Result<void> register_pieces(const Region &region, Hva host, std::uint64_t length) {
    const std::uint64_t step = std::max(piece, region.unit);
    for (std::uint64_t at = host.value / step * step; at < host.value + length; at += step) {
      const std::uint64_t begin = std::max(at, region.extent_begin.value),
                          end = std::min(at + step, region.extent_end.value);
      if (registered_.contains(begin))
        continue;
      uffdio_register request{.range = {begin, end - begin}, .mode = UFFDIO_REGISTER_MODE_WP, .ioctls = 0};
      if (::ioctl(descriptor_.get(), UFFDIO_REGISTER, &request) != 0) {
        if (errno == EBUSY)
          return fail(ErrorCode::unsupported,
                      "another userfaultfd holds the VM's memory: another monitor protects it, or "
                      "it is being migrated or snapshotted");
        return fail_errno("cannot register memory with a userfaultfd", errno);
      }
      registered_.insert(begin);
    }
    return {};
  }

  Result<void> set(Hva host, std::uint64_t length, std::uint64_t mode) const {
    uffdio_writeprotect request{.range = {host.value, length}, .mode = mode};
    // EAGAIN: the process changes its mappings at this moment.
    constexpr int tries = 1000;
    for (int i = 0; i < tries; ++i) {
      if (::ioctl(descriptor_.get(), UFFDIO_WRITEPROTECT, &request) == 0)
        return {};
      if (errno != EAGAIN)
        break;
      ::usleep(10);
    }
    if (errno == ESRCH)
      return fail(ErrorCode::gone, "the VM ended");
    return fail_errno(mode != 0 ? "cannot protect memory" : "cannot release memory", errno);
  }

  // Through a mapping of our own, which the protection of QEMU's does not concern.
  static Result<void> overwrite_shared(const Region &region, Hva host, Bytes bytes) {
    if (!region.file)
      return fail(ErrorCode::permission_denied, "the file of the VM's memory cannot be opened for writing");
    const std::uint64_t offset = region.file_offset + (host - region.host), begin = offset / region.unit * region.unit;
    const std::uint64_t length = (offset + bytes.size() - begin + region.unit - 1) / region.unit * region.unit;
    void *const mapped =
        ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, region.file->get(), static_cast<off_t>(begin));
    if (mapped == MAP_FAILED)
      return fail_errno("cannot map the VM's memory", errno);
    std::memcpy(static_cast<std::byte *>(mapped) + (offset - begin), bytes.data(), bytes.size());
    ::munmap(mapped, length);
    return {};
  }

  // Private memory can be written through QEMU's own mapping alone, where our write would wait for ourselves: a page
  // that is protected is open for its length (two system calls), and those who wait are not woken by that.
  Result<void> overwrite_private(const Region &region, Hva host, Bytes bytes) const {
    while (!bytes.empty()) {
      const std::uint64_t unit = host.value / region.unit * region.unit;
      const Bytes part = bytes.first(std::min<std::uint64_t>(bytes.size(), unit + region.unit - host.value));
      const bool is_protected = protected_.contains(unit);
      if (is_protected)
        TRY(set(Hva{unit}, region.unit, UFFDIO_WRITEPROTECT_MODE_DONTWAKE));
      const auto written = ::pwrite(memory_.get(), part.data(), part.size(), static_cast<off_t>(host.value));
      const int error = errno;
      if (is_protected)
        TRY(set(Hva{unit}, region.unit, UFFDIO_WRITEPROTECT_MODE_WP));
      if (written != static_cast<ssize_t>(part.size()))
        return fail_errno("cannot write to the VM's memory", error);
      host += part.size();
      bytes = bytes.subspan(part.size());
    }
    return {};
  }

  UniqueFd descriptor_, memory_, pidfd_;
  std::vector<Region> regions_; // by base
  VcpuThreads threads_;
  std::set<std::uint64_t> registered_;          // beginnings of pieces
  std::unordered_set<std::uint64_t> protected_; // beginnings of units
  std::map<Gpa, std::byte *> in_place_;
  bool exact_ = false, translates_ = false;
};

class QemuProtector final : public Protector {
public:
  QemuProtector(std::shared_ptr<Session> session, std::vector<GuestRegion> regions, bool translates)
      : session_(std::move(session)), regions_(std::move(regions)), translates_(translates) {}
  Result<ProtectionStart> begin() override {
    VcpuThreads threads;
    if (!session_->monitors.empty())
      if (const auto monitor = session_->open_monitor())
        threads = vcpu_threads(**monitor);
    if (threads.empty())
      threads = vcpu_threads_by_name(session_->process);
    TRY_ASSIGN(auto start, QemuProtection::begin(session_->process, regions_, threads, translates_));
    if (threads.empty())
      start.limitations.emplace_back("it is not known which thread runs which vCPU: who wrote is not told");
    return start;
  }

private:
  std::shared_ptr<Session> session_;
  std::vector<GuestRegion> regions_;
  bool translates_;
};

} // namespace

std::unique_ptr<Protector> make_protector(std::shared_ptr<Session> session, std::vector<GuestRegion> regions,
                                          bool translates) {
  return std::make_unique<QemuProtector>(std::move(session), std::move(regions), translates);
}

Result<ProtectionStart> begin_protection(const Process &process, const std::vector<GuestRegion> &regions,
                                         VcpuThreads threads) {
  return QemuProtection::begin(process, regions, std::move(threads), false);
}

} // namespace lararium::qemu
