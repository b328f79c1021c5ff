#include "lararium/base/mapping.h"

#include "lararium/base/unique_fd.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <fmt/format.h>
#include <mutex>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <utility>

namespace lararium {
namespace {

// The signal handler may run at any moment in any thread, so the registry is a fixed array of atomics: begin is set
// last and cleared first.
struct Region {
  std::atomic<std::uintptr_t> begin{0};
  std::atomic<std::uintptr_t> end{0};
  std::atomic<std::uintptr_t> granule{0}; // bytes per page of the mapped file
};
constexpr std::size_t region_limit = 1024;
std::array<Region, region_limit> regions;
std::mutex registry_mutex;
std::atomic<std::uint64_t> lost{0};
struct sigaction previous_action{};

void on_bus_error(int signal_number, siginfo_t *info, void *context) {
  const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
  for (auto &region : regions) {
    const auto begin = region.begin.load(std::memory_order_acquire);
    if (begin == 0 || address < begin || address >= region.end.load(std::memory_order_relaxed))
      continue;
    const auto granule = region.granule.load(std::memory_order_relaxed);
    const auto page = begin + (address - begin) / granule * granule;
    // mmap is not on POSIX's list of async-signal-safe calls, but on Linux it is a bare system call.
    if (::mmap(reinterpret_cast<void *>(page), granule, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
        MAP_FAILED) {
      lost.fetch_add(1, std::memory_order_relaxed);
      return;
    }
  }
  if ((previous_action.sa_flags & SA_SIGINFO) != 0 && previous_action.sa_sigaction != nullptr)
    previous_action.sa_sigaction(signal_number, info, context);
  else if (previous_action.sa_handler != SIG_DFL && previous_action.sa_handler != SIG_IGN)
    previous_action.sa_handler(signal_number);
  else
    ::signal(SIGBUS, SIG_DFL); // the faulting instruction runs again and ends the process as it would have without us
}

void install_handler() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action{};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO;
    sigemptyset(&action.sa_mask);
    ::sigaction(SIGBUS, &action, &previous_action);
  });
}

bool register_region(const void *data, std::size_t length, std::size_t granule) {
  install_handler();
  const std::lock_guard lock(registry_mutex);
  for (auto &region : regions) {
    if (region.begin.load(std::memory_order_relaxed) != 0)
      continue;
    region.granule.store(granule, std::memory_order_relaxed);
    region.end.store(reinterpret_cast<std::uintptr_t>(data) + length, std::memory_order_relaxed);
    region.begin.store(reinterpret_cast<std::uintptr_t>(data), std::memory_order_release);
    return true;
  }
  return false;
}

void unregister_region(const void *data) {
  const std::lock_guard lock(registry_mutex);
  for (auto &region : regions)
    if (region.begin.load(std::memory_order_relaxed) == reinterpret_cast<std::uintptr_t>(data)) {
      region.begin.store(0, std::memory_order_release);
      return;
    }
}

std::size_t page_size_of_file(int descriptor) {
  constexpr long hugetlbfs_magic = 0x958458f6;
  struct statfs status{};
  if (::fstatfs(descriptor, &status) == 0 && status.f_type == hugetlbfs_magic)
    return static_cast<std::size_t>(status.f_bsize);
  return page_size;
}

} // namespace

Mapping::Mapping(Mapping &&other) noexcept
    : data_(std::exchange(other.data_, nullptr)), length_(std::exchange(other.length_, 0)) {}

Mapping &Mapping::operator=(Mapping &&other) noexcept {
  std::swap(data_, other.data_);
  std::swap(length_, other.length_);
  return *this;
}

Mapping::~Mapping() {
  if (data_ == nullptr)
    return;
  unregister_region(data_);
  ::munmap(const_cast<std::byte *>(data_), length_);
}

Result<Mapping> Mapping::map_file(int descriptor, std::uint64_t offset, std::size_t length) {
  if (length == 0)
    return Mapping();
  void *data = ::mmap(nullptr, length, PROT_READ, MAP_SHARED, descriptor, static_cast<off_t>(offset));
  if (data == MAP_FAILED)
    return fail_errno(fmt::format("cannot map {} bytes", length), errno);
  if (!register_region(data, length, page_size_of_file(descriptor))) {
    ::munmap(data, length);
    return fail(ErrorCode::io, fmt::format("more than {} mappings at once", region_limit));
  }
  return Mapping(static_cast<const std::byte *>(data), length);
}

std::uint64_t Mapping::lost_pages() { return lost.load(std::memory_order_relaxed); }

Result<Mapping> map_whole_file(const std::string &path) {
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file)
    return fail_errno(fmt::format("cannot open {}", path), errno);
  struct stat status{};
  if (::fstat(file.get(), &status) != 0)
    return fail_errno(fmt::format("cannot examine {}", path), errno);
  if (!S_ISREG(status.st_mode))
    return fail(ErrorCode::usage, fmt::format("{} is not a regular file", path));
  return Mapping::map_file(file.get(), 0, static_cast<std::size_t>(status.st_size));
}

} // namespace lararium
