#include "lararium/os/linux/kernel.h"

#include <algorithm>

namespace lararium::linux_guest {

Kernel::Kernel(const PhysicalMemory &memory, KernelLocation location, std::shared_ptr<const Profile> profile)
    : memory_(&memory), location_(std::move(location)), space_(memory, location_.root), profile_(std::move(profile)) {}

std::optional<std::uint64_t> Kernel::read_field(Gva object, const FieldLocation &field) const {
  if (field.bit_size != 0) {
    // The bytes that hold the bits, at most 8 + 1 of them; bit fields wider than 57 unaligned bits do not occur.
    const std::uint32_t first = field.bit_offset / 8;
    const std::uint32_t shift = field.bit_offset % 8;
    const std::uint32_t bytes = std::min<std::uint32_t>((shift + field.bit_size + 7) / 8, 8);
    std::uint64_t value = 0;
    if (!space_.read(object + first, writable_bytes_of(value).first(bytes)))
      return std::nullopt;
    value >>= shift;
    return field.bit_size >= 64 ? value : value & ((std::uint64_t{1} << field.bit_size) - 1);
  }
  // Nearly all have one of two sizes, and a copy of a known size is one instruction.
  if (field.size == 8)
    return space_.read<std::uint64_t>(object + field.offset);
  if (field.size == 4)
    return space_.read<std::uint32_t>(object + field.offset);
  std::uint64_t value = 0;
  if (field.size == 0 || field.size > 8 ||
      !space_.read(object + field.offset, writable_bytes_of(value).first(field.size)))
    return std::nullopt;
  return value;
}

std::optional<Gva> Kernel::symbol(std::string_view name) const {
  const auto found = profile_->symbol(name);
  if (!found || found->base != SymbolBase::image)
    return std::nullopt;
  return location_.base + found->value;
}

void Kernel::load_per_cpu_offsets() const {
  if (!per_cpu_offsets_.empty())
    return;
  constexpr std::uint32_t limit = 8192;
  std::uint32_t count = 1;
  if (const auto address = symbol("nr_cpu_ids"))
    count = std::clamp(read<std::uint32_t>(*address).value_or(1), 1u, limit);
  const auto table = symbol("__per_cpu_offset");
  std::uint64_t first_area = 0; // the start of the per-CPU image: an address from 6.15 on, before that 0
  if (const auto start = profile_->symbol("__per_cpu_start"))
    first_area = start->base == SymbolBase::image ? location_.base.value + start->value : start->value;
  for (std::uint32_t cpu = 0; cpu < count; ++cpu) {
    // A CPU that is not possible has no area: its offset leads nowhere. Without this, a guest that claims thousands of
    // CPUs would make every per-CPU sum as long.
    const auto offset = table ? read_pointer(*table + 8 * cpu) : std::nullopt;
    const bool usable = offset && space_.translate(Gva{first_area} + offset->value);
    per_cpu_offsets_.push_back(usable ? offset : std::nullopt);
  }
}

std::uint32_t Kernel::cpu_count() const {
  load_per_cpu_offsets();
  return static_cast<std::uint32_t>(per_cpu_offsets_.size());
}

std::optional<Gva> Kernel::per_cpu_pointer(Gva pointer, std::uint32_t cpu) const {
  load_per_cpu_offsets();
  if (cpu >= per_cpu_offsets_.size() || !per_cpu_offsets_[cpu])
    return std::nullopt;
  return pointer + per_cpu_offsets_[cpu]->value;
}

std::optional<Gva> Kernel::per_cpu_symbol(std::string_view name, std::uint32_t cpu) const {
  const auto found = profile_->symbol(name);
  if (!found)
    return std::nullopt;
  // Before 6.15 a per-CPU symbol is an offset into each CPU's area (base 0); since then it is the address of the
  // initial image, and the offsets are relative to that (upstream 9d7de2aa8b41 and 01157ddc58dc). The sum is right for
  // both.
  const Gva address = found->base == SymbolBase::image ? location_.base + found->value : Gva{found->value};
  return per_cpu_pointer(address, cpu);
}

} // namespace lararium::linux_guest
