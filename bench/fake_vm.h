// A process that holds RAM as QEMU does, with page tables in it, so that reading can be measured where no guest runs.
#pragma once

#include "lararium/arch/x86_64_paging.h"
#include "lararium/driver/qemu/memory.h"

#include <cstdint>
#include <memory>
#include <sys/types.h>

namespace lararium::bench {

enum class Backend { shared, anonymous };

class FakeVm {
public:
  // `size`: bytes of RAM, filled with something that is not zero.
  [[nodiscard]] static Result<std::unique_ptr<FakeVm>> start(Backend backend, std::uint64_t size);
  FakeVm(const FakeVm &) = delete;
  FakeVm &operator=(const FakeVm &) = delete;
  ~FakeVm();

  [[nodiscard]] qemu::QemuMemory &memory() { return *memory_; }
  // The same pages, as this process has them mapped itself. What is compared with memory() must read these very pages:
  // where a host put its pages makes one copy up to twice as fast as the other.
  [[nodiscard]] const std::byte *own_view() const { return own_view_; }

  // All of RAM, in pages of 4 KiB, from here on, as Linux has its direct map.
  static constexpr Gva direct_map{0xffff888000000000};
  [[nodiscard]] x86_64::PageTableRoot root() const { return root_; }

private:
  FakeVm(pid_t child, std::byte *own_view, std::uint64_t size) : child_(child), own_view_(own_view), size_(size) {}
  pid_t child_;
  std::byte *own_view_;
  std::uint64_t size_;
  x86_64::PageTableRoot root_{};
  std::unique_ptr<qemu::QemuMemory> memory_;
};

} // namespace lararium::bench
