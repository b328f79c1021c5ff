#include "lararium/os/linux/program_memory.h"

#include "elf_image.h"
#include "lararium/os/linux/paths.h"
#include "lararium/os/linux/rb_tree.h"
#include "maps.h"
#include "page_cache.h"
#include "vfs.h"

#include <algorithm>
#include <cstring>
#include <ctime>
#include <map>
#include <set>
#include <unordered_map>

namespace lararium::linux_guest {
namespace {

constexpr std::uint64_t entry_allowance = 1 << 22; // page table entries beyond one for each page of RAM
constexpr std::size_t uprobe_limit = 1 << 16;
constexpr std::size_t cached_run_limit = 1 << 22; // runs of pages that are kept for all files: 96 MiB
constexpr std::size_t recheck_limit = 64;         // files whose pages are collected anew because one differs
constexpr std::size_t sampled_pages = 16;         // of one area
constexpr std::uint64_t searched_pages = 2048;    // from a program's entry on
constexpr std::size_t entry_pages = 64;           // of the main image that are compared where it is not mapped
constexpr std::size_t sibling_limit = 1 << 20;
constexpr std::byte breakpoint{0xcc}, call{0xe8};
constexpr std::uint64_t long_call = 5; // its length; also of the no-operation that it may replace
constexpr std::array<std::byte, long_call> long_no_operation{std::byte{0x0f}, std::byte{0x1f}, std::byte{0x44},
                                                             std::byte{0x00}, std::byte{0x00}};

constexpr std::int64_t cpu_limit_ns = 2'000'000'000; // far more than thousands of lawful processes take

std::int64_t cpu_time_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

using Page = std::array<std::byte, page_size>;

struct ProgramLayout {
  FieldLocation pgd, exe_file, auxiliary_vector;
  std::optional<FieldLocation> mapping_host;
  std::optional<FieldLocation> uprobe_node, uprobe_inode, uprobe_offset;
  std::optional<FieldLocation> child_list, child_node, child_hash_list, child_hash_node;

  static Result<ProgramLayout> resolve(const Kernel &kernel) {
    LayoutResolver layout(kernel.types());
    ProgramLayout f;
    f.pgd = layout.require("mm_struct", "pgd");
    f.exe_file = layout.require("mm_struct", "exe_file");
    f.auxiliary_vector = layout.require("mm_struct", "saved_auxv");
    f.mapping_host = layout.optional("address_space", "host");
    f.uprobe_node = layout.optional("uprobe", "rb_node");
    f.uprobe_inode = layout.optional("uprobe", "inode");
    f.uprobe_offset = layout.optional("uprobe", "offset");
    f.child_hash_list = layout.optional("dentry", "d_children"); // 6.8, da549bdd15c2
    f.child_hash_node = layout.optional("dentry", "d_sib");
    f.child_list = layout.optional("dentry", "d_subdirs");
    f.child_node = layout.optional("dentry", "d_child");
    TRY(layout.check());
    return f;
  }
};

} // namespace

struct ProgramMemory::State {
  const Kernel *kernel;
  const ProgramLayout *f;
  const VfsLayout *vfs;
  AreaReader areas;
  PageCache cache;
  PathResolver paths;
  std::uint64_t entries_left = 0;
  std::size_t runs_left = cached_run_limit;
  std::size_t rechecks_left = recheck_limit;
  bool exhausted = false;
  std::int64_t cpu_begin = cpu_time_ns();
  std::unordered_map<std::uint64_t, std::vector<PageCache::Run>> runs{}; // of each address_space
  std::optional<std::map<std::uint64_t, std::set<std::uint64_t>>> uprobes{};

  [[nodiscard]] std::optional<Gva> mapping_of(Gva file) const {
    const auto mapping = kernel->read_pointer(file, vfs->file_mapping);
    return mapping && kernel->is_kernel_address(*mapping) ? mapping : std::nullopt;
  }

  // Where the file's pages lie, collected once.
  const std::vector<PageCache::Run> &runs_of(Gva mapping, bool anew = false) {
    const auto [entry, is_new] = runs.try_emplace(mapping.value);
    if (!is_new && !anew)
      return entry->second;
    runs_left += entry->second.size();
    entry->second.clear();
    const auto host = f->mapping_host ? kernel->read_pointer(mapping, *f->mapping_host) : std::nullopt;
    const auto size = host ? kernel->read_field(*host, vfs->inode_size) : std::nullopt;
    if (!size || *size == 0 || *size >> 63 != 0)
      return entry->second;
    auto found = cache.collect(mapping, (*size - 1) / page_size + 1);
    if (found.size() > runs_left) {
      exhausted = true;
      return entry->second;
    }
    runs_left -= found.size();
    entry->second = std::move(found);
    return entry->second;
  }

