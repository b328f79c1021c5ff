// What a gdb stub sends, cut at any place: packets never grow beyond their limit.
#include "gdb_stub.h"

#include <cstdlib>
#include <string_view>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  lararium::qemu::GdbPackets packets;
  const std::string_view text(reinterpret_cast<const char *>(data), size);
  const std::size_t cut = size == 0 ? 0 : data[0] % size;
  if (!packets.add(text.substr(0, cut)) || !packets.add(text.substr(cut)))
    return 0;
  while (const auto packet = packets.next())
    if (packet->size() > lararium::qemu::GdbPackets::longest)
      std::abort();
  return 0;
}
