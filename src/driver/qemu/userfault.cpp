#include "userfault.h"

#include "guardian.h"
#include "remote_call.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <fcntl.h>
#include <fmt/format.h>
#include <iterator>
#include <linux/userfaultfd.h>
#include <optional>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace lararium::qemu {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint64_t feature_wp_unpopulated = 1 << 13; // UFFD_FEATURE_WP_UNPOPULATED, of 6.4
constexpr const char *setting_path = "/proc/sys/vm/unprivileged_userfaultfd";

// Lets processes without rights make a userfaultfd that sees the kernel's own faults, too, while `allow()` holds. A
// child puts the setting back if this process dies meanwhile; a lock keeps two of us from taking the other's 1 for the
// administrator's.
class Permission {
public:
  [[nodiscard]] static Result<Permission> prepare() {
    Permission permission;
    permission.file_.reset(::open(setting_path, O_RDWR | O_CLOEXEC));
    if (!permission.file_)
      return fail_errno(fmt::format("cannot open {}", setting_path), errno);
    if (::flock(permission.file_.get(), LOCK_EX) != 0)
      return fail_errno(fmt::format("cannot lock {}", setting_path), errno);
    const int file = permission.file_.get();
    // It runs in a copy of a process that may have threads: nothing but a system call.
    auto guardian = Guardian::start({file}, [file](bool) {
      const char off = '0';
      static_cast<void>(::pwrite(file, &off, 1, 0));
    });
    if (!guardian)
      return std::unexpected(std::move(guardian).error());
    permission.guardian_.emplace(std::move(*guardian));
    return permission;
  }
  Permission(Permission &&) = default;
  Permission &operator=(Permission &&) = delete;
  Permission(const Permission &) = delete;
  Permission &operator=(const Permission &) = delete;
  ~Permission() {
    if (guardian_)
      guardian_->put_right();
  }

  [[nodiscard]] bool allow() { return set('1'); }
  void forbid() { static_cast<void>(set('0')); }

private:
  Permission() = default;
  [[nodiscard]] bool set(char value) { return ::pwrite(file_.get(), &value, 1, 0) == 1; }

  UniqueFd file_;
  std::optional<Guardian> guardian_;
};

// The kernel's own mark on a userfaultfd that was set up (UFFD_FEATURE_INITIALIZED in fs/userfaultfd.c, since
// 22e5fe2a2a27, 5.15). Whoever makes one for itself sets it up at once.
constexpr std::uint64_t feature_set_up = 1ULL << 31;

bool is_set_up(const std::string &fdinfo) {
  const auto text = read_small_file(fdinfo, page_size);
  const auto features = text ? parse_userfault_features(*text) : std::nullopt;
  return !features || (*features & feature_set_up) != 0;
}

