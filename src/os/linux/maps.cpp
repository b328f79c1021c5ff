#include "maps.h"

#include "maple_tree.h"

#include <algorithm>
#include <fmt/format.h>

namespace lararium::linux_guest {
namespace {

constexpr std::uint32_t attempts = 4;
constexpr std::size_t name_limit = 4096;
constexpr std::uint64_t vm_read = 1, vm_write = 2, vm_exec = 4, vm_may_share = 0x80,
                        vm_hugetlb = 0x400000; // include/linux/mm.h
constexpr std::uint64_t has_vsyscall = 1 << 1; // MM_CONTEXT_HAS_VSYSCALL, arch/x86/include/asm/mmu.h, since 5.10

} // namespace

struct AreaLayout {
  std::uint64_t area_size = 0;
  FieldLocation begin, end, flags, page_offset, file, ops, private_data;
  std::optional<FieldLocation> given_name, given_name_text;
  bool given_name_excludes_file = false; // shares its place with what file mappings need there
  FieldLocation count, heap_begin, heap_end, stack_begin;
  std::optional<FieldLocation> context_flags;
  std::optional<FieldLocation> tree; // mm_struct.mm_mt
  const MapleLayout *maple = nullptr;
  std::optional<FieldLocation> first, next; // mm_struct.mmap and vm_area_struct.vm_next, before 6.1
  std::optional<FieldLocation> name_op, special_name;
  std::optional<Gva> special_name_function;

