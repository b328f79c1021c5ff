// How fast guest-physical memory and guest-virtual addresses are read, beside memcpy in the same run. bench/run runs it
// with interleaved repetitions and takes the best of each.
#include "fake_vm.h"
#include "lararium/space/address_space.h"

#include <benchmark/benchmark.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

using namespace lararium;
using bench::Backend;
using bench::FakeVm;

constexpr std::uint64_t ram_size = 128 << 20;
constexpr std::uint64_t walked = 64 << 20; // reads go through this much, block after block

FakeVm &vm(Backend backend) {
  static const auto make = [](Backend which) {
    auto started = FakeVm::start(which, ram_size);
    if (!started) {
      std::fprintf(stderr, "%s\n", started.error().describe().c_str());
      std::exit(1);
    }
    return std::move(*started);
  };
  static const auto shared = make(Backend::shared), anonymous = make(Backend::anonymous);
  return backend == Backend::shared ? *shared : *anonymous;
}

// Calls `read(offset, out)` for one block of state.range(0) bytes after the other.
template <class Read> void read_blocks(benchmark::State &state, Read &&read) {
  std::vector<std::byte> out(static_cast<std::size_t>(state.range(0)), std::byte{1});
  std::uint64_t at = 0;
  for (auto _ : state) {
    if (!read(at, std::span(out)))
      return state.SkipWithError("the read failed");
    benchmark::ClobberMemory();
    at = (at + out.size()) % walked;
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) * state.range(0));
}

void bulk_memcpy(benchmark::State &state, Backend backend) {
  const std::byte *source = vm(backend).own_view();
  read_blocks(state, [&](std::uint64_t at, std::span<std::byte> out) {
    std::memcpy(out.data(), source + at, out.size());
    return true;
  });
}

void bulk_read(benchmark::State &state, Backend backend) {
  auto &memory = vm(backend).memory();
  read_blocks(state, [&](std::uint64_t at, std::span<std::byte> out) {
    memory.refresh(); // nothing comes from the driver's cache
    return memory.read(Gpa{at}, out);
  });
}

#define BULK(function, backend)                                                                                        \
  BENCHMARK_CAPTURE(function, backend, Backend::backend)->Arg(4 << 10)->Arg(64 << 10)->Arg(1 << 20)->Arg(64 << 20)
BULK(bulk_memcpy, shared);
BULK(bulk_read, shared);
BULK(bulk_memcpy, anonymous);
BULK(bulk_read, anonymous);

// One field of 8 bytes, at places far from each other in `pages` pages.
template <class Read> void read_words(benchmark::State &state, Read &&read) {
  const auto pages = static_cast<std::uint64_t>(state.range(0));
  constexpr std::uint64_t stride = 61; // pages: coprime to every power of two
  std::uint64_t page = 0, sum = 0;
  for (auto _ : state) {
    std::uint64_t word = 0;
    // Not at one offset in every page: those would share a few lines of the processor's caches.
    if (!read(page * page_size + page * 192 % page_size, word))
      return state.SkipWithError("the read failed");
    sum += word;
    page = (page + stride) % pages;
  }
  benchmark::DoNotOptimize(sum);
}

void word_memcpy(benchmark::State &state) {
  const std::byte *source = vm(Backend::shared).own_view();
  read_words(state, [&](std::uint64_t at, std::uint64_t &word) {
    std::memcpy(&word, source + at, sizeof word);
    benchmark::DoNotOptimize(word);
    return true;
  });
}

void word_physical(benchmark::State &state, Backend backend) {
  const auto &memory = vm(backend).memory();
  read_words(state,
             [&](std::uint64_t at, std::uint64_t &word) { return memory.read(Gpa{at}, writable_bytes_of(word)); });
}

void word_virtual(benchmark::State &state, Backend backend) {
  const AddressSpace space(vm(backend).memory(), vm(backend).root());
  read_words(state, [&](std::uint64_t at, std::uint64_t &word) {
    return space.read(FakeVm::direct_map + at, writable_bytes_of(word));
  });
}

void translate(benchmark::State &state, Backend backend) {
  const AddressSpace space(vm(backend).memory(), vm(backend).root());
  read_words(state, [&](std::uint64_t at, std::uint64_t &word) {
    const auto translation = space.translate(FakeVm::direct_map + at);
    word = translation ? translation->address.value : 0;
    return translation.has_value();
  });
}

// 512 pages fit the cache of translations, 16384 do not.
BENCHMARK(word_memcpy)->Arg(512)->Arg(16384);
BENCHMARK_CAPTURE(word_physical, shared, Backend::shared)->Arg(512)->Arg(16384);
BENCHMARK_CAPTURE(word_virtual, shared, Backend::shared)->Arg(512)->Arg(16384);
BENCHMARK_CAPTURE(translate, shared, Backend::shared)->Arg(512)->Arg(16384);
BENCHMARK_CAPTURE(word_virtual, anonymous, Backend::anonymous)->Arg(512)->Arg(16384);

} // namespace

BENCHMARK_MAIN();