bool host_marks_what_is_set_up() {
  const UniqueFd own(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  uffdio_api api{.api = UFFD_API, .features = 0, .ioctls = 0};
  const std::string fdinfo = fmt::format("/proc/self/fdinfo/{}", own.get());
  return own && !is_set_up(fdinfo) && ::ioctl(own.get(), UFFDIO_API, &api) == 0 && is_set_up(fdinfo);
}

// Userfaultfds of the process that nobody set up, now and a moment ago.
std::vector<int> find_abandoned(const Process &process) {
  const auto find = [&] {
    std::vector<int> found;
    if (const auto descriptors = process.descriptors())
      for (const auto &descriptor : *descriptors)
        if (descriptor.target == "anon_inode:[userfaultfd]" &&
            !is_set_up(process.path(fmt::format("fdinfo/{}", descriptor.number))))
          found.push_back(descriptor.number);
    return found;
  };
  const auto before = find();
  if (before.empty() || !host_marks_what_is_set_up())
    return {};
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  std::vector<int> found;
  std::ranges::set_intersection(before, find(), std::back_inserter(found));
  return found;
}

struct Taken {
  UniqueFd descriptor;
  std::chrono::nanoseconds stopped{};
  int refused = 0; // the errno with which the process could not make one
};

// One stop. Runs in a thread of its own: when that ends, the kernel lets go of whatever it may still hold.
Result<Taken> take_in_one_stop(const Process &process, const CallSite &site, Permission *permission,
                               const std::vector<int> &abandoned) {
  TRY_ASSIGN(auto thread, StoppedThread::stop(process, site));
  Taken taken;
  // Nobody else of us makes calls now: we have the thread by which that is done.
  for (const int descriptor : abandoned)
    if (!is_set_up(process.path(fmt::format("fdinfo/{}", descriptor))))
      TRY(thread.call(SYS_close, {static_cast<std::uint64_t>(descriptor), 0, 0}));
  if (permission != nullptr && !permission->allow())
    return fail_errno(fmt::format("cannot write to {}", setting_path), errno);
  const auto made = thread.call(SYS_userfaultfd, {O_CLOEXEC | O_NONBLOCK, 0, 0});
  if (permission != nullptr)
    permission->forbid();
  if (!made)
    return process.explain(made.error());
  if (*made < 0) {
    taken.refused = static_cast<int>(-*made);
    return taken;
  }
  taken.descriptor.reset(static_cast<int>(::syscall(SYS_pidfd_getfd, process.pidfd(), static_cast<int>(*made), 0)));
  const int error = errno;
  const auto closed = thread.call(SYS_close, {static_cast<std::uint64_t>(*made), 0, 0});
  thread.resume();
  taken.stopped = Clock::now() - thread.since();
  // With its copy left open, the guest would hang for ever if we died: better no protection.
  if (!closed || *closed != 0)
    return fail(ErrorCode::io, "the VM's process did not close its descriptor");
  if (!taken.descriptor)
    return fail_errno("cannot take a descriptor out of the VM's process", error);
  return taken;
}

Result<Taken> take_in_a_thread(const Process &process, const CallSite &site, Permission *permission,
                               const std::vector<int> &abandoned) {
  Result<Taken> taken = fail(ErrorCode::io, "");
  std::thread([&] { taken = take_in_one_stop(process, site, permission, abandoned); }).join();
  return taken;
}

} // namespace

std::optional<std::uint64_t> parse_userfault_features(std::string_view text) {
  // "API:\t%Lx:%x:%Lx": the version, what is asked for, what can be done
  const auto begin = text.find("API:\t");
  const auto colon = begin == text.npos ? text.npos : text.find(':', begin + 5);
  if (colon == text.npos)
    return std::nullopt;
  std::uint64_t features = 0;
  const char *const end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data() + colon + 1, end, features, 16);
  return error == std::errc() && rest != end && *rest == ':' ? std::optional(features) : std::nullopt;
}

Result<UserfaultSupport> ask_userfault_support() {
  const UniqueFd own(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  if (!own) {
    if (errno == ENOSYS)
      return fail(ErrorCode::unsupported, "this host's kernel has no userfaultfd");
    return fail_errno("userfaultfd", errno);
  }
  uffdio_api api{.api = UFFD_API, .features = 0, .ioctls = 0};
  if (::ioctl(own.get(), UFFDIO_API, &api) != 0)
    return fail_errno("userfaultfd", errno);
  if ((api.features & UFFD_FEATURE_PAGEFAULT_FLAG_WP) == 0)
    return fail(ErrorCode::unsupported, "this host's kernel cannot hold writes: that takes Linux 5.7 on x86-64");
  UserfaultSupport support;
  support.shared = (api.features & UFFD_FEATURE_WP_HUGETLBFS_SHMEM) != 0;
  support.exact = (api.features & UFFD_FEATURE_EXACT_ADDRESS) != 0;
  support.unpopulated = (api.features & feature_wp_unpopulated) != 0;
  support.features = api.features & (UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
                                     UFFD_FEATURE_EXACT_ADDRESS | UFFD_FEATURE_THREAD_ID | feature_wp_unpopulated);
  return support;
}

Result<UniqueFd> take_userfaultfd(const Process &process, std::chrono::nanoseconds &stopped) {
  TRY_ASSIGN(const auto site, find_call_site(process));
  const auto abandoned = find_abandoned(process);
  TRY_ASSIGN(auto taken, take_in_a_thread(process, site, nullptr, abandoned));
  if (taken.refused == EPERM) {
    TRY_ASSIGN(auto permission, Permission::prepare());
    TRY_ASSIGN(taken, take_in_a_thread(process, site, &permission, {}));
  }
  if (taken.refused != 0)
    return fail_errno("the VM's process may not make a userfaultfd", taken.refused);
  stopped = taken.stopped;
  return std::move(taken.descriptor);
}

} // namespace lararium::qemu
