// An ISF file that somebody gave us; what it yields goes out again.
#include "lararium/symbols/isf.h"

#include <cstdlib>

using namespace lararium;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  const auto profile = import_isf(std::as_bytes(std::span(data, size)));
  if (!profile)
    return 0;
  std::string text;
  const auto done = export_isf(**profile, [&](std::string_view piece) -> Result<void> {
    text += piece;
    return {};
  });
  if (!done)
    return 0;
  const auto again = import_isf(bytes_of(text));
  // A symbol list without _text cannot be read back; everything else that we write we also read.
  if (!again && again.error().message.find("_text") == std::string::npos &&
      again.error().message.find("too ") == std::string::npos)
    std::abort();
  return 0;
}