  // Calls visit(address, physical address) for each small page of [begin, end) that is in memory; false stops. Only as
  // many entries are read as the range has, and never more than are left.
  template <class Visit> bool for_each_page(x86_64::PageTableRoot root, Gva begin, Gva end, Visit &&visit) {
    return walk_table(root.table, root.levels, begin, end, visit);
  }
  template <class Visit> bool walk_table(Gpa table, int level, Gva begin, Gva end, Visit &visit) {
    const int shift = 12 + 9 * (level - 1);
    std::array<std::uint64_t, 512> entries;
    const std::uint64_t first = begin.value >> shift & 511;
    const std::uint64_t count = ((end.value - 1) >> shift) - (begin.value >> shift) + 1;
    if (count > 512 - first)
      return true; // of no table: the range is not of one
    if (count > entries_left) {
      exhausted = true;
      return false;
    }
    entries_left -= count;
    const auto part = std::span(entries).first(count);
    if (!kernel->memory().read(table + 8 * first, std::as_writable_bytes(part)))
      return true;
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::uint64_t value = part[i];
      if ((value & x86_64::entry::present) == 0)
        continue;
      const std::uint64_t base = ((begin.value >> shift) + i) << shift;
      const Gva from{std::max(base, begin.value)};
      const Gva to{std::min(base + (std::uint64_t{1} << shift), end.value)};
      const bool leaf = level == 1 || (value & x86_64::entry::large) != 0;
      if (!leaf) {
        if (!walk_table(Gpa{value & x86_64::entry::address_mask}, level - 1, from, to, visit))
          return false;
        continue;
      }
      if (level > 3)
        continue;
      const std::uint64_t bytes = std::uint64_t{1} << shift;
      const Gpa start{(value & x86_64::entry::address_mask & ~(bytes - 1)) + (from.value - base)};
      const std::uint64_t pages = (to - from) / page_size;
      if (level > 1) {
        if (pages > entries_left) {
          exhausted = true;
          return false;
        }
        entries_left -= pages;
      }
      for (std::uint64_t page = 0; page < pages; ++page)
        if (!visit(from + page * page_size, start + page * page_size))
          return false;
    }
    return true;
  }

  [[nodiscard]] std::optional<Gpa> translate(x86_64::PageTableRoot root, Gva address) const {
    const auto translation = x86_64::translate(root, address, [&](Gpa entry) -> std::optional<std::uint64_t> {
      std::uint64_t value = 0;
      if (!kernel->memory().read(entry, writable_bytes_of(value)))
        return std::nullopt;
      return value;
    });
    return translation ? std::optional(translation->address) : std::nullopt;
  }

  // Where uprobes stand in a file: the kernel puts a breakpoint there in every process that maps it, or since 6.18
  // (ba2bfc97b462) a call in place of a long no-operation.
  const std::set<std::uint64_t> *uprobes_of(Gva inode) {
    if (!uprobes) {
      uprobes.emplace();
      const auto tree = kernel->symbol("uprobes_tree");
      const auto rb = kernel->layout<RbLayout>();
      const auto top = tree ? kernel->read_pointer(*tree) : std::nullopt;
      if (top && rb && f->uprobe_node && f->uprobe_inode && f->uprobe_offset)
        walk_rb_tree(kernel->space(), **rb, *top, uprobe_limit, [&](Gva node) {
          const Gva uprobe = node - f->uprobe_node->offset;
          const auto of = kernel->read_pointer(uprobe, *f->uprobe_inode);
          const auto offset = kernel->read_field(uprobe, *f->uprobe_offset);
          if (of && offset)
            (*uprobes)[of->value].insert(*offset);
          return true;
        });
    }
    const auto found = uprobes->find(inode.value);
    return found == uprobes->end() ? nullptr : &found->second;
  }

