// A kernel in fake memory: 4 MiB of RAM that is mapped where the kernel maps all of memory, with types made by hand.
#pragma once

#include "lararium/driver/fake.h"
#include "lararium/os/linux/kernel.h"
#include "symbols/btf_builder.h"

#include <memory>
#include <vector>

namespace lararium::linux_guest::test {

inline constexpr Gva direct_map{0xffff888000000000};
inline constexpr std::uint64_t fake_ram = 4 << 20;

class FakeKernel {
public:
  // `content` becomes the memory from its start on; page tables lie at its end.
  explicit FakeKernel(const std::vector<std::byte> &btf, std::vector<ProfileSource::InputSymbol> symbols = {},
                      Bytes content = {})
      : memory(fake_ram), tables(memory, Gpa{fake_ram - 64 * page_size}) {
    if (!content.empty())
      memory.write(Gpa{0}, content.first(std::min<std::size_t>(content.size(), fake_ram - 64 * page_size)));
    for (std::uint64_t at = 0; at < fake_ram; at += 2 << 20)
      tables.map(direct_map + at, Gpa{at}, FakePageTables::PageSize::large_2m);
    ProfileSource source;
    source.btf = btf;
    source.symbols = std::move(symbols);
    if (auto profile = Profile::build(source))
      kernel = std::make_unique<Kernel>(
          memory,
          KernelLocation{{tables.root(), static_cast<int>(tables.levels())}, direct_map, Gpa{0}, fake_ram, "test"},
          *profile);
  }

  // Writes at an address of the direct map.
  template <class T> void put(Gva address, const T &value) { memory.write_value(Gpa{address - direct_map}, value); }

  FakeMemory memory;
  FakePageTables tables;
  std::unique_ptr<Kernel> kernel; // null: the types or symbols were refused
};

} // namespace lararium::linux_guest::test
