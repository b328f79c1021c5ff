// Which pages of a guest's memory nobody may change unnoticed.
#pragma once

#include "lararium/base/result.h"
#include "lararium/os/linux/kernel.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lararium::gate {

enum class PageKind : std::uint8_t {
  kernel_text,
  read_only_data, // of the kernel's image, with the system call tables
  idt,
  gdt, // of each CPU: the kernel writes to it at each change of tasks, so it is compared now and then, not protected
  module_text,
};
[[nodiscard]] std::string_view name_of(PageKind kind);

struct GuardedPage {
  Gpa frame;
  Gva address; // where the kernel itself has it
  PageKind kind = PageKind::kernel_text;
  std::string module{}; // empty: the kernel's image
  Gva owner{};          // struct module

  auto operator<=>(const GuardedPage &) const = default;
};

// By frame, each once. `not_found`: the kernel has not sealed its text yet (it boots), or says not where it lies.
[[nodiscard]] Result<std::vector<GuardedPage>> find_guarded_pages(const linux_guest::Kernel &kernel);

// Text of modules that are in the kernel's list now, as find_guarded_pages() has it. Live patches are left out: the
// kernel writes into them.
[[nodiscard]] std::vector<GuardedPage> find_module_pages(const linux_guest::Kernel &kernel);

} // namespace lararium::gate
