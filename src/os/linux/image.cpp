#include "image.h"

#include "lararium/symbols/btf.h"
#include "lararium/symbols/elf_note.h"
#include "lararium/symbols/kallsyms.h"
#include "lararium/symbols/linux_banner.h"

#include <algorithm>
#include <fmt/format.h>

namespace lararium::linux_guest {
namespace {

constexpr std::uint64_t image_limit = 512 << 20; // KASLR leaves at most 1 GiB for it; real ones have 30 to 90 MiB

} // namespace

KernelImage::KernelImage(const PhysicalMemory &memory, const KernelLocation &location) {
  const std::uint64_t size = std::min(location.size, image_limit);
  const Bytes view = memory.view(location.physical_base);
  if (view.size() >= size) {
    bytes_ = view.first(size);
    return;
  }
  constexpr std::size_t step = 1 << 20;
  for (const auto &range : memory.ranges()) { // no more than the target has, whatever the page tables say
    if (location.physical_base < range.base || location.physical_base - range.base >= range.size)
      continue;
    copy_.resize(std::min(size, range.size - (location.physical_base - range.base)));
    for (std::size_t at = 0; at < copy_.size(); at += step) {
      const auto part = std::span(copy_).subspan(at, std::min(step, copy_.size() - at));
      if (memory.read(location.physical_base + at, part))
        continue;
      for (std::size_t page = 0; page < part.size(); page += page_size) {
        const auto piece = part.subspan(page, std::min<std::size_t>(page_size, part.size() - page));
        if (!memory.read(location.physical_base + at + page, piece))
          std::ranges::fill(piece, std::byte{});
      }
    }
  }
  bytes_ = copy_;
}

Result<ImageProfile> profile_from_image(const KernelImage &image, const KernelLocation &location) {
  const Bytes bytes = image.bytes();
  ImageProfile result;
  ProfileSource source;

  const auto banner = find_linux_banner(bytes);
  if (!banner)
    return fail(ErrorCode::unknown_os, "no Linux banner in what is mapped as the kernel");
  source.banner = banner->text;

  const auto build_ids = find_build_ids(bytes);
  if (const auto *build_id = choose_build_id(build_ids)) {
    source.build_id = build_id->id;
    source.build_id_offset = build_id->offset;
  } else {
    result.warnings.push_back("the kernel has no build id, its profile is not cached");
  }

  auto kallsyms = Kallsyms::carve(bytes, location.base);
  if (!kallsyms)
    return wrap(std::move(kallsyms).error(), "kernel symbols");
  if (!kallsyms->has_data_symbols())
    result.warnings.push_back("the kernel was built without CONFIG_KALLSYMS_ALL: symbols of data are missing");
  source.symbols.reserve(kallsyms->size());
  for (std::size_t i = 0; i < kallsyms->size(); ++i) {
    const KallsymsSymbol symbol = (*kallsyms)[i];
    const bool absolute = symbol.absolute || symbol.value < location.base.value;
    source.symbols.push_back({symbol.name, absolute ? symbol.value : symbol.value - location.base.value,
                              absolute ? SymbolBase::absolute : SymbolBase::image, symbol.type});
  }

  auto btf = find_btf(bytes);
  if (btf)
    source.btf = btf->bytes;
  else
    result.warnings.push_back("no usable BTF: " + btf.error().describe());
  auto profile = Profile::build(source);
  if (!profile)
    return wrap(std::move(profile).error(), "kernel profile");
  result.profile = std::move(*profile);
  return result;
}

} // namespace lararium::linux_guest
