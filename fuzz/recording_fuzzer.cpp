#include "../src/driver/replay/recording.h"
#include "dump_exercise.h"

#include "lararium/driver/replay.h"

using namespace lararium;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  const Bytes bytes = std::as_bytes(std::span(data, size));
  if (auto target = decode_recording(bytes))
    exercise(*target);
  // No fuzzer gets past zstd's checksum, so what lies behind it is also tried by itself.
  if (auto recording = replay::decode_payload(bytes)) {
    Target target = replay::make_target(*std::move(recording));
    exercise(target);
  }
  return 0;
}
