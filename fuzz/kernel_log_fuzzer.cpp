// The kernel's log as a guest may leave it: both decoders on whatever bytes, with layouts like the real ones.
#include "kernel_log.h"

#include <algorithm>
#include <cstdlib>

using namespace lararium;
using namespace lararium::linux_guest;

namespace {

FieldLocation at(std::uint32_t offset, std::uint32_t size) { return {offset, size, 0, 8 * offset, 0}; }

void check_sorted(const std::vector<LogRecord> &records) {
  if (!std::ranges::is_sorted(records, {}, &LogRecord::sequence))
    std::abort();
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *input, std::size_t size) {
  const Bytes bytes(reinterpret_cast<const std::byte *>(input), size);
  constexpr std::size_t head_size = 32;
  if (size < head_size)
    return 0;
  const auto count_bits = load<std::uint8_t>(bytes, 0).value(), size_bits = load<std::uint8_t>(bytes, 1).value();
  const auto tail = load<std::uint64_t>(bytes, 8).value(), head = load<std::uint64_t>(bytes, 16).value();
  const auto index = load<std::uint32_t>(bytes, 4).value(), sequence = load<std::uint32_t>(bytes, 24).value();
  const Bytes rest = bytes.subspan(head_size);

  LogRingLayout ring;
  ring.state = at(0, 8);
  ring.begin = at(8, 8);
  ring.next = at(16, 8);
  ring.descriptor_size = 24;
  ring.sequence = at(0, 8);
  ring.time = at(8, 8);
  ring.text_length = at(16, 2);
  ring.facility = at(18, 1);
  ring.level = {19, 1, 0, 8 * 19 + 5, 3};
  ring.caller = at(20, 4);
  ring.info_size = 32;
  ring.block_text = 8;
  const std::size_t third = rest.size() / 3;
  std::size_t changed = 0;
  check_sorted(decode_log_ring(
      ring, {rest.first(third), rest.subspan(third, third), rest.subspan(2 * third), count_bits, size_bits, tail, head},
      rest.first(third), changed));

  LogBufferLayout buffer;
  buffer.time = at(0, 8);
  buffer.length = at(8, 2);
  buffer.text_length = at(10, 2);
  buffer.facility = at(14, 1);
  buffer.level = {15, 1, 0, 8 * 15 + 5, 3};
  buffer.header_size = 16;
  bool complete = false;
  check_sorted(decode_log_buffer(buffer, rest, index, sequence, head, complete));
  return 0;
}
