#include "area_place.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <ranges>

namespace lararium::gate {
namespace {

using linux_guest::Kernel;

constexpr Gpa low_memory_end{1 << 20};
constexpr std::uint64_t directory_span = 2 << 20;
constexpr Gva last_gigabyte{0xffffffffc0000000};
// Entries behind the fixmap, and the one between it and the modules. The last one of all holds error pointers.
constexpr std::array<std::uint64_t, 4> free_entries{508, 509, 510, 504};
constexpr std::uint64_t real_mode_room = 64 << 10; // the blob is 20 to 30 KiB

struct Range {
  Gpa begin, end;
};

// What the kernel's memory map calls RAM.
std::vector<Range> kernel_ram(const Kernel &kernel) {
  linux_guest::LayoutResolver layout(kernel.types());
  const auto variable = kernel.symbol("e820_table");
  const auto table = variable ? kernel.read_pointer(*variable) : std::nullopt;
  const auto count = layout.optional("e820_table", "nr_entries"), entries = layout.optional("e820_table", "entries"),
             address = layout.optional("e820_entry", "addr"), size = layout.optional("e820_entry", "size"),
             type = layout.optional("e820_entry", "type");
  const auto stride = kernel.types().size_of("e820_entry");
  const auto ram = kernel.types().enumerator("E820_TYPE_RAM");
  std::vector<Range> ranges;
  if (!table || !count || !entries || !address || !size || !type || !stride || !ram)
    return ranges;
  constexpr std::uint64_t most_entries = 512;
  const std::uint64_t number = std::min(kernel.read_field(*table, *count).value_or(0), most_entries);
  for (std::uint64_t i = 0; i < number; ++i) {
    const Gva entry = *table + entries->offset + i * *stride;
    const auto begin = kernel.read_field(entry, *address), length = kernel.read_field(entry, *size),
               kind = kernel.read_field(entry, *type);
    if (begin && length && kind && static_cast<std::int64_t>(*kind) == *ram)
      ranges.push_back({Gpa{*begin}, Gpa{*begin + *length}});
  }
  return ranges;
}

// Reads the page structures of low memory: which pages are reserved.
class PageFlags {
public:
  static Result<PageFlags> of(const Kernel &kernel) {
    linux_guest::LayoutResolver layout(kernel.types());
    PageFlags flags(kernel);
    flags.flags_ = layout.require("page", "flags");
    flags.size_ = layout.require_size("page");
    const auto bit = kernel.types().enumerator("PG_reserved");
    const auto base = kernel.symbol("vmemmap_base");
    const auto map = base ? kernel.read_pointer(*base) : std::nullopt;
    TRY(layout.check());
    if (!bit || *bit < 0 || *bit > 63 || !map || !kernel.is_kernel_address(*map))
      return fail(ErrorCode::unsupported, "the kernel does not tell which of its pages are reserved");
    flags.bit_ = static_cast<unsigned>(*bit);
    flags.map_ = *map;
    return flags;
  }
  [[nodiscard]] bool is_reserved(Gpa page) const {
    const auto value = kernel_->read<std::uint64_t>(map_ + page.value / page_size * size_ + flags_.offset);
    return value && (*value >> bit_ & 1) != 0;
  }

private:
  explicit PageFlags(const Kernel &kernel) : kernel_(&kernel) {}
  const Kernel *kernel_;
  FieldLocation flags_{};
  std::uint64_t size_ = 0;
  unsigned bit_ = 0;
  Gva map_;
};

bool is_unused(const Kernel &kernel, Gpa page, const Remains &remains) {
  std::array<std::byte, page_size> content;
  return kernel.memory().read(page, content) &&
         (std::ranges::all_of(content, [](std::byte byte) { return byte == std::byte{0}; }) ||
          remains.has(page, content));
}

// In order.
Result<std::vector<Gpa>> find_free_frames(const Kernel &kernel, const Remains &remains) {
  const auto ram = kernel_ram(kernel);
  if (std::ranges::none_of(ram, [](const Range &range) { return range.begin < low_memory_end; }))
    return fail(ErrorCode::unsupported, "the kernel's memory map shows no memory below 1 MiB");
  TRY_ASSIGN(const auto flags, PageFlags::of(kernel));
  std::optional<Gpa> real_mode;
  if (const auto variable = kernel.symbol("real_mode_header"))
    if (const auto header = kernel.read_pointer(*variable); header && *header)
      if (const auto place = kernel.space().translate(*header))
        real_mode = place->address;
  std::vector<Gpa> frames;
  // The BIOS' own data lie in the first page.
  for (Gpa page{page_size}; page < low_memory_end; page += page_size) {
    const bool is_ram = std::ranges::any_of(
        ram, [&](const Range &range) { return page >= range.begin && page + page_size <= range.end; });
    if (is_ram && !(real_mode && page >= *real_mode && page - *real_mode < real_mode_room) && flags.is_reserved(page) &&
        is_unused(kernel, page, remains))
      frames.push_back(page);
  }
  return frames;
}

} // namespace

std::vector<Gva> area_windows() {
  std::vector<Gva> windows;
  windows.reserve(free_entries.size());
  for (const std::uint64_t entry : free_entries)
    windows.push_back(last_gigabyte + entry * directory_span);
  return windows;
}

std::optional<Gpa> window_entry(const Kernel &kernel, Gva window) {
  const auto root = kernel.location().root;
  Gpa table = root.table;
  constexpr int directory_level = 2;
  for (int level = root.levels; level > directory_level; --level) {
    std::uint64_t value = 0;
    if (!kernel.memory().read(x86_64::entry_address(table, window, level), writable_bytes_of(value)) ||
        (value & x86_64::entry::present) == 0 || (value & x86_64::entry::large) != 0)
      return std::nullopt;
    table = Gpa{value & x86_64::entry::address_mask};
  }
  return x86_64::entry_address(table, window, directory_level);
}

bool Remains::has(Gpa page, Bytes content) const {
  if (page == table && !table_page.empty())
    return std::ranges::equal(content, table_page);
  const std::uint64_t offset = page - first;
  return offset < area.size() && std::ranges::equal(content, Bytes(area).subspan(offset, page_size));
}

Result<AreaPlace> find_area_place(const Kernel &kernel, std::size_t pages, const Remains &remains) {
  AreaPlace place;
  for (const Gva window : area_windows())
    if (const auto entry = window_entry(kernel, window)) {
      std::uint64_t value = 1;
      if (kernel.memory().read(*entry, writable_bytes_of(value)) && value == 0) {
        place.window = window;
        place.entry = *entry;
        break;
      }
    }
  if (!place.window)
    return fail(ErrorCode::unsupported, "the kernel's page tables have no free entry near its text");
  TRY_ASSIGN(const auto frames, find_free_frames(kernel, remains));
  // From the top: firmware and boot loaders like the bottom. The table's page, then the area's below it, or anywhere.
  std::size_t run = 0;
  for (std::size_t i = frames.size(); i-- > 0;) {
    run = i + 1 < frames.size() && frames[i] + page_size == frames[i + 1] ? run + 1 : 1;
    if (run < pages)
      continue;
    place.first = frames[i];
    for (const Gpa frame : std::views::reverse(frames))
      if (frame < place.first || frame - place.first >= pages * page_size) {
        place.table = frame;
        return place;
      }
  }
  return fail(
      ErrorCode::unsupported,
      fmt::format("the kernel has set aside {} unused pages in the first MiB of memory, but not {} in a row and "
                  "one more",
                  frames.size(), pages));
}

std::optional<RamRange> find_block(const PhysicalMemory &memory, std::string_view name) {
  for (const RamRange &range : memory.ranges())
    if (range.block == name || range.block.ends_with(fmt::format("/{}", name)))
      return range;
  return std::nullopt;
}

Result<void> find_rings_place(const Kernel &kernel, const PhysicalMemory &memory, std::string_view block,
                              std::uint64_t size, AreaPlace &place) {
  const auto found = find_block(memory, block);
  if (!found)
    return fail(ErrorCode::not_found,
                fmt::format("the VM has no memory {} that its guest can reach: it is to be the memdev of an "
                            "ivshmem-plain device, whose id it is named by here",
                            block));
  const auto ram = kernel_ram(kernel);
  if (ram.empty() || std::ranges::any_of(ram, [&](const Range &range) {
        return range.begin < found->base + found->size && found->base < range.end;
      }))
    return fail(ErrorCode::usage, fmt::format("{} is the guest's RAM: rings take the memory of a device", block));
  const Gpa base{(found->base.value + rings_room - 1) / rings_room * rings_room};
  if (found->size < rings_room || base - found->base > found->size - rings_room)
    return fail(ErrorCode::unsupported, fmt::format("the memory {} is less than 2 MiB", block));
  std::array<std::byte, page_size> page{};
  for (std::uint64_t offset = 0; offset < size; offset += page_size)
    if (!memory.read(base + offset, page) ||
        std::ranges::any_of(page, [](std::byte byte) { return byte != std::byte{0}; }))
      return fail(ErrorCode::unsupported,
                  fmt::format("something stands in the memory {}: rings take memory that nobody uses", block));
  for (const Gva window : area_windows()) {
    const auto entry = window == place.window ? std::nullopt : window_entry(kernel, window);
    std::uint64_t value = 1;
    if (!entry || !kernel.memory().read(*entry, writable_bytes_of(value)) || value != 0)
      continue;
    place.rings_window = window;
    place.rings_entry = *entry;
    place.rings_memory = base;
    return {};
  }
  return fail(ErrorCode::unsupported, "the kernel's page tables have no second free entry near its text");
}

std::uint64_t area_table_entry(Gpa frame, bool executable, bool writable) {
  constexpr std::uint64_t accessed = 1 << 5, dirty = 1 << 6;
  using namespace x86_64;
  return frame.value | entry::present | accessed | dirty | (writable ? entry::writable : 0) |
         (executable ? 0 : entry::no_execute);
}

std::uint64_t area_directory_entry(Gpa table) {
  constexpr std::uint64_t accessed = 1 << 5, dirty = 1 << 6;
  using namespace x86_64;
  return table.value | entry::present | entry::writable | accessed | dirty;
}

std::uint64_t rings_directory_entry(Gpa memory) { return area_table_entry(memory, false, true) | x86_64::entry::large; }

} // namespace lararium::gate
