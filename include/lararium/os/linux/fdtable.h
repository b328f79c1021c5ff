// File descriptors: which struct file each open descriptor of a task leads to.
#pragma once

#include "lararium/os/linux/kernel.h"
#include "lararium/os/linux/list.h"

#include <cstdint>
#include <functional>
#include <optional>

namespace lararium::linux_guest {

struct FileDescriptor {
  std::int32_t number = 0;
  Gva file; // its struct file
  bool close_on_exec = false;
};

// Reads descriptor tables. Make one per view: what it reads over its life is bounded in sum, so that a guest whose
// tasks all claim one huge table costs no more than one honest guest with many files.
class DescriptorTables {
public:
  [[nodiscard]] static Result<DescriptorTables> create(const Kernel &kernel);

  using Visitor = std::function<bool(const FileDescriptor &)>; // false stops

  // Every open descriptor of the task, in order. The table itself decides, not its bitmap of open descriptors: what
  // /proc/PID/fd lists. No RCU protects this read; a table that is replaced while we read it gives stale descriptors.
  WalkResult for_each(Gva task, const Visitor &visit) const;

  // The task's struct files_struct; nothing for a dead task. Threads of one process nearly always share it.
  [[nodiscard]] std::optional<Gva> files_of(Gva task) const;

private:
  explicit DescriptorTables(const Kernel &kernel);
  const Kernel *kernel_;
  FieldLocation task_files_, table_, capacity_, slots_, close_on_exec_;
  mutable std::uint64_t slots_left_ = 0;
};

// Calls `visit` for every descriptor of every process, and of those threads that have a table of their own. `id` is the
// thread's number: of the leader where the table is the process'. For views that ask who holds what.
struct DescriptorHolder {
  std::int32_t id = 0;
  Gva task;
};
[[nodiscard]] Result<void>
for_each_open_file(const Kernel &kernel, ViewStatus &status,
                   const std::function<bool(const DescriptorHolder &, const FileDescriptor &)> &visit);

} // namespace lararium::linux_guest
