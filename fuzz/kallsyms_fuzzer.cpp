// Random bytes hardly ever hold a token table. So the first byte picks a layout, and the rest changes an image of it:
// each 4 bytes overwrite one byte of the tables, or cut the image off. An input whose first byte is 255 is an image.
#include "../tests/unit/symbols/kallsyms_encoder.h"

#include <cstdlib>

using namespace lararium;

namespace {

const test::KallsymsImage &image_of(std::size_t era) {
  static const auto images = [] {
    std::vector<test::KallsymsImage> all;
    for (const auto &each : test::kallsyms_eras) {
      test::KallsymsEncoder encoder(each);
      auto symbols = encoder.invent(1100, true);
      symbols[600].name = std::string(each.two_byte_lengths ? 300 : 150, 'q');
      all.push_back(encoder.encode(symbols));
    }
    return all;
  }();
  return images[era % images.size()];
}

void carve(Bytes image, Gva base) {
  const auto kallsyms = Kallsyms::carve(image, base);
  if (!kallsyms)
    return;
  if (kallsyms->size() > Kallsyms::max_symbols)
    std::abort();
  std::size_t characters = 0;
  for (std::size_t i = 0; i < kallsyms->size(); ++i)
    for (const char c : (*kallsyms)[i].name)
      characters += c > ' ' && c < 0x7f ? 1 : std::size_t{1} << 32;
  if (characters > Kallsyms::max_name_bytes)
    std::abort();
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  const Bytes input = std::as_bytes(std::span(data, size));
  const auto kind = load<std::uint8_t>(input, 0);
  if (!kind)
    return 0;
  if (*kind == 255) {
    carve(input.subspan(1), test::KallsymsEncoder::base);
    return 0;
  }
  const auto &good = image_of(*kind);
  std::vector<std::byte> bytes = good.bytes;
  const std::size_t span = good.tables_end - good.tables;
  for (std::size_t at = 1; at + 4 <= size; at += 4) {
    const std::size_t where = good.tables + load<std::uint16_t>(input, at).value() % span;
    if (data[at + 2] == 0xff && where < bytes.size())
      bytes.resize(where);
    else if (where < bytes.size())
      bytes[where] = static_cast<std::byte>(data[at + 3]);
  }
  bytes.shrink_to_fit(); // a read past the end is then a read past the allocation
  carve(bytes, good.base);
  return 0;
}
