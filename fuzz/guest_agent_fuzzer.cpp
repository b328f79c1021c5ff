// What QEMU's guest agent answers.
#include "lararium/driver/qemu/guest_agent.h"

#include <cstdlib>

using namespace lararium::qemu;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char *>(data), size);
  static_cast<void>(parse_agent_status(text));
  if (decode_base64(encode_base64(text)) != text)
    std::abort();
  if (const auto bytes = decode_base64(text); bytes && bytes->size() > size)
    std::abort();
  return 0;
}
