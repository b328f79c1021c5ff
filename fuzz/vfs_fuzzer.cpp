// A guest whose memory lies: the tiny guest of the unit tests, with words changed. The first byte picks the kernel's
// era; then each 12 bytes change one word: by a value, by a pointer to something else of the guest, by a copy of
// another word, or by one bit. All views of files, areas, mounts and cached files must end, within their bounds.
#include "../tests/unit/os/linux/tiny_guest.h"
#include "environment.h"
#include "files.h"
#include "maps.h"
#include "mounts.h"
#include "process_image.h"
#include "recover.h"

#include <cstdlib>

using namespace lararium;
using namespace lararium::linux_guest;
using lararium::test::TinyGuest;

namespace {

struct Change {
  std::uint64_t place, before;
};

std::vector<Change> bend(TinyGuest &guest, Bytes input) {
  std::vector<Change> changes;
  const auto memory = guest.memory.bytes();
  for (std::size_t at = 0; at + 12 <= input.size() && changes.size() < 64; at += 12) {
    const auto kind = *load<std::uint16_t>(input, at);
    const std::uint64_t place = *load<std::uint16_t>(input, at + 2) * 8ull % guest.used() & ~7ull;
    const auto value = *load<std::uint64_t>(input, at + 4);
    std::uint64_t word = *load<std::uint64_t>(memory, place);
    changes.push_back({place, word});
    const std::uint64_t other = value % guest.used();
    switch (kind % 5) {
    case 0: word = value; break;
    case 1: word = TinyGuest::direct_map.value + (other & ~7ull); break;
    case 2: word = TinyGuest::direct_map.value + other; break; // with tags in its low bits
    case 3: word = *load<std::uint64_t>(memory, other & ~7ull); break;
    default: word ^= std::uint64_t{1} << (value & 63); break;
    }
    std::memcpy(memory.data() + place, &word, 8);
  }
  return changes;
}

// No text and no list may be larger than what this guest's memory can hold many times over.
template <class T> void check(const Result<View<T>> &view) {
  if (view && (view->items.size() > TinyGuest::memory_size || view->status.warnings.size() > ViewStatus::warning_limit))
    std::abort();
}

void look(TinyGuest &guest) {
  const Kernel &kernel = *guest.kernel;
  kernel.space().flush();
  check(read_open_files(kernel, std::nullopt));
  for (const std::int32_t pid : {1, 7}) {
    check(read_memory_regions(kernel, pid));
    check(read_mounts(kernel, pid));
    check(read_environment(kernel, pid));
  }
  (void)read_process_image(kernel, 7);
  for (const char *name :
       {"/tmp/data", "/etc/link", "/etc/gone (deleted)", "/etc/../tmp/data", "/memfd:x", "fd:1:70", "inode:2"}) {
    std::uint64_t end = 0, given = 0;
    const auto file = recover_file(kernel, name, [&](std::uint64_t offset, Bytes bytes) -> Result<void> {
      if (offset < end || bytes.empty() || bytes.size() > page_size)
        std::abort();
      end = offset + bytes.size();
      given += bytes.size();
      return {};
    });
    if (given > TinyGuest::memory_size || (file && (end > file->size || given != file->cached_bytes)))
      std::abort();
  }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  static TinyGuest guests[] = {TinyGuest(test::tiny_new), TinyGuest(test::tiny_old)};
  if (size == 0)
    return 0;
  TinyGuest &guest = guests[data[0] % std::size(guests)];
  const auto changes = bend(guest, std::as_bytes(std::span(data, size)).subspan(1));
  look(guest);
  for (auto change = changes.rbegin(); change != changes.rend(); ++change)
    std::memcpy(guest.memory.bytes().data() + change->place, &change->before, 8);
  return 0;
}
