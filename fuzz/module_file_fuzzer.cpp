// A module's file: its sections, symbols and relocations, and the image that is made of it.
#include "lararium/symbols/relocated_module.h"

#include <cstdlib>

using namespace lararium;

namespace {
constexpr std::uint64_t text = 0xffffffffc0000000, elsewhere = 0xffffffffa0000000;
} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  const auto file = ModuleFile::parse(std::as_bytes(std::span(data, size)));
  if (!file)
    return 0;
  const auto module = RelocatedModule::make(
      *file,
      [](std::string_view name) -> std::optional<std::uint64_t> {
        return name == ".text" ? std::optional(text) : std::nullopt;
      },
      [](std::string_view name) -> std::optional<std::uint64_t> {
        return name.empty() ? std::nullopt : std::optional(text - name.size());
      },
      elsewhere);
  if (!module)
    return 0;
  for (std::size_t i = 0; i < module->sections().size(); ++i) {
    const LinkedSection &section = module->sections()[i];
    static_cast<void>(module->is_placed(i));
    volatile std::byte last{};
    if (!section.content.empty())
      last = section.content.back();
    static_cast<void>(last);
  }
  for (std::size_t i = 1; i < module->unknown().size(); ++i)
    if (module->unknown()[i].at < module->unknown()[i - 1].at)
      std::abort();
  return 0;
}
