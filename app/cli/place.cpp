#include "place.h"

#include "text.h"

#include <algorithm>
#include <fmt/format.h>

namespace lararium::cli {

Result<Place> resolve_place(Context &context, std::string_view text, std::optional<std::int32_t> pid) {
  constexpr std::string_view physical = "phys:";
  Place place;
  if (text.starts_with(physical)) {
    const auto address = parse_number(text.substr(physical.size()));
    if (!address)
      return fail(ErrorCode::usage, fmt::format("not an address: {} (phys:0x1000 is one)", visible(text)));
    if (pid)
      return fail(ErrorCode::usage, "a physical address belongs to no process: leave out --pid");
    place.kind = Place::Kind::physical;
    place.address = *address;
    return place;
  }
  if (pid) {
    place.kind = Place::Kind::process;
    place.pid = *pid;
  }
  if (const auto address = parse_number(text)) {
    place.address = *address;
    return place;
  }
  const std::size_t sign = text.find_first_of("+-");
  const std::string_view name = text.substr(0, sign);
  std::uint64_t distance = 0;
  if (sign != text.npos) {
    const auto number = parse_number(text.substr(sign + 1));
    if (!number)
      return fail(ErrorCode::usage, fmt::format("not an address: {} (symbol+0x10 is one)", visible(text)));
    distance = text[sign] == '+' ? *number : 0 - *number;
  }
  TRY_ASSIGN(OperatingSystem *const guest, context.guest());
  const auto symbol = guest->find_symbol(name);
  if (!symbol)
    return fail(
        ErrorCode::not_found,
        fmt::format("the guest's kernel has no symbol {} (addresses are written 0x... or phys:0x...)", visible(name)));
  place.address = symbol->address.value + distance;
  return place;
}

Result<PlaceReader> PlaceReader::open(Context &context, const Place &place) {
  TRY_ASSIGN(Target *const target, context.target());
  OperatingSystem *guest = nullptr;
  if (place.kind != Place::Kind::physical) {
    TRY_ASSIGN(guest, context.guest());
  }
  return PlaceReader(place, target, guest);
}

Result<std::size_t> PlaceReader::read(std::uint64_t offset, std::span<std::byte> out) const {
  const std::uint64_t address = place_.address + offset;
  switch (place_.kind) {
  case Place::Kind::kernel: return guest_->read_kernel(Gva{address}, out);
  case Place::Kind::process: return guest_->read_process(place_.pid, Gva{address}, out);
  case Place::Kind::physical: break;
  }
  std::size_t done = 0;
  while (done < out.size()) {
    const Gpa at{address + done};
    const std::size_t length = std::min<std::size_t>(out.size() - done, page_size - at.page_offset());
    if (!target_->memory->read(at, out.subspan(done, length)))
      break;
    done += length;
  }
  return done;
}

Error PlaceReader::fault_at(std::uint64_t offset) const {
  const Space space = place_.kind == Place::Kind::physical ? Space::guest_physical : Space::guest_virtual;
  return {ErrorCode::memory_fault, space, place_.address + offset, {}};
}

} // namespace lararium::cli
