// Dumps of every format; one fuzzer for each, which differ in what they start from.
#include "dump_exercise.h"

#include "lararium/driver/dump.h"

using namespace lararium;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  if (auto target = open_dump_image(std::as_bytes(std::span(data, size)), "fuzz"))
    exercise(*target);
  return 0;
}