  // Takes a file's bytes for what uprobes made of them.
  void apply_uprobes(const std::set<std::uint64_t> &offsets, std::uint64_t file_offset, Page &expected,
                     const Page &found) const {
    const std::uint64_t begin = file_offset < long_call ? 0 : file_offset - (long_call - 1);
    for (auto at = offsets.lower_bound(begin); at != offsets.end() && *at < file_offset + page_size; ++at) {
      if (*at < file_offset) {
        // The tail of a call that begins on the page before: what was there is not at hand.
        for (std::uint64_t i = 0; i < *at + long_call - file_offset; ++i)
          expected[i] = found[i];
        continue;
      }
      const std::uint64_t place = *at - file_offset;
      const std::size_t length = std::min<std::size_t>(long_call, page_size - place);
      const bool replaceable = std::equal(long_no_operation.begin(), long_no_operation.begin() + length,
                                          expected.begin() + static_cast<std::ptrdiff_t>(place));
      if (replaceable && (found[place] == call || found[place] == breakpoint))
        std::copy_n(found.begin() + static_cast<std::ptrdiff_t>(place), length,
                    expected.begin() + static_cast<std::ptrdiff_t>(place));
      else if (found[place] == breakpoint)
        expected[place] = breakpoint;
    }
  }

  static std::optional<PageDifference> difference_of(Gva address, std::uint64_t file_offset, const Page &expected,
                                                     const Page &found) {
    std::optional<PageDifference> result;
    for (std::size_t i = 0; i < page_size; ++i) {
      if (expected[i] == found[i])
        continue;
      if (!result) {
        result.emplace();
        result->address = address + i;
        result->file_offset = file_offset + i;
        result->only_breakpoints = true;
        result->shown = std::min(result->expected.size(), page_size - i);
        std::copy_n(expected.begin() + static_cast<std::ptrdiff_t>(i), result->shown, result->expected.begin());
        std::copy_n(found.begin() + static_cast<std::ptrdiff_t>(i), result->shown, result->found.begin());
      }
      ++result->bytes;
      result->only_breakpoints &= found[i] == breakpoint;
    }
    return result;
  }

  // How a page that a process has for itself differs from its file's, which may be moved, evicted or freed meanwhile:
  // both must still be what they were when they were copied.
  std::optional<PageDifference> compare_page(const Program &program, const ExecutableArea &area, Gva mapping,
                                             Gva address, Gpa own, bool &unknown) {
    const std::uint64_t offset = area.file_offset + (address - area.begin), index = offset / page_size;
    Page expected, found;
    const auto read_both = [&]() {
      const auto place = cache.find_current(runs_of(mapping), index, mapping);
      return place && kernel->memory().read(*place, expected) && kernel->memory().read(own, found) &&
             cache.find_current(runs_of(mapping), index, mapping) == place;
    };
    if (!read_both()) {
      unknown = true;
      return std::nullopt;
    }
    if (std::memcmp(expected.data(), found.data(), page_size) == 0)
      return std::nullopt;
    if (rechecks_left == 0) {
      exhausted = true;
      return std::nullopt;
    }
    --rechecks_left;
    (void)runs_of(mapping, true);
    if (!read_both() || translate(program.root, address) != own) {
      unknown = true;
      return std::nullopt;
    }
    // The last of a file is zeros in memory beyond its end, and anything in the cache.
    const auto host = f->mapping_host ? kernel->read_pointer(mapping, *f->mapping_host) : std::nullopt;
    if (host) {
      const std::uint64_t size = kernel->read_field(*host, vfs->inode_size).value_or(0);
      for (std::uint64_t i = size > offset ? size - offset : 0; i < page_size; ++i)
        expected[i] = found[i];
      if (const auto *offsets = uprobes_of(*host))
        apply_uprobes(*offsets, offset, expected, found);
    }
    return difference_of(address, offset, expected, found);
  }

  [[nodiscard]] Gva entry_of(Gva memory) const {
    constexpr std::uint64_t at_entry = 9; // AT_ENTRY, uapi/linux/auxvec.h
    std::array<std::uint64_t, 128> words{};
    const auto part = std::span(words).first(std::min<std::size_t>(f->auxiliary_vector.size / 8, words.size()));
    if (!kernel->space().read(memory + f->auxiliary_vector.offset, std::as_writable_bytes(part)))
      return {};
    for (std::size_t i = 0; i + 1 < part.size() && part[i] != 0; i += 2)
      if (part[i] == at_entry)
        return Gva{part[i + 1]};
    return {};
  }

  [[nodiscard]] Gva dentry_of(Gva file) const {
    const auto dentry = kernel->read_pointer(vfs->shown_path(*kernel, file), vfs->path_dentry);
    return dentry && kernel->is_kernel_address(*dentry) ? *dentry : Gva{};
  }
};

