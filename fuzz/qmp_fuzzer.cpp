// A stream of QMP, as any server may send it, in pieces of any size.
#include "lararium/driver/qemu/monitor.h"
#include "ports.h"

#include <algorithm>

using namespace lararium::qemu;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  if (size == 0)
    return 0;
  // The first byte says how the rest is cut.
  const std::size_t step = 1 + data[0];
  const std::string_view stream(reinterpret_cast<const char *>(data) + 1, size - 1);
  MessageSplitter splitter;
  for (std::size_t at = 0; at < stream.size(); at += step) {
    if (!splitter.add(stream.substr(at, step)))
      return 0;
    while (const auto line = splitter.next())
      if (const auto message = parse_qmp_message(*line))
        static_cast<void>(parse_rx_filters(message->text));
  }
  return 0;
}
