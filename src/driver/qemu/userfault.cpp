#include "userfault.h"

#include "guardian.h"
#include "remote_call.h"

#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <optional>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <thread>
#include <unistd.h>

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

struct Taken {
  UniqueFd descriptor;
  std::chrono::nanoseconds stopped{};
  int refused = 0; // the errno with which the process could not make one
};

// One stop. Runs in a thread of its own: when that ends, the kernel lets go of whatever it may still hold.
Result<Taken> take_in_one_stop(const Process &process, const CallSite &site, Permission *permission) {
  TRY_ASSIGN(auto thread, StoppedThread::stop(process, site));
  Taken taken;
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

Result<Taken> take_in_a_thread(const Process &process, const CallSite &site, Permission *permission) {
  Result<Taken> taken = fail(ErrorCode::io, "");
  std::thread([&] { taken = take_in_one_stop(process, site, permission); }).join();
  return taken;
}

} // namespace

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
  TRY_ASSIGN(auto taken, take_in_a_thread(process, site, nullptr));
  if (taken.refused == EPERM) {
    TRY_ASSIGN(auto permission, Permission::prepare());
    TRY_ASSIGN(taken, take_in_a_thread(process, site, &permission));
  }
  if (taken.refused != 0)
    return fail_errno("the VM's process may not make a userfaultfd", taken.refused);
  stopped = taken.stopped;
  return std::move(taken.descriptor);
}

} // namespace lararium::qemu
