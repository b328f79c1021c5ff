// userfaultfd(2) of another process: taken out of it, and used to hold its writes.
#pragma once

#include "lararium/base/result.h"
#include "lararium/base/unique_fd.h"
#include "lararium/driver/qemu/process.h"

#include <chrono>
#include <cstdint>
#include <optional>
#include <string_view>

namespace lararium::qemu {

// What this host's kernel can do, asked of it in our own process, before the VM's is touched.
struct UserfaultSupport {
  bool shared = false;      // memory of shmem, memfd and hugetlbfs (5.19), besides private memory (5.7)
  bool exact = false;       // the address of a write within its page (5.18)
  bool unpopulated = false; // pages that private memory does not have yet (6.4)
  std::uint64_t features = 0;
};
// `unsupported`: this kernel cannot hold writes at all.
[[nodiscard]] Result<UserfaultSupport> ask_userfault_support();

// The features in /proc/PID/fdinfo/N of a userfaultfd; nothing: it is none, or this kernel does not tell.
[[nodiscard]] std::optional<std::uint64_t> parse_userfault_features(std::string_view text);

// A userfaultfd of `process`, of which that process has no copy: only so the kernel lets all go on when we die. The
// process makes it in one stop of one thread, for which `stopped` gives the time; vm.unprivileged_userfaultfd is 1 for
// the length of that call where the process runs without CAP_SYS_PTRACE, and is put back even if we die. What one of us
// left there who was killed between two calls is closed on this occasion.
[[nodiscard]] Result<UniqueFd> take_userfaultfd(const Process &process, std::chrono::nanoseconds &stopped);

} // namespace lararium::qemu
