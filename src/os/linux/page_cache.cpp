#include "page_cache.h"

#include <algorithm>
#include <array>

namespace lararium::linux_guest {
namespace {

constexpr std::size_t attempts = 4;
constexpr std::size_t hole_limit = 1 << 16;
constexpr std::uint64_t folio_pages_limit = 1 << 18; // 1 GiB

} // namespace

struct PageCacheLayout {
  FieldLocation pages, page_flags, page_mapping, page_index;
  std::optional<FieldLocation> compound_head;
  std::uint64_t page_struct_size = 0;
  std::optional<std::uint32_t> head_bit, uptodate_bit; // in a page's flags
  Gva page_structs;                                    // the array of all struct page, virtually contiguous

  static Result<PageCacheLayout> resolve(const Kernel &kernel) {
    PageCacheLayout f;
    LayoutResolver layout(kernel.types());
    f.pages = layout.require_any("address_space", {"i_pages", "page_tree"});
    f.page_struct_size = layout.require_size("page");
    f.page_flags = layout.require("page", "flags");
    f.page_mapping = layout.require("page", "mapping");
    f.page_index = layout.require_any("page", {"index", "__folio_index"}); // renamed in 6.16
    // Where a page that is not the first of its folio says so, until 7.0. Needed only before 5.2, when each slot of the
    // cache held its own page of a huge one.
    f.compound_head = layout.optional("page", "compound_head");
    TRY(layout.check());
    const auto bit = [&](std::string_view name) -> std::optional<std::uint32_t> {
      const auto value = kernel.types().enumerator(name);
      return value && *value >= 0 && *value < 64 ? std::optional(static_cast<std::uint32_t>(*value)) : std::nullopt;
    };
    f.head_bit = bit("PG_head");
    f.uptodate_bit = bit("PG_uptodate");
    // SPARSEMEM_VMEMMAP, the only memory model of x86-64 distributions; KASLR moves its base.
    const auto base = kernel.symbol("vmemmap_base");
    f.page_structs = base ? kernel.read_pointer(*base).value_or(Gva{}) : Gva{};
    if (!f.page_structs)
      f.page_structs = Gva{kernel.location().root.levels == 5 ? 0xffd4000000000000 : 0xffffea0000000000};
    return f;
  }
};

Result<PageCache> PageCache::create(const Kernel &kernel) {
  TRY_ASSIGN(const PageCacheLayout *layout, kernel.layout<PageCacheLayout>());
  TRY_ASSIGN(const auto xarray, XarrayReader::create(kernel));
  return PageCache(kernel, *layout, xarray);
}

std::optional<Gpa> PageCache::physical(Gva page) const {
  const std::uint64_t distance = page - f_->page_structs;
  const std::uint64_t number = distance / f_->page_struct_size;
  if (page < f_->page_structs || distance % f_->page_struct_size != 0 || number >> 40 != 0)
    return std::nullopt;
  return Gpa{number * page_size};
}

std::optional<PageCache::Run> PageCache::run_of(const XarrayEntry &entry) const {
  const Gva page = entry.pointer();
  const auto flags = kernel_->read_field(page, f_->page_flags);
  const auto own_index = kernel_->read_field(page, f_->page_index);
  if (!flags || !own_index || entry.count > folio_pages_limit)
    return std::nullopt;
  const auto count = static_cast<std::uint32_t>(entry.count);
  if (f_->compound_head && (kernel_->read_field(page, *f_->compound_head).value_or(0) & 1) != 0)
    return Run{entry.index, count, 0, page}; // a page of a huge one, in its own slot
  // A slot holds the first page of the folio: since 5.17 at the folio's own index (6b24ca4a1a8d), from 5.2 at each
  // index that the folio covers.
  const std::uint64_t first = entry.index - *own_index;
  const bool large = first != 0 || count > 1;
  if (entry.index < *own_index || first + count > folio_pages_limit ||
      (large && f_->head_bit && (*flags >> *f_->head_bit & 1) == 0))
    return std::nullopt;
  return Run{entry.index, count, static_cast<std::uint32_t>(first), page};
}

bool PageCache::belongs(const Run &run, Gva mapping) const {
  const auto flags = kernel_->read_field(run.folio, f_->page_flags);
  if (!flags || (f_->uptodate_bit && (*flags >> *f_->uptodate_bit & 1) == 0))
    return false;
  if (f_->compound_head && (kernel_->read_field(run.folio, *f_->compound_head).value_or(0) & 1) != 0)
    return true; // only its first page knows the file
  return kernel_->read_pointer(run.folio, f_->page_mapping) == mapping &&
         kernel_->read_field(run.folio, f_->page_index) == run.index - run.first;
}

std::vector<PageCache::Run> PageCache::collect(Gva mapping, std::uint64_t page_count) const {
  std::vector<Run> runs;
  const std::size_t limit = kernel_->memory().total_size() / page_size;
  for (std::size_t attempt = 0; attempt < attempts; ++attempt) {
    runs.clear();
    std::uint64_t next = 0;
    std::size_t contradictions = 0;
    const auto walk = xarray_.for_each(mapping + f_->pages.offset, limit, [&](const XarrayEntry &entry) {
      if (entry.index >= page_count)
        return false;
      if (entry.is_value)
        return true;
      const auto run = entry.index >= next ? run_of(entry) : std::nullopt;
      if (!run) {
        ++contradictions;
        return true;
      }
      runs.push_back(*run);
      next = run->index + run->count;
      return true;
    });
    if (walk.consistent() && contradictions == 0)
      break;
  }
  return runs;
}

const PageCache::Run *PageCache::run_with(std::span<const Run> runs, std::uint64_t index) const {
  const auto after = std::ranges::upper_bound(runs, index, {}, &Run::index);
  if (after == runs.begin())
    return nullptr;
  const Run &run = *std::prev(after);
  return index - run.index < run.count ? &run : nullptr;
}

std::optional<Gpa> PageCache::find(std::span<const Run> runs, std::uint64_t index) const {
  const Run *run = run_with(runs, index);
  return run == nullptr ? std::nullopt
                        : physical(run->folio + f_->page_struct_size * (run->first + (index - run->index)));
}

std::optional<Gpa> PageCache::find_current(std::span<const Run> runs, std::uint64_t index, Gva mapping) const {
  const Run *run = run_with(runs, index);
  return run != nullptr && belongs(*run, mapping) ? find(runs, index) : std::nullopt;
}

Result<void> PageCache::read(Gva mapping, std::uint64_t size, const Sink &sink, CachedFile &result) const {
  result.size = size;
  std::uint64_t done = 0; // up to here every byte is given or in a hole
  const auto skip_to = [&](std::uint64_t end) {
    if (end <= done)
      return;
    if (result.holes.size() < hole_limit)
      result.holes.push_back({done, end});
    else
      result.holes_truncated = true;
    done = end;
  };
  if (size == 0)
    return {};
  std::array<std::byte, page_size> buffer;
  for (const Run &run : collect(mapping, (size - 1) / page_size + 1)) {
    for (std::uint32_t i = 0; i < run.count; ++i) {
      const std::uint64_t index = run.index + i;
      if (index > (size - 1) / page_size)
        break;
      const std::uint64_t offset = index * page_size;
      const auto bytes = std::span(buffer).first(std::min<std::uint64_t>(page_size, size - offset));
      const auto address = physical(run.folio + f_->page_struct_size * (std::uint64_t{run.first} + i));
      // A page that was freed and used again meanwhile belongs to nobody or to another file by now.
      if (!address || !belongs(run, mapping) || !kernel_->memory().read(*address, bytes) || !belongs(run, mapping))
        continue;
      skip_to(offset);
      TRY(sink(offset, bytes));
      done = offset + bytes.size();
      result.cached_bytes += bytes.size();
    }
  }
  skip_to(size);
  return {};
}

} // namespace lararium::linux_guest
