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

namespace {

// Where the symbols say that the parts of the image lie which would otherwise be searched for.
struct Landmarks {
  std::optional<std::uint64_t> banner, notes_begin, notes_end, btf_begin, btf_end;

  void note(std::string_view name, std::uint64_t offset) {
    if (name == "linux_banner")
      banner = offset;
    else if (name == "__start_notes")
      notes_begin = offset;
    else if (name == "__stop_notes")
      notes_end = offset;
    else if (name == "__start_BTF")
      btf_begin = offset;
    else if (name == "__stop_BTF")
      btf_end = offset;
  }
};

// The part between two landmarks, at most `limit` bytes; empty when they contradict each other.
Bytes between(Bytes image, std::optional<std::uint64_t> begin, std::optional<std::uint64_t> end, std::size_t limit) {
  if (!begin || !end || *begin >= *end || *end > image.size() || *end - *begin > limit)
    return {};
  return image.subspan(*begin, *end - *begin);
}

std::optional<std::string> banner_of(Bytes image, const Landmarks &landmarks) {
  if (landmarks.banner && *landmarks.banner < image.size())
    if (auto text = read_linux_banner(image.subspan(*landmarks.banner)))
      return text;
  if (auto found = find_linux_banner(image))
    return std::move(found->text);
  return std::nullopt;
}

// The build id's bytes are searched in `.notes`, which lies between two symbols on most kernels, else in all of the
// image.
void set_build_id(ProfileSource &source, Bytes image, const Landmarks &landmarks) {
  constexpr std::size_t notes_limit = 1 << 20;
  const Bytes notes = between(image, landmarks.notes_begin, landmarks.notes_end, notes_limit);
  for (const Bytes place : {notes, image}) {
    if (place.empty())
      continue;
    const auto found = find_build_ids(place);
    if (const auto *note = choose_build_id(found)) {
      source.build_id = note->id;
      source.build_id_offset = note->offset + static_cast<std::uint64_t>(place.data() - image.data());
      return;
    }
  }
}

std::unexpected<Error> no_linux() {
  return fail(ErrorCode::unknown_os, "no operating system that Lararium knows was found in the guest's memory: what is "
                                     "mapped where Linux has its kernel holds no Linux banner");
}

// The profile with the types that the landmarks show, else with those that a search finds, else with none.
Result<std::shared_ptr<const Profile>> build_with_types(ProfileSource &source, Bytes image, const Landmarks &landmarks,
                                                        std::vector<std::string> &warnings) {
  source.btf = between(image, landmarks.btf_begin, landmarks.btf_end, btf_size_limit);
  if (btf_sections(source.btf))
    if (auto profile = Profile::build(source))
      return profile;
  const auto found = find_btf(image);
  if (found)
    source.btf = found->bytes;
  else {
    source.btf = {};
    warnings.push_back("no usable type information: " + found.error().describe());
  }
  return Profile::build(source);
}

} // namespace

Result<ImageProfile> profile_from_image(const KernelImage &image, const KernelLocation &location) {
  const Bytes bytes = image.bytes();
  ImageProfile result;
  ProfileSource source;

  auto kallsyms = Kallsyms::carve(bytes, location.base);
  if (!kallsyms) {
    if (!find_linux_banner(bytes))
      return no_linux();
    return wrap(std::move(kallsyms).error(), "kernel symbols");
  }
  if (!kallsyms->has_data_symbols())
    result.warnings.emplace_back("the kernel was built without CONFIG_KALLSYMS_ALL: symbols of data are missing");
  Landmarks landmarks;
  source.symbols.reserve(kallsyms->size());
  for (std::size_t i = 0; i < kallsyms->size(); ++i) {
    const KallsymsSymbol symbol = (*kallsyms)[i];
    const bool absolute = symbol.absolute || symbol.value < location.base.value;
    const std::uint64_t value = absolute ? symbol.value : symbol.value - location.base.value;
    if (!absolute)
      landmarks.note(symbol.name, value);
    source.symbols.push_back({symbol.name, value, absolute ? SymbolBase::absolute : SymbolBase::image, symbol.type});
  }

  auto banner = banner_of(bytes, landmarks);
  if (!banner)
    return no_linux();
  source.banner = std::move(*banner);
  set_build_id(source, bytes, landmarks);
  if (source.build_id.size == 0)
    result.warnings.emplace_back("the kernel has no build id, so its profile is not cached");

  auto profile = build_with_types(source, bytes, landmarks, result.warnings);
  if (!profile)
    return wrap(std::move(profile).error(), "kernel profile");
  result.profile = std::move(*profile);
  return result;
}

} // namespace lararium::linux_guest