ProgramMemory::ProgramMemory(std::unique_ptr<State> state) : state_(std::move(state)) {}
ProgramMemory::ProgramMemory(ProgramMemory &&) noexcept = default;
ProgramMemory &ProgramMemory::operator=(ProgramMemory &&) noexcept = default;
ProgramMemory::~ProgramMemory() = default;

Result<ProgramMemory> ProgramMemory::create(const Kernel &kernel) {
  TRY_ASSIGN(const ProgramLayout *layout, kernel.layout<ProgramLayout>());
  TRY_ASSIGN(const VfsLayout *vfs, kernel.layout<VfsLayout>());
  TRY_ASSIGN(auto areas, AreaReader::create(kernel));
  TRY_ASSIGN(auto cache, PageCache::create(kernel));
  TRY_ASSIGN(auto paths, PathResolver::create(kernel));
  return ProgramMemory(std::unique_ptr<State>(new State{&kernel, layout, vfs, areas, cache, paths,
                                                        entry_allowance + kernel.memory().total_size() / page_size}));
}

bool ProgramMemory::exhausted() const { return state_->exhausted; }

std::optional<Program> ProgramMemory::program(Gva memory) const {
  const Kernel &kernel = *state_->kernel;
  // Each walk through areas is bounded, but not what a crowd of made-up processes takes together.
  state_->exhausted |= cpu_time_ns() - state_->cpu_begin > cpu_limit_ns;
  if (state_->exhausted)
    return std::nullopt;
  const auto pgd = kernel.read_pointer(memory, state_->f->pgd);
  const auto table = pgd ? kernel.space().translate(*pgd) : std::nullopt;
  if (!table)
    return std::nullopt;
  Program program;
  program.memory = memory;
  program.root = {table->address.page(), kernel.location().root.levels};
  program.entry = state_->entry_of(memory);
  if (const auto exe = kernel.read_pointer(memory, state_->f->exe_file); exe && kernel.is_kernel_address(*exe))
    program.dentry = state_->dentry_of(*exe);
  ViewStatus status;
  const VfsLayout &vfs = *state_->vfs;
  for (const AreaReader::Area &area : state_->areas.areas(memory, status)) {
    const auto kind = state_->areas.kind_of(area.address);
    if (!kind || !kind->executable || area.begin.page_offset() != 0 || area.end.page_offset() != 0 ||
        area.end <= area.begin || area.end.value >> 63 != 0)
      continue;
    ExecutableArea found;
    found.area = area.address;
    found.begin = area.begin;
    found.end = area.end;
    found.writable = kind->writable;
    found.shared = kind->shared;
    found.huge = kind->huge;
    found.file_offset = kind->file_offset;
    const auto inode = kind->file ? kernel.read_pointer(*kind->file, vfs.file_inode) : std::nullopt;
    const auto mode = inode ? kernel.read_field(*inode, vfs.inode_mode).value_or(0) & file_mode::mask : 0;
    if (kind->file && mode != file_mode::character) {
      found.file = *kind->file;
      found.dentry = state_->dentry_of(*kind->file);
      found.unlinked = inode && kernel.read_field(*inode, vfs.inode_links) == 0;
    }
    program.areas.push_back(found);
  }
  program.raced = status.raced;
  return program;
}

std::optional<MemoryRegion> ProgramMemory::describe(const Program &program, const ExecutableArea &area) const {
  return state_->areas.region(program.memory, {area.area, area.begin, area.end});
}

TextComparison ProgramMemory::compare(const Program &program, const ExecutableArea &area) const {
  TextComparison result;
  State &state = *state_;
  const auto mapping = area.file && !area.huge ? state.mapping_of(area.file) : std::nullopt;
  if (!mapping || area.file_offset >> 62 != 0)
    return result;
  state.for_each_page(program.root, area.begin, area.end, [&](Gva address, Gpa own) {
    ++result.pages;
    const std::uint64_t index = (area.file_offset + (address - area.begin)) / page_size;
    const auto cached = state.cache.find(state.runs_of(*mapping), index);
    if (cached == own)
      return true;
    ++result.copied;
    bool unknown = false;
    const auto difference = state.compare_page(program, area, *mapping, address, own, unknown);
    result.unknown += unknown ? 1 : 0;
    if (difference) {
      ++result.different;
      result.differences.push_back(*difference);
    }
    return result.differences.size() < TextComparison::difference_limit;
  });
  return result;
}

