// The memory areas of a process: /proc/PID/maps.
#pragma once

#include "lararium/os/common/views.h"
#include "lararium/os/linux/list.h"
#include "vfs.h"

#include <optional>
#include <string>
#include <vector>

namespace lararium::linux_guest {

struct AreaLayout;

// Reads the areas (struct vm_area_struct) of address spaces (struct mm_struct).
class AreaReader {
public:
  [[nodiscard]] static Result<AreaReader> create(const Kernel &kernel);

  struct Area {
    Gva address; // struct vm_area_struct
    Gva begin, end;
    bool operator==(const Area &) const = default;
  };
  // The areas in order of address: from the maple tree since 6.1, from the list before. Walked again, up to four times,
  // when the guest changes them meanwhile; `status` tells.
  [[nodiscard]] std::vector<Area> areas(Gva mm, ViewStatus &status) const;
  // Nothing when it cannot be read, or is another area by now.
  [[nodiscard]] std::optional<MemoryRegion> region(Gva mm, const Area &area) const;
  // What region() tells that costs no path. The area may be another one by now.
  struct Kind {
    bool writable = false, executable = false, shared = false, huge = false; // huge: of hugetlbfs
    std::uint64_t file_offset = 0;
    std::optional<Gva> file; // struct file
  };
  [[nodiscard]] std::optional<Kind> kind_of(Gva area) const;
  // The page that stands for vsyscalls above every process that may use it; it is in no tree.
  [[nodiscard]] std::optional<MemoryRegion> gate_region(Gva mm) const;
  [[nodiscard]] std::optional<Gva> file_of(Gva area) const; // struct file

private:
  AreaReader(const Kernel &kernel, const AreaLayout &layout, const VfsLayout &vfs, PathResolver paths)
      : kernel_(&kernel), f_(&layout), vfs_(&vfs), paths_(paths) {}
  [[nodiscard]] WalkResult walk_tree(Gva mm, std::vector<Area> &found) const;
  [[nodiscard]] WalkResult walk_list_of_areas(Gva mm, std::vector<Area> &found) const;
  [[nodiscard]] std::optional<MemoryRegion> read(Gva mm, Gva area) const;
  [[nodiscard]] std::string name_of(Gva mm, Gva area, const MemoryRegion &region) const;
  [[nodiscard]] std::string given_name(Gva area) const;

  const Kernel *kernel_;
  const AreaLayout *f_; // kept by the kernel
  const VfsLayout *vfs_;
  PathResolver paths_;
};

[[nodiscard]] Result<View<MemoryRegion>> read_memory_regions(const Kernel &kernel, std::int32_t pid);

} // namespace lararium::linux_guest
