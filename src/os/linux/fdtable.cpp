#include "lararium/os/linux/fdtable.h"

#include "lararium/os/linux/tasks.h"

#include <algorithm>
#include <array>
#include <unordered_map>

namespace lararium::linux_guest {
namespace {

constexpr std::uint64_t total_slot_limit = 64 << 20; // over the life of a reader: 512 MiB of tables
constexpr std::size_t slots_per_read = 512;

} // namespace

DescriptorTables::DescriptorTables(const Kernel &kernel) : kernel_(&kernel), slots_left_(total_slot_limit) {}

Result<DescriptorTables> DescriptorTables::create(const Kernel &kernel) {
  DescriptorTables reader(kernel);
  LayoutResolver layout(kernel.types());
  reader.task_files_ = layout.require("task_struct", "files");
  reader.table_ = layout.require("files_struct", "fdt");
  reader.capacity_ = layout.require("fdtable", "max_fds");
  reader.slots_ = layout.require("fdtable", "fd");
  reader.close_on_exec_ = layout.require("fdtable", "close_on_exec");
  TRY(layout.check());
  return reader;
}

std::optional<Gva> DescriptorTables::files_of(Gva task) const {
  const auto files = kernel_->read_pointer(task, task_files_);
  return files && *files ? files : std::nullopt;
}

WalkResult DescriptorTables::for_each(Gva task, const Visitor &visit) const {
  WalkResult result;
  const auto files = files_of(task);
  if (!files)
    return result;
  const auto table = kernel_->read_pointer(*files, table_);
  const auto capacity = table ? kernel_->read_field(*table, capacity_) : std::nullopt;
  const auto slots = table ? kernel_->read_pointer(*table, slots_) : std::nullopt;
  const auto close_on_exec = table ? kernel_->read_pointer(*table, close_on_exec_) : std::nullopt;
  if (!capacity || !slots || !kernel_->is_kernel_address(*slots)) {
    result.end = WalkEnd::broken;
    result.at = *files;
    return result;
  }
  std::array<std::uint64_t, slots_per_read> pointers{};
  std::array<std::uint64_t, slots_per_read / 64> flags{};
  for (std::uint64_t first = 0; first < *capacity; first += slots_per_read) {
    const auto count = std::min<std::size_t>(*capacity - first, slots_per_read);
    if (slots_left_ < count) {
      result.end = WalkEnd::limit;
      result.at = *files;
      return result;
    }
    slots_left_ -= count;
    if (!kernel_->space().read(*slots + 8 * first, std::as_writable_bytes(std::span(pointers)).first(8 * count))) {
      result.end = WalkEnd::broken;
      result.at = *slots + 8 * first;
      return result;
    }
    bool flags_read = false;
    for (std::size_t i = 0; i < count; ++i) {
      if (pointers[i] == 0)
        continue;
      if (!kernel_->is_kernel_address(Gva{pointers[i]})) {
        ++result.mismatches;
        continue;
      }
      if (!flags_read) {
        flags_read = true;
        const std::size_t length = (count + 63) / 64 * 8; // the bitmaps are whole words
        if (!close_on_exec ||
            !kernel_->space().read(*close_on_exec + first / 8, std::as_writable_bytes(std::span(flags)).first(length)))
          flags.fill(0);
      }
      ++result.visited;
      if (!visit({static_cast<std::int32_t>(first + i), Gva{pointers[i]}, (flags[i / 64] >> i % 64 & 1) != 0})) {
        result.end = WalkEnd::stopped;
        return result;
      }
    }
  }
  return result;
}

Result<void> for_each_open_file(const Kernel &kernel, ViewStatus &status,
                                const std::function<bool(const DescriptorHolder &, const FileDescriptor &)> &visit) {
  TRY_ASSIGN(const auto tasks, list_tasks(kernel, true, status));
  TRY_ASSIGN(const auto tables, DescriptorTables::create(kernel));
  std::unordered_map<std::int32_t, Gva> group_tables; // of each thread group, from its leader
  for (const auto &entry : tasks)
    if (entry.pid == entry.tgid)
      if (const auto files = tables.files_of(entry.task))
        group_tables.emplace(entry.tgid, *files);
  for (const auto &entry : tasks) {
    if (entry.pid != entry.tgid) {
      // A leader that has ended has no table; the group's is then the one of its first thread that has.
      const auto files = tables.files_of(entry.task);
      if (!files)
        continue;
      const auto [group, first] = group_tables.try_emplace(entry.tgid, *files);
      if (!first && group->second == *files)
        continue;
    }
    const DescriptorHolder holder{entry.pid, entry.task};
    const auto walk = tables.for_each(entry.task, [&](const FileDescriptor &fd) { return visit(holder, fd); });
    if (walk.end == WalkEnd::stopped)
      return {};
    if (walk.end == WalkEnd::limit) {
      status.truncated = true;
      status.warn("the descriptor tables are larger than this guest can have");
      return {};
    }
    if (!walk.consistent())
      status.raced = true;
  }
  return {};
}

} // namespace lararium::linux_guest
