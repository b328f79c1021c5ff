// Formats of programs: each is asked at every exec whether the program is its own.

#include "handler.h"
#include "lararium/os/linux/list.h"

#include <fmt/format.h>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;
using linux_guest::LayoutResolver;

constexpr std::size_t format_limit = 1 << 10;

class BinaryFormats final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override {
    const Kernel &kernel = scene.kernel();
    const auto list = kernel.symbol("formats");
    if (!list)
      return fail(ErrorCode::not_found, "the kernel has no symbol formats");
    LayoutResolver layout(kernel.types());
    const auto node = layout.require("linux_binfmt", "lh");
    TRY(layout.check());
    linux_guest::walk_list(kernel, *list, format_limit, [&](Gva link) {
      const Gva format = link - node.offset;
      for (const std::string_view member : {"load_binary", "load_shlib", "core_dump"}) {
        const auto field = layout.optional("linux_binfmt", member);
        const auto function = field ? kernel.read_pointer(format, *field) : std::nullopt;
        if (function && !is_lawful(scene, format + field->offset, *function, Trust::no_foreign))
          judge(scene,
                {.at = format + field->offset,
                 .target = *function,
                 .what = fmt::format("{} of the binary format at {:#x}", member, format.value),
                 .trust = Trust::no_foreign},
                findings);
      }
      return true;
    });
    return {};
  }
};

LARARIUM_CHECK(BinaryFormats, "binary_formats", "T1014 T1546", "formats of programs",
               "Each format that is asked at every exec must lie in the kernel or in a module of its tree.")

} // namespace
} // namespace lararium::detect