std::optional<bool> ProgramMemory::entry_is_of_file(const Program &program) const {
  State &state = *state_;
  const Kernel &kernel = *state.kernel;
  const auto exe = kernel.read_pointer(program.memory, state.f->exe_file);
  const auto mapping = exe && kernel.is_kernel_address(*exe) ? state.mapping_of(*exe) : std::nullopt;
  if (!mapping)
    return std::nullopt;
  const auto file_page = [&](std::uint64_t index, Page &page) {
    const auto place = state.cache.find_current(state.runs_of(*mapping), index, *mapping);
    return place && kernel.memory().read(*place, page);
  };
  Page header;
  if (!file_page(0, header))
    return std::nullopt;
  const auto image = parse_elf_image(header);
  const ElfSegment *segment = image ? image->segment_of(image->entry) : nullptr;
  if (segment == nullptr)
    return std::nullopt;
  const std::uint64_t start = segment->file_offset + (image->entry - segment->address);
  if (start % page_size != program.entry.value % page_size)
    return false;
  // From the entry's page on to the segment's end, as far as both are at hand: memory may be swapped out, and nobody
  // reads a file any more whose program moved itself.
  const std::uint64_t first = start / page_size, end = (segment->file_offset + segment->file_size) / page_size;
  std::size_t compared = 0;
  for (std::uint64_t page = first; page < end && page - first < searched_pages && compared < entry_pages; ++page) {
    Page expected, found;
    const auto own = state.translate(program.root, program.entry.page() + (page - first) * page_size);
    if (!own || !kernel.memory().read(*own, found) || !file_page(page, expected))
      continue;
    if (std::memcmp(expected.data(), found.data(), page_size) != 0)
      return false;
    ++compared;
  }
  return compared != 0 ? std::optional(true) : std::nullopt;
}

MemorySample ProgramMemory::sample(const Program &program, const ExecutableArea &area) const {
  MemorySample result;
  State &state = *state_;
  std::size_t looked_at = 0;
  state.for_each_page(program.root, area.begin, area.end, [&](Gva address, Gpa own) {
    result.resident += page_size;
    Page page;
    if (result.address || looked_at++ >= sampled_pages || !state.kernel->memory().read(own, page))
      return true;
    const auto first = std::ranges::find_if(page, [](std::byte byte) { return byte != std::byte{0}; });
    if (first == page.end())
      return true;
    constexpr std::array magic{std::byte{0x7f}, std::byte{'E'}, std::byte{'L'}, std::byte{'F'}};
    result.is_image = address == area.begin && std::equal(magic.begin(), magic.end(), page.begin());
    result.address = address + static_cast<std::uint64_t>(first - page.begin());
    std::copy_n(first, std::min<std::ptrdiff_t>(page.end() - first, std::ssize(result.bytes)), result.bytes.begin());
    return true;
  });
  return result;
}

bool ProgramMemory::was_replaced(const Program &program) const {
  const Kernel &kernel = *state_->kernel;
  const ProgramLayout &f = *state_->f;
  const VfsLayout &vfs = *state_->vfs;
  if (!program.dentry || !state_->paths.is_deleted(program.dentry))
    return false;
  const auto parent = kernel.read_pointer(program.dentry, vfs.dentry_parent);
  if (!parent || !kernel.is_kernel_address(*parent) || *parent == program.dentry)
    return false;
  const std::string name = state_->paths.name_of(program.dentry);
  bool found = false;
  const auto consider = [&](Gva dentry) {
    const auto inode = state_->paths.inode_of(dentry);
    found = inode && *inode && dentry != program.dentry && state_->paths.name_of(dentry) == name &&
            !state_->paths.is_deleted(dentry);
    return !found;
  };
  const std::size_t limit = std::min(sibling_limit, object_limit(kernel, 128));
  if (f.child_hash_list && f.child_hash_node) {
    const auto first = kernel.read_pointer(*parent, *f.child_hash_list);
    walk_chain(kernel, first.value_or(Gva{}), 0, limit,
               [&](Gva link) { return consider(link - f.child_hash_node->offset); });
  } else if (f.child_list && f.child_node) {
    walk_list(kernel, *parent + f.child_list->offset, limit,
              [&](Gva link) { return consider(link - f.child_node->offset); });
  }
  return found;
}

} // namespace lararium::linux_guest
