#include "lararium/gate/guarded_pages.h"

#include "lararium/os/linux/modules.h"

#include <algorithm>

namespace lararium::gate {
namespace {

using linux_guest::Kernel;
using linux_guest::LayoutResolver;
using linux_guest::ModuleRegion;

constexpr std::uint64_t largest_image_part = 256 << 20, largest_module = 64 << 20;
constexpr std::size_t page_limit = (512 << 20) / page_size;

void add(std::vector<GuardedPage> &pages, const Kernel &kernel, Gva begin, Gva end, PageKind kind) {
  const auto &location = kernel.location();
  // The image is contiguous: it is its own frames that are guarded, whatever else may be mapped in their place.
  for (Gva page = begin.page(); page < end && pages.size() < page_limit; page += page_size)
    if (page >= location.base && page - location.base < location.size)
      pages.push_back({location.physical_base + (page - location.base), page, kind});
}

bool is_live_patch(const Kernel &kernel, Gva module) {
  const auto patch = LayoutResolver(kernel.types()).optional("module", "klp");
  return patch && kernel.read_field(module, *patch).value_or(0) != 0;
}

void sort_by_frame(std::vector<GuardedPage> &pages) {
  std::ranges::sort(pages);
  const auto rest = std::ranges::unique(pages, {}, &GuardedPage::frame);
  pages.erase(rest.begin(), rest.end());
}

} // namespace

std::string_view name_of(PageKind kind) {
  switch (kind) {
  case PageKind::kernel_text: return "kernel text";
  case PageKind::read_only_data: return "read-only data";
  case PageKind::idt: return "IDT";
  case PageKind::gdt: return "GDT";
  case PageKind::module_text: return "module text";
  }
  return "unknown";
}

std::vector<GuardedPage> find_module_pages(const Kernel &kernel) {
  std::vector<GuardedPage> pages;
  const auto regions = linux_guest::read_module_regions(kernel);
  if (!regions)
    return pages;
  for (const ModuleRegion &region : regions->items) {
    if (region.kind != ModuleRegion::Kind::text || region.size > largest_module || is_live_patch(kernel, region.module))
      continue;
    for (Gva page = region.base.page(); page < region.base + region.size && pages.size() < page_limit;
         page += page_size)
      if (const auto frame = kernel.space().translate(page); frame && !frame->writable)
        pages.push_back({frame->address.page(), page, PageKind::module_text, region.name, region.module});
  }
  sort_by_frame(pages);
  return pages;
}

Result<std::vector<GuardedPage>> find_guarded_pages(const Kernel &kernel) {
  const auto text = kernel.symbol("_stext"), text_end = kernel.symbol("_etext"),
             rodata = kernel.symbol("__start_rodata"), rodata_end = kernel.symbol("__end_rodata");
  if (!text || !text_end || !rodata || !rodata_end || *text_end <= *text || *rodata_end <= *rodata ||
      *text_end - *text > largest_image_part || *rodata_end - *rodata > largest_image_part)
    return fail(ErrorCode::not_found, "the kernel's symbols do not say where its text and read-only data lie");
  const auto sealed = kernel.space().translate(*rodata);
  if (!sealed || sealed->writable)
    return fail(ErrorCode::not_found,
                "the kernel has not sealed its read-only data: it is still booting, or was started "
                "with rodata=off");
  std::vector<GuardedPage> pages;
  add(pages, kernel, *text, *text_end, PageKind::kernel_text);
  // The gaps around it were given free when it was sealed; its last page was not.
  add(pages, kernel, *rodata, *rodata_end, PageKind::read_only_data);
  if (const auto table = kernel.symbol("idt_table"); table && table->page_offset() == 0)
    add(pages, kernel, *table, *table + page_size, PageKind::idt);
  for (std::uint32_t cpu = 0; cpu < kernel.cpu_count(); ++cpu)
    if (const auto table = kernel.per_cpu_symbol("gdt_page", cpu); table && table->page_offset() == 0)
      if (const auto frame = kernel.space().translate(*table))
        pages.push_back({frame->address.page(), *table, PageKind::gdt});
  std::ranges::move(find_module_pages(kernel), std::back_inserter(pages));
  sort_by_frame(pages);
  return pages;
}

} // namespace lararium::gate