  static Result<AreaLayout> resolve(const Kernel &kernel) {
    AreaLayout f;
    LayoutResolver layout(kernel.types());
    f.area_size = layout.require_size("vm_area_struct");
    const auto area = [&](std::string_view path) { return layout.require("vm_area_struct", path); };
    f.begin = area("vm_start");
    f.end = area("vm_end");
    // An anonymous union makes vm_flags read-only for others since 6.3 (bc292ab00f6c).
    f.flags = layout.require_any("vm_area_struct", {"vm_flags", "__vm_flags"});
    f.page_offset = area("vm_pgoff");
    f.file = area("vm_file");
    f.ops = area("vm_ops");
    f.private_data = area("vm_private_data");
    // The name that prctl(PR_SET_VMA_ANON_NAME) gave, since 5.17 (9a10064f5625). Until 6.2 (d09e8ca6cb93) it shared its
    // place with the links of file mappings.
    f.given_name = layout.optional("vm_area_struct", "anon_name");
    f.given_name_text = layout.optional("anon_vma_name", "name");
    if (const auto links = layout.optional("vm_area_struct", "shared"); links && f.given_name)
      f.given_name_excludes_file = f.given_name->offset - links->offset < links->size;
    const auto mm = [&](std::string_view path) { return layout.require("mm_struct", path); };
    f.count = mm("map_count");
    f.heap_end = mm("brk");
    f.heap_begin = mm("start_brk");
    f.stack_begin = mm("start_stack");
    f.context_flags = layout.optional("mm_struct", "context.flags");
    f.tree = layout.optional("mm_struct", "mm_mt");
    if (!f.tree) {
      f.first = layout.require("mm_struct", "mmap");
      f.next = layout.require("vm_area_struct", "vm_next");
    }
    f.name_op = layout.optional("vm_operations_struct", "name");
    f.special_name = layout.optional("vm_special_mapping", "name");
    f.special_name_function = kernel.symbol("special_mapping_name");
    TRY(layout.check());
    if (f.tree) {
      TRY_ASSIGN(f.maple, kernel.layout<MapleLayout>());
    }
    return f;
  }
};

Result<AreaReader> AreaReader::create(const Kernel &kernel) {
  TRY_ASSIGN(const AreaLayout *layout, kernel.layout<AreaLayout>());
  TRY_ASSIGN(const VfsLayout *vfs, kernel.layout<VfsLayout>());
  TRY_ASSIGN(const auto paths, PathResolver::create(kernel));
  return AreaReader(kernel, *layout, *vfs, paths);
}

WalkResult AreaReader::walk_tree(Gva mm, std::vector<Area> &found) const {
  const std::size_t limit = object_limit(*kernel_, f_->area_size);
  std::size_t misplaced = 0;
  auto walk = walk_maple_tree(kernel_->space(), *f_->maple, mm + f_->tree->offset, limit,
                              [&](std::uint64_t first, std::uint64_t last, Gva area) {
                                // An area that was freed, and its memory used again, is elsewhere.
                                const auto begin = kernel_->read_pointer(area, f_->begin);
                                const auto end = kernel_->read_pointer(area, f_->end);
                                if (!kernel_->is_kernel_address(area) || !begin || !end || begin->value != first ||
                                    end->value - 1 != last)
                                  ++misplaced;
                                else
                                  found.push_back({area, *begin, *end});
                                return found.size() < limit;
                              });
  walk.mismatches += misplaced;
  return walk;
}

WalkResult AreaReader::walk_list_of_areas(Gva mm, std::vector<Area> &found) const {
  const auto first = kernel_->read_pointer(mm, *f_->first);
  Gva previous_end;
  std::size_t misplaced = 0;
  auto walk = walk_chain(*kernel_, first.value_or(Gva{}), f_->next->offset, object_limit(*kernel_, f_->area_size),
                         [&](Gva area) {
                           const auto begin = kernel_->read_pointer(area, f_->begin);
                           const auto end = kernel_->read_pointer(area, f_->end);
                           if (!begin || !end || *begin < previous_end || *end <= *begin) {
                             ++misplaced;
                             return false;
                           }
                           previous_end = *end;
                           found.push_back({area, *begin, *end});
                           return true;
                         });
  walk.mismatches += misplaced;
  return walk;
}

std::vector<AreaReader::Area> AreaReader::areas(Gva mm, ViewStatus &status) const {
  std::vector<Area> found;
  WalkResult walk;
  std::uint64_t expected = 0;
  for (std::size_t attempt = 0; attempt < attempts; ++attempt) {
    found.clear();
    walk = f_->tree ? walk_tree(mm, found) : walk_list_of_areas(mm, found);
    expected = kernel_->read_field(mm, f_->count).value_or(0);
    if (walk.end == WalkEnd::complete && walk.mismatches == 0 && expected == found.size())
      return found;
    ++status.retries;
  }
  status.raced = true;
  if (walk.end != WalkEnd::complete || walk.mismatches != 0) {
    status.truncated = true;
    status.warn(describe(walk, "the collection of memory areas"));
  } else {
    status.warn(
        fmt::format("the process has {} memory areas by its own count, and {} were found", expected, found.size()));
  }
  return found;
}

std::optional<Gva> AreaReader::file_of(Gva area) const {
  const auto file = kernel_->read_pointer(area, f_->file);
  return file && kernel_->is_kernel_address(*file) ? file : std::nullopt;
}

std::optional<AreaReader::Kind> AreaReader::kind_of(Gva area) const {
  const auto flags = kernel_->read_field(area, f_->flags);
  if (!flags)
    return std::nullopt;
  Kind kind;
  kind.writable = (*flags & vm_write) != 0;
  kind.executable = (*flags & vm_exec) != 0;
  kind.shared = (*flags & vm_may_share) != 0;
  kind.huge = (*flags & vm_hugetlb) != 0;
  kind.file = file_of(area);
  if (kind.file)
    kind.file_offset = kernel_->read_field(area, f_->page_offset).value_or(0) * page_size;
  return kind;
}

std::string AreaReader::given_name(Gva area) const {
  if (!f_->given_name || !f_->given_name_text)
    return {};
  const auto name = kernel_->read_pointer(area, *f_->given_name);
  if (!name || !kernel_->is_kernel_address(*name))
    return {};
  return kernel_->space().read_c_string(*name + f_->given_name_text->offset, 256).value_or("");
}

// get_vma_name() in fs/proc/task_mmu.c, for areas without a file.
std::string AreaReader::name_of(Gva mm, Gva area, const MemoryRegion &region) const {
  if (const auto ops = kernel_->read_pointer(area, f_->ops); ops && *ops && f_->name_op && f_->special_name) {
    const auto function = kernel_->read_pointer(*ops, *f_->name_op);
    if (function && *function && function == f_->special_name_function) {
      const auto mapping = kernel_->read_pointer(area, f_->private_data);
      const auto text = mapping && *mapping ? kernel_->read_pointer(*mapping, *f_->special_name) : std::nullopt;
      if (text && *text)
        return kernel_->space().read_c_string(*text, 64).value_or("");
    }
  }
  const auto at = [&](const FieldLocation &member) { return kernel_->read_pointer(mm, member).value_or(Gva{}); };
  // The kernel counts areas that merely touch the heap in older versions; with a random heap start, as usual,
  // none does.
  if (region.begin < at(f_->heap_end) && region.end > at(f_->heap_begin))
    return "[heap]";
  if (region.begin <= at(f_->stack_begin) && region.end >= at(f_->stack_begin))
    return "[stack]";
  if (const std::string name = given_name(area); !name.empty())
    return "[anon:" + name + "]";
  return {};
}

std::optional<MemoryRegion> AreaReader::read(Gva mm, Gva area) const {
  const auto begin = kernel_->read_pointer(area, f_->begin);
  const auto end = kernel_->read_pointer(area, f_->end);
  const auto flags = kernel_->read_field(area, f_->flags);
  if (!begin || !end || !flags)
    return std::nullopt;
  MemoryRegion region;
  region.begin = *begin;
  region.end = *end;
  region.readable = (*flags & vm_read) != 0;
  region.writable = (*flags & vm_write) != 0;
  region.executable = (*flags & vm_exec) != 0;
  region.shared = (*flags & vm_may_share) != 0;
  const auto file = file_of(area);
  if (!file) {
    region.path = name_of(mm, area, region);
    return region;
  }
  region.file_offset = kernel_->read_field(area, f_->page_offset).value_or(0) * page_size;
  const Gva path = vfs_->shown_path(*kernel_, *file);
  auto inode = kernel_->read_pointer(*file, vfs_->file_inode);
  if (path != *file + vfs_->file_path.offset)
    if (const auto dentry = kernel_->read_pointer(path, vfs_->path_dentry); dentry && *dentry)
      inode = kernel_->read_pointer(*dentry, vfs_->dentry_inode);
  if (inode && *inode) {
    region.inode = kernel_->read_field(*inode, vfs_->inode_number).value_or(0);
    const auto device = vfs_->device_of(*kernel_, *inode);
    region.device_major = device.major;
    region.device_minor = device.minor;
  }
  if (!f_->given_name_excludes_file)
    if (const std::string name = given_name(area); !name.empty()) {
      region.path = "[anon_shmem:" + name + "]";
      return region;
    }
  if (auto resolved = paths_.resolve(path)) {
    region.path = std::move(resolved->text);
    region.deleted = resolved->deleted;
  }
  return region;
}

std::optional<MemoryRegion> AreaReader::region(Gva mm, const Area &area) const {
  auto region = read(mm, area.address);
  // An area that was freed and used again while its members were read lies elsewhere, before or after.
  const auto begin = kernel_->read_pointer(area.address, f_->begin);
  const auto end = kernel_->read_pointer(area.address, f_->end);
  if (!region || region->begin != area.begin || region->end != area.end || begin != area.begin || end != area.end)
    return std::nullopt;
  return region;
}

std::optional<MemoryRegion> AreaReader::gate_region(Gva mm) const {
  const auto gate = kernel_->symbol("gate_vma");
  const auto mode = kernel_->symbol("vsyscall_mode");
  if (!gate || !mode || !f_->context_flags ||
      (kernel_->read_field(mm, *f_->context_flags).value_or(0) & has_vsyscall) == 0)
    return std::nullopt;
  // EMULATE, XONLY (since 5.3, bd49e16e3339), NONE
  const std::uint32_t none = kernel_->types().enumerator("XONLY") ? 2 : 1;
  if (kernel_->read<std::uint32_t>(*mode).value_or(none) >= none)
    return std::nullopt;
  auto region = read(mm, *gate);
  if (region)
    region->path = "[vsyscall]";
  return region;
}

Result<View<MemoryRegion>> read_memory_regions(const Kernel &kernel, std::int32_t pid) {
  View<MemoryRegion> view;
  TRY_ASSIGN(const auto groups, list_task_groups(kernel, pid, view.status));
  TRY_ASSIGN(const auto reader, AreaReader::create(kernel));
  const auto mm_member = kernel.types().field("task_struct", "mm");
  const auto mm = mm_member ? groups.front().first(kernel, *mm_member, view.status, "memory") : std::nullopt;
  if (!mm)
    return view; // a kernel thread or a process that ended
  const ViewStatus of_tasks = view.status;
  for (std::uint32_t attempt = 0; attempt < attempts; ++attempt) {
    view.items.clear();
    view.status = of_tasks;
    view.status.retries += attempt;
    std::size_t lost = 0;
    for (const AreaReader::Area &area : reader.areas(*mm, view.status))
      if (auto region = reader.region(*mm, area))
        view.items.push_back(*std::move(region));
      else
        ++lost;
    if (lost == 0)
      break;
    view.status.raced |= attempt + 1 == attempts;
  }
  if (auto gate = reader.gate_region(*mm))
    view.items.push_back(*std::move(gate));
  return view;
}

} // namespace lararium::linux_guest
