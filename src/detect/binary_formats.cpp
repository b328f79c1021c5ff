// Formats of programs: each is asked at every exec whether the program is its own.

#include "handler.h"
#include "lararium/os/linux/list.h"

#include <fmt/format.h>
#include <optional>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;
using linux_guest::LayoutResolver;

constexpr std::size_t format_limit = 1 << 10;

class BinaryFormats final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override {
    const Kernel &kernel = scene.kernel();
    LayoutResolver layout(kernel.types());
    const auto node = layout.require("linux_binfmt", "lh");
    TRY(layout.check());
    // Some kernels have several variables "formats". From the format that none is without one comes to all others, and
    // to the head of their list.
    const auto first = kernel.symbol("elf_format");
    const auto start = first ? std::optional(*first + node.offset) : kernel.symbol("formats");
    if (!start)
      return fail(ErrorCode::not_found, "the kernel has neither a symbol elf_format nor formats");
    if (first)
      look_at(scene, *first, findings);
    linux_guest::walk_list(kernel, *start, format_limit, [&](Gva link) {
      const auto symbol = scene.system().symbolize(link);
      if (!symbol || symbol->second != 0 || symbol->first.name != "formats")
        look_at(scene, link - node.offset, findings);
      return true;
    });
    return {};
  }

private:
  static void look_at(const Scene &scene, Gva format, Findings &findings) {
    const Kernel &kernel = scene.kernel();
    for (const std::string_view member : {"load_binary", "load_shlib", "core_dump"}) {
      const auto field = kernel.types().field("linux_binfmt", member);
      const auto function = field ? kernel.read_pointer(format, *field) : std::nullopt;
      if (function && !is_lawful(scene, format + field->offset, *function, Trust::no_foreign))
        judge(scene,
              {.at = format + field->offset,
               .target = *function,
               .what = fmt::format("{} of the binary format at {:#x}", member, format.value),
               .trust = Trust::no_foreign},
              findings);
    }
  }
};

LARARIUM_CHECK(BinaryFormats, "binary_formats", "T1014 T1546", "formats of programs",
               "Each format that is asked at every exec must lie in the kernel or in a module of its tree.")

} // namespace
} // namespace lararium::detect
