// How many records of SIM's rings one core reads and checks in a second; bench/run shows it.
#include "sim/ring.h"

#include <benchmark/benchmark.h>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

using namespace lararium;
using namespace lararium::gate::sim;

constexpr std::uint64_t ring_size = 64 << 10;

// A ring as a guest fills it, from where it was read to until there is no room.
struct Guest {
  std::array<std::uint64_t, record_words> hash{};
  std::array<std::uint64_t, 2> key{1, 2};
  std::vector<std::uint64_t> ring = std::vector<std::uint64_t>(ring_size / 8);
  std::uint64_t head = 0, sequence = 0;

  Guest() {
    for (std::size_t i = 0; i < hash.size(); ++i)
      hash[i] = 0x9e3779b97f4a7c15 * (i + 1);
  }
  std::uint64_t fill(std::uint64_t tail, std::uint32_t size) {
    std::uint64_t records = 0;
    for (;; ++records) {
      const std::uint64_t begin = begin_of_record(head, ring_size);
      if (begin + record_limit - tail > ring_size)
        return records;
      std::uint64_t *to = ring.data() + (begin & (ring_size - 1)) / 8;
      RecordHead record{};
      record.size = size;
      record.captures = 1;
      record.sequence = ++sequence;
      std::memcpy(to, &record, sizeof record);
      const CaptureHead capture{
          .key = 1,
          .length = static_cast<std::uint32_t>(size - sizeof record - sizeof(CaptureHead) - sizeof(Tag)),
          .kind = CaptureKind::path,
          .cut = 0,
          .reserved = 0};
      std::memcpy(reinterpret_cast<std::byte *>(to) + sizeof record, &capture, sizeof capture);
      const Tag tag = tag_of(to, (size - sizeof(Tag)) / 8, hash.data(), key.data());
      std::memcpy(to + (size - sizeof tag) / 8, &tag, sizeof tag);
      head = begin + size;
    }
  }
};

// Bytes of a record: of a process that ends, a file that is opened, a program that is started.
void read_records(benchmark::State &state) {
  Guest guest;
  RingReader reader(ring_size, guest.key, guest.hash);
  std::vector<std::byte> copy(ring_size);
  std::vector<Record> records;
  std::vector<std::string> wrong;
  std::int64_t total = 0, captured = 0;
  for (auto _ : state) {
    state.PauseTiming();
    guest.fill(reader.tail(), static_cast<std::uint32_t>(state.range(0)));
    state.ResumeTiming();
    std::memcpy(copy.data(), guest.ring.data(), ring_size);
    records.clear();
    reader.read(copy, guest.head, records, wrong);
    for (const Record &record : records)
      captured += static_cast<std::int64_t>(captures_of(record).size());
    total += static_cast<std::int64_t>(records.size());
  }
  if (!wrong.empty() || captured != total || total == 0)
    std::abort();
  state.SetItemsProcessed(total);
}

BENCHMARK(read_records)->Arg(208)->Arg(256)->Arg(512)->Unit(benchmark::kMicrosecond);

} // namespace

BENCHMARK_MAIN();
