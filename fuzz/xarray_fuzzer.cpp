// An XArray in a memory that is all the fuzzer's: the walk ends, in bounded time, whatever nodes point to.
#include "lararium/os/linux/xarray.h"
#include "os/linux/fake_kernel.h"

#include <cstdlib>

using namespace lararium;
using namespace lararium::linux_guest;

namespace {

std::vector<std::byte> types() {
  lararium::test::BtfBuilder btf;
  const auto byte = btf.integer("unsigned char", 1), word = btf.integer("unsigned int", 4);
  const auto pointer = btf.pointer(0), slots = btf.array(pointer, 16);
  btf.structure("xa_node", 144,
                {{"shift", byte, 0}, {"offset", byte, 8}, {"parent", pointer, 64}, {"slots", slots, 16 * 8}});
  const auto tree = btf.structure("xarray", 16, {{"xa_head", pointer, 64}});
  btf.structure("idr", 24, {{"idr_rt", tree, 0}, {"idr_base", word, 128}});
  return btf.bytes();
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *input, std::size_t size) {
  static const auto btf = types();
  linux_guest::test::FakeKernel fake(btf, {}, Bytes(reinterpret_cast<const std::byte *>(input), size));
  if (!fake.kernel)
    std::abort();
  const auto reader = XarrayReader::create(*fake.kernel);
  if (!reader)
    std::abort();
  constexpr std::size_t limit = 1000;
  std::size_t visited = 0;
  const auto result = reader->for_each_of_idr(linux_guest::test::direct_map, limit, [&](const XarrayEntry &) {
    ++visited;
    return true;
  });
  if (visited > limit || visited != result.visited)
    std::abort();
  return 0;
}
