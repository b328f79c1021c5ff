// How fast a guest's code is compared with what it was at the first look, beside memcmp of the same bytes with a copy
// of them, in the same run. bench/run runs it with interleaved repetitions.
#include "first_look.h"

#include <benchmark/benchmark.h>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

namespace {

using namespace lararium;
using detect::FirstLook;

constexpr std::uint64_t text_size = 256 << 20; // more than the caches hold
constexpr Gva text_begin{0xffffffff81000000};

const std::vector<std::byte> &text() {
  static const std::vector<std::byte> bytes = [] {
    std::vector<std::byte> random(text_size);
    std::mt19937_64 source(1);
    for (std::size_t at = 0; at < random.size(); at += 8) {
      const std::uint64_t word = source();
      std::memcpy(random.data() + at, &word, sizeof word);
    }
    return random;
  }();
  return bytes;
}

void compare_by_memcmp(benchmark::State &state) {
  static const std::vector<std::byte> copy = text();
  for (auto _ : state)
    if (std::memcmp(copy.data(), text().data(), text_size) != 0)
      std::abort();
}

void compare_with_first_look(benchmark::State &state) {
  FirstLook first(text_begin, text_size, 0x1234567890abcdef);
  const auto look = [&] {
    return first.look(
        [](Gva at, std::span<std::byte> buffer) { return Bytes(text()).subspan(at - text_begin, buffer.size()); },
        [] { return std::span<const detect::Mask>(); }, [](Gva, Bytes) {});
  };
  for (int i = 0; i < 3; ++i)
    static_cast<void>(look());
  for (auto _ : state)
    if (look() != FirstLook::Sameness::untouched)
      std::abort();
}

BENCHMARK(compare_by_memcmp)->Unit(benchmark::kMillisecond);
BENCHMARK(compare_with_first_look)->Unit(benchmark::kMillisecond);

} // namespace

BENCHMARK_MAIN();
