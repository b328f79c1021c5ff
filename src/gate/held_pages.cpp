#include "held_pages.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

namespace lararium::gate {

Result<void> write_held(WriteProtection &protection, Gpa address, Bytes bytes) {
  const auto page = protection.page_in_place(address.page());
  if (page.empty())
    return protection.overwrite(address, bytes);
  std::byte *const target = page.data() + address.page_offset();
  if (bytes.size() == sizeof(std::uint64_t)) {
    std::uint64_t value = 0;
    std::memcpy(&value, bytes.data(), sizeof value);
    std::atomic_ref(*reinterpret_cast<std::uint64_t *>(target)).store(value, std::memory_order_release);
  } else {
    std::memcpy(target, bytes.data(), bytes.size());
  }
  return {};
}

PageRepair put_back(WriteProtection &protection, PhysicalMemory &memory, Gpa page, Bytes should_be) {
  static_cast<void>(protection.protect(page, page_size));
  std::array<std::byte, page_size> now{};
  memory.refresh();
  PageRepair repair;
  if (!memory.read(page, now))
    return repair;
  std::size_t first = 0, last = page_size;
  while (first < page_size && now[first] == should_be[first])
    ++first;
  while (last > first && now[last - 1] == should_be[last - 1])
    --last;
  repair.offset = first;
  repair.right = should_be.subspan(first, last - first);
  repair.found.assign(now.begin() + static_cast<std::ptrdiff_t>(first),
                      now.begin() + static_cast<std::ptrdiff_t>(last));
  repair.done = protection.overwrite(page + first, repair.right).has_value();
  memory.refresh();
  return repair;
}

} // namespace lararium::gate
