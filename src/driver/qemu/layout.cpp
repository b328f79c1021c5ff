#include "lararium/driver/qemu/layout.h"

#include "lararium/base/bytes.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <numeric>

namespace lararium::qemu {
namespace {

constexpr std::uint64_t gibibyte = 1ULL << 30;

// pc-i440fx-1.7 and older, pc-0.x and pc-1.x did not align the split to 1 GiB.
bool splits_at_gigabyte(std::string_view machine) {
  if (machine.starts_with("pc-0.") || machine.starts_with("pc-1."))
    return false;
  constexpr std::string_view prefix = "pc-i440fx-1.";
  return !machine.starts_with(prefix);
}

std::uint64_t low_memory_of_pc(std::string_view machine, std::uint64_t ram_size,
                               std::optional<std::uint64_t> max_ram_below_4g) {
  const std::uint64_t limit = max_ram_below_4g.value_or(0) != 0 ? *max_ram_below_4g : 0xe0000000;
  if (ram_size >= limit && splits_at_gigabyte(machine))
    return std::min<std::uint64_t>(limit, 0xc0000000);
  return limit;
}

std::uint64_t low_memory_of_q35(std::uint64_t ram_size, std::optional<std::uint64_t> max_ram_below_4g) {
  const std::uint64_t low = ram_size >= 0xb0000000 ? 0x80000000 : 0xb0000000;
  const std::uint64_t limit = max_ram_below_4g.value_or(0) != 0 ? *max_ram_below_4g : 4 * gibibyte;
  return std::min(low, limit);
}

// Sums to zero, as each ACPI structure must.
bool checksum_holds(Bytes bytes) {
  unsigned sum = 0;
  for (const auto byte : bytes)
    sum += std::to_integer<unsigned>(byte);
  return (sum & 0xff) == 0;
}

bool is_acpi_table(const RamReader &read, std::uint64_t address, std::string_view signature) {
  // ACPI 6.5, 5.2.6: signature, length, revision, checksum over all.
  constexpr std::size_t header = 36, limit = 64 << 10;
  std::array<std::byte, header> start;
  if (!read(address, start) || c_string(start, 0, 4) != signature)
    return false;
  const auto length = *load<std::uint32_t>(start, 4);
  if (length < header || length > limit)
    return false;
  std::vector<std::byte> table(length);
  return read(address, table) && checksum_holds(table);
}

std::string_view main_backend_of(const CommandLine &line) {
  return line.main_backend.empty() ? std::string_view() : std::string_view(line.main_backend);
}

const MemoryBackend *backend_called(const CommandLine &line, std::string_view id) {
  const auto it = std::ranges::find(line.backends, id, &MemoryBackend::id);
  return it == line.backends.end() || id.empty() ? nullptr : &*it;
}

// How well a mapping fits a piece of RAM: 0 not at all.
int fitness(const HostMapping &mapping, std::uint64_t size, const MemoryBackend *backend) {
  // TCG's buffer of translated code can be as large as RAM, but it is executable.
  if (!mapping.readable || !mapping.writable || mapping.executable || mapping.size() < size)
    return 0;
  const bool exact = mapping.size() == size;
  if (backend == nullptr || backend->kind == "memory-backend-ram") {
    const bool shared = backend != nullptr && backend->shared;
    if (mapping.shared != shared || (!shared && mapping.inode != 0))
      return 0;
    return exact ? 3 : 1;
  }
  if (mapping.inode == 0 || mapping.shared != backend->shared || !exact)
    return 0;
  if (backend->kind == "memory-backend-memfd")
    return mapping.path.find("memory-backend-memfd") != std::string::npos ? 4 : 0;
  // The file may lie in the folder that mem-path names, and be deleted.
  return !backend->path.empty() && mapping.path.starts_with(backend->path) ? 4 : 2;
}

} // namespace

std::vector<RamLayout> possible_layouts(std::string_view machine, std::uint64_t ram_size,
                                        std::optional<std::uint64_t> max_ram_below_4g) {
  const RamLayout pc{.machine = "pc", .below_4g = low_memory_of_pc(machine, ram_size, max_ram_below_4g)};
  const RamLayout q35{.machine = "q35", .below_4g = low_memory_of_q35(ram_size, max_ram_below_4g)};
  RamLayout microvm{.machine = "microvm", .below_4g = 0xc0000000};
  microvm.low_hole_begin = 0xe0000; // x86_bios_rom_init() puts up to 128 KiB there, and nothing shadows it
  microvm.low_hole_end = 0x100000;
  std::vector<RamLayout> result = {pc, q35};
  if (machine.starts_with("q35") || machine.starts_with("pc-q35"))
    result = {q35, pc};
  else if (machine.starts_with("microvm"))
    result = {microvm};
  for (auto &layout : result)
    layout.below_4g = std::min(layout.below_4g, ram_size);
  // pc_memory_init() moves high RAM above 1 TiB when it would reach AMD's HyperTransport hole and the vCPU is AMD's.
  constexpr std::uint64_t hole = 0xfd'0000'0000;
  for (std::size_t i = 0, count = result.size(); i < count; i++)
    if (4 * gibibyte + (ram_size - result[i].below_4g) > hole)
      result.push_back(
          {result[i].machine, result[i].below_4g, Gpa{1ULL << 40}, result[i].low_hole_begin, result[i].low_hole_end});
  return result;
}

std::optional<Gpa> find_acpi_root(const RamReader &read) {
  // ACPI 6.5, 5.2.5.1: on a 16-byte boundary in 0xe0000..0xfffff.
  constexpr std::uint64_t begin = 0xe0000, length = 0x20000;
  constexpr std::size_t old_size = 20, new_size = 36;
  std::vector<std::byte> area(length);
  if (!read(begin, area))
    return std::nullopt;
  for (std::size_t at = 0; at + new_size <= area.size(); at += 16) {
    const Bytes pointer = Bytes(area).subspan(at, new_size);
    if (c_string(pointer, 0, 8) != "RSD PTR " || !checksum_holds(pointer.first(old_size)))
      continue;
    const auto revision = std::to_integer<unsigned>(pointer[15]);
    const auto root = *load<std::uint32_t>(pointer, 16);
    if (root != 0 && is_acpi_table(read, root, "RSDT"))
      return Gpa{root};
    const auto extended = *load<std::uint64_t>(pointer, 24);
    if (revision >= 2 && extended != 0 && checksum_holds(pointer) && is_acpi_table(read, extended, "XSDT"))
      return Gpa{extended};
  }
  return std::nullopt;
}

const RamLayout &choose_layout(const std::vector<RamLayout> &layouts, std::optional<Gpa> acpi_root) {
  const RamLayout *best = nullptr;
  if (acpi_root)
    for (const auto &layout : layouts)
      if (acpi_root->value < layout.below_4g && (best == nullptr || layout.below_4g < best->below_4g))
        best = &layout;
  return best == nullptr ? layouts.front() : *best;
}

Result<FoundRam> find_ram(std::span<const HostMapping> mappings, const CommandLine &line, std::uint64_t ram_size) {
  struct Wanted {
    std::string block;
    std::uint64_t size;
    const MemoryBackend *backend;
  };
  std::vector<Wanted> wanted;
  for (const auto &id : line.numa_backends) {
    const auto *backend = backend_called(line, id);
    if (backend == nullptr)
      return fail(ErrorCode::unsupported, fmt::format("the memory backend {} is not on the command line", id));
    wanted.push_back({id, backend->size, backend});
  }
  if (wanted.empty())
    wanted.push_back(
        {line.main_backend.empty() ? "ram" : line.main_backend, ram_size, backend_called(line, main_backend_of(line))});

  FoundRam result;
  std::vector<bool> taken(mappings.size());
  for (const auto &want : wanted) {
    // QEMU maps one backend after the other, and the kernel goes downwards: of equals the highest comes first.
    std::size_t best = mappings.size();
    int best_fitness = 0;
    std::vector<Hva> equals;
    for (std::size_t i = mappings.size(); i-- > 0;) {
      if (taken[i] || want.size == 0)
        continue;
      const int fit = fitness(mappings[i], want.size, want.backend);
      if (fit > best_fitness) {
        best = i;
        best_fitness = fit;
        equals.clear();
      } else if (fit != 0 && fit == best_fitness) {
        equals.push_back(mappings[i].end - want.size);
      }
    }
    if (best == mappings.size())
      return fail(ErrorCode::not_found,
                  fmt::format("no mapping of the process fits the {} bytes of RAM {}", want.size, want.block));
    taken[best] = true;
    result.ambiguous = result.ambiguous || !equals.empty();
    if (result.pieces.empty())
      result.also_first = std::move(equals);
    // An anonymous mapping may have grown together with the one before it; after RAM stands a guard page.
    result.pieces.push_back({mappings[best].end - want.size, want.size, want.block});
  }
  return result;
}

} // namespace lararium::qemu
