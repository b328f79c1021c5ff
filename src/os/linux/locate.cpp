#include "locate.h"

#include "lararium/symbols/vmcoreinfo.h"

#include <algorithm>
#include <fmt/format.h>

namespace lararium::linux_guest {
namespace {

// The kernel's image is mapped in this part of the address space (Documentation/arch/x86/x86_64/mm.rst): 1 GiB at the
// most with KASLR, and nothing else is; modules follow.
constexpr Gva image_region_begin{0xffffffff80000000};
constexpr Gva image_region_end{0xffffffffc0000000};
constexpr std::uint64_t smallest_image = 8 << 20;
constexpr std::size_t extent_limit = 4096;
constexpr std::size_t location_limit = 16;
constexpr std::size_t vmcoreinfo_limit = 256; // there is one, and what kexec and resets left: more is a lie

std::optional<KernelLocation> location_under(const PhysicalMemory &memory, x86_64::PageTableRoot root,
                                             std::string found_by) {
  const AddressSpace space(memory, root);
  const auto extents = space.extents(image_region_begin, image_region_end, extent_limit);
  if (extents.empty())
    return std::nullopt;
  // The image is one piece in physical memory; what was freed after boot (.init) leaves holes in the mapping. Whatever
  // does not keep the first page's distance is not part of it.
  const MappedExtent &first = extents.front();
  const std::uint64_t distance = first.base.value - first.physical.value;
  Gva end = first.base + first.size;
  for (const auto &extent : extents)
    if (extent.base.value - extent.physical.value == distance)
      end = extent.base + extent.size;
  const std::uint64_t size = end - first.base;
  if (size < smallest_image)
    return std::nullopt;
  return KernelLocation{root, first.base, first.physical, size, std::move(found_by)};
}

void add_location(std::vector<KernelLocation> &locations, std::optional<KernelLocation> location) {
  if (!location || locations.size() >= location_limit)
    return;
  for (const auto &known : locations)
    if (known.base == location->base && known.physical_base == location->physical_base)
      return;
  locations.push_back(std::move(*location));
}

void add_from_vmcoreinfo(std::vector<KernelLocation> &locations, const PhysicalMemory &memory,
                         const Vmcoreinfo &vmcoreinfo, const std::string &found_by) {
  const auto table = vmcoreinfo.symbol("swapper_pg_dir");
  const auto phys_base = vmcoreinfo.number("phys_base");
  if (!table || !phys_base)
    return;
  const Gpa top{*table - image_region_begin + *phys_base};
  const bool five_levels = vmcoreinfo.number("pgtable_l5_enabled").value_or(0) == 1;
  for (const int levels : {five_levels ? 5 : 4, five_levels ? 4 : 5})
    if (auto location = location_under(memory, {top, levels}, found_by)) {
      add_location(locations, std::move(location));
      return;
    }
}

// Every page of memory that starts like a VMCOREINFO. One cache line of each page is touched where memory is mapped.
template <class Visit> void search_vmcoreinfo(const PhysicalMemory &memory, Visit &&visit) {
  constexpr std::size_t head_bytes = 64;
  constexpr std::size_t chunk_bytes = 1 << 20;
  std::vector<std::byte> copy;
  for (const auto &range : memory.ranges())
    for (const auto &part : memory.populated(range.base, range.size))
      for (std::uint64_t at = 0; at < part.size;) {
        const std::uint64_t left = part.size - at;
        Bytes bytes = memory.view(part.base + at);
        bytes = bytes.first(std::min<std::uint64_t>(bytes.size(), left));
        if (bytes.empty()) {
          copy.resize(std::min<std::uint64_t>(left, chunk_bytes));
          if (memory.read(part.base + at, copy))
            bytes = copy;
        }
        for (std::size_t page = 0; page + page_size <= bytes.size(); page += page_size)
          if (vmcoreinfo_text_offset(bytes.subspan(page, head_bytes)))
            if (!visit(part.base + at + page, bytes.subspan(page)))
              return;
        at += bytes.empty() ? std::min<std::uint64_t>(left, chunk_bytes) : bytes.size();
      }
}

} // namespace

std::vector<KernelLocation> locate_kernels(const Target &target, const std::vector<VcpuRegisters> &registers,
                                           bool search_memory) {
  const PhysicalMemory &memory = *target.memory;
  std::vector<KernelLocation> locations;
  for (const auto &vcpu : registers) {
    if (!vcpu.paging())
      continue;
    const auto root = x86_64::PageTableRoot::from_registers(vcpu.cr3, vcpu.five_level_paging());
    // In user mode with page table isolation CR3 points to the half that maps little of the kernel: the larger wins.
    auto as_is = location_under(memory, root, fmt::format("the CR3 of vCPU {}", vcpu.index));
    auto kernel_half = location_under(memory, root.kernel_half(), fmt::format("the CR3 of vCPU {}", vcpu.index));
    if (kernel_half && (!as_is || kernel_half->size > as_is->size))
      as_is.swap(kernel_half);
    add_location(locations, std::move(as_is));
  }
  if (!target.hints.vmcoreinfo.empty())
    if (const auto parsed = Vmcoreinfo::parse(target.hints.vmcoreinfo))
      add_from_vmcoreinfo(locations, memory, *parsed, "the dump's VMCOREINFO");
  std::size_t looked_at = 0;
  if (search_memory)
    search_vmcoreinfo(memory, [&](Gpa address, Bytes bytes) {
      if (const auto parsed = Vmcoreinfo::read(bytes))
        add_from_vmcoreinfo(locations, memory, *parsed, fmt::format("the VMCOREINFO at {:#x}", address.value));
      return locations.size() < location_limit && ++looked_at < vmcoreinfo_limit;
    });
  return locations;
}

} // namespace lararium::linux_guest
