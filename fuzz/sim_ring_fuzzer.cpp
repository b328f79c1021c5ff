// What a guest's kernel can write into a ring, and what it can say of how far that goes.
#include "sim/ring.h"

#include <cstdint>
#include <cstdlib>

using namespace lararium;
using namespace lararium::gate;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  constexpr std::uint64_t ring_size = 4096;
  static const std::array<std::uint64_t, sim::record_words> hash{1, 2, 3, 4, 5, 6, 7};
  sim::RingReader reader(ring_size, {1, 2}, hash);
  std::vector<std::byte> ring(ring_size);
  // Each round: where the head is, then bytes of the ring.
  const Bytes bytes(reinterpret_cast<const std::byte *>(data), size);
  for (std::size_t at = 0, round = 0; at + 8 <= bytes.size() && round < 16; ++round) {
    const std::uint64_t head = *load<std::uint64_t>(bytes, at);
    at += 8;
    const Bytes part = clamp_subspan(bytes, at, ring_size);
    std::ranges::copy(part, ring.begin());
    at += part.size();
    std::vector<sim::Record> records;
    std::vector<std::string> wrong;
    reader.read(ring, round % 2 == 0 ? head % (2 * ring_size) : head, records, wrong);
    if (records.size() > ring_size / sizeof(sim::RecordHead) || wrong.size() > ring_size / sizeof(sim::RecordHead) + 1)
      std::abort();
    for (const sim::Record &record : records)
      static_cast<void>(sim::captures_of(record));
    if (reader.is_out_of_step())
      reader.restart({3, 4}, reader.tail());
  }
  // The captures of a record that was found genuine, whatever it holds.
  if (const auto top = load<sim::RecordHead>(bytes, 0)) {
    const auto captures = sim::captures_of({*top, bytes.subspan(sizeof *top)});
    if (captures.size() > sim::capture_limit)
      std::abort();
  }
  return 0;
}
