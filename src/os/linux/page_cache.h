// The page cache: what of a file's contents is in the guest's memory.
#pragma once

#include "lararium/os/linux/kernel.h"
#include "lararium/os/linux/xarray.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

namespace lararium::linux_guest {

struct PageCacheLayout;

// Reads struct address_space.
class PageCache {
public:
  [[nodiscard]] static Result<PageCache> create(const Kernel &kernel);

  using Sink = std::function<Result<void>(std::uint64_t offset, Bytes)>;

  // Gives the cached parts of [0, size) to `sink` in order, at most a page each, and fills in cached_bytes and holes.
  // Pages that are being read in, were evicted or went to swap are holes, as are pages that another file took over
  // while they were copied. Costs up to 24 bytes a cached page.
  [[nodiscard]] Result<void> read(Gva mapping, std::uint64_t size, const Sink &sink, CachedFile &result) const;

  struct Run { // pages of consecutive indices, of one folio
    std::uint64_t index = 0;
    std::uint32_t count = 0, first = 0; // `first`: the number of the first one in its folio
    Gva folio;                          // its struct page
  };
  // Which of the file's first `page_count` pages are in memory, in order of index.
  [[nodiscard]] std::vector<Run> collect(Gva mapping, std::uint64_t page_count) const;
  // Where the page of that index lies, by what collect() gave; nothing: it was not there.
  [[nodiscard]] std::optional<Gpa> find(std::span<const Run> runs, std::uint64_t index) const;
  // The same where it is still that page of the file, and up to date.
  [[nodiscard]] std::optional<Gpa> find_current(std::span<const Run> runs, std::uint64_t index, Gva mapping) const;

private:
  PageCache(const Kernel &kernel, const PageCacheLayout &layout, XarrayReader xarray)
      : kernel_(&kernel), f_(&layout), xarray_(xarray) {}
  [[nodiscard]] const Run *run_with(std::span<const Run> runs, std::uint64_t index) const;
  [[nodiscard]] std::optional<Run> run_of(const XarrayEntry &entry) const;
  [[nodiscard]] bool belongs(const Run &run, Gva mapping) const;
  [[nodiscard]] std::optional<Gpa> physical(Gva page) const;

  const Kernel *kernel_;
  const PageCacheLayout *f_; // kept by the kernel
  XarrayReader xarray_;
};

} // namespace lararium::linux_guest
