#include "files.h"

#include "lararium/os/linux/fdtable.h"
#include "vfs.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <unordered_map>

namespace lararium::linux_guest {
namespace {

constexpr std::size_t attempts = 4;
constexpr std::size_t item_limit = 4 << 20;
constexpr std::size_t unreadable_limit = 4096; // descriptors that lead to no file: a few are races, many are lies
constexpr std::uint32_t o_access_mode = 3, o_close_on_exec = 02000000, o_path = 010000000; // uapi/asm-generic/fcntl.h

std::string type_of(std::uint32_t mode, std::string_view filesystem) {
  // Anonymous inodes had no type in their mode before 6.16 (cfd86ef7e8e7), and are regular files since.
  if (filesystem == "anon_inodefs" || filesystem == "pidfs")
    return "anon";
  switch (mode & file_mode::mask) {
  case file_mode::regular: return "file";
  case file_mode::directory: return "directory";
  case file_mode::character: return "character";
  case file_mode::block: return "block";
  case file_mode::fifo: return "fifo";
  case file_mode::socket: return "socket";
  case file_mode::link: return "link";
  default: return "anon";
  }
}

std::string access_of(std::uint32_t flags) {
  if ((flags & o_path) != 0)
    return "path";
  constexpr std::array names{"r", "w", "rw", ""}; // 3: for ioctl alone
  return names[flags & o_access_mode];
}

class FileReader {
public:
  FileReader(const Kernel &kernel, const VfsLayout &layout, PathResolver paths)
      : kernel_(kernel), f_(layout), paths_(paths) {}

  // Nothing when it cannot be read: it was closed meanwhile, or the pointer is a lie.
  std::optional<OpenFile> read(Gva file) {
    // Inherited and duplicated descriptors share their struct file.
    if (const auto known = known_.find(file.value); known != known_.end())
      return known->second;
    OpenFile result;
    result.file = file;
    const auto flags = kernel_.read_field(file, f_.file_flags);
    const auto inode = kernel_.read_pointer(file, f_.file_inode);
    const auto position = kernel_.read_field(file, f_.file_position);
    if (!flags || !position || !inode || !kernel_.is_kernel_address(*inode))
      return std::nullopt;
    auto path = paths_.resolve(file + f_.file_path.offset);
    if (!path)
      return std::nullopt;
    result.path = std::move(path->text);
    result.deleted = path->deleted;
    result.flags = static_cast<std::uint32_t>(*flags) & ~o_close_on_exec;
    result.access = access_of(result.flags);
    result.position = *position;
    result.inode = kernel_.read_field(*inode, f_.inode_number).value_or(0);
    result.size = kernel_.read_field(*inode, f_.inode_size).value_or(0);
    const auto mode = static_cast<std::uint32_t>(kernel_.read_field(*inode, f_.inode_mode).value_or(0));
    const auto super_block = kernel_.read_pointer(*inode, f_.inode_super).value_or(Gva{});
    result.type = type_of(mode, f_.filesystem_of(kernel_, super_block));
    const auto device = device_number(kernel_.read_field(super_block, f_.super_device).value_or(0));
    result.device_major = device.major;
    result.device_minor = device.minor;
    const auto special = device_number(kernel_.read_field(*inode, f_.inode_device).value_or(0));
    result.special_major = special.major;
    result.special_minor = special.minor;
    if (known_.size() < known_limit)
      known_.emplace(file.value, result);
    return result;
  }
  void forget(Gva file) { known_.erase(file.value); }

private:
  static constexpr std::size_t known_limit = 1 << 16;
  const Kernel &kernel_;
  const VfsLayout &f_;
  PathResolver paths_;
  std::unordered_map<std::uint64_t, OpenFile> known_;
};

} // namespace

Result<View<OpenFile>> read_open_files(const Kernel &kernel, std::optional<std::int32_t> pid) {
  View<OpenFile> view;
  TRY_ASSIGN(const auto groups, list_task_groups(kernel, pid, view.status));
  TRY_ASSIGN(const VfsLayout *layout, kernel.layout<VfsLayout>());
  TRY_ASSIGN(const auto tables, DescriptorTables::create(kernel));
  TRY_ASSIGN(const auto paths, PathResolver::create(kernel));
  FileReader reader(kernel, *layout, paths);
  // Processes can share a table, so that a few open files fill many entries: these together are kept in proportion to
  // the guest's memory too.
  const std::size_t entry_bytes = std::max<std::size_t>(kernel.memory().total_size() / 12, 64 << 20);
  const std::size_t limit =
      std::min({item_limit, object_limit(kernel, layout->file_size), entry_bytes / sizeof(OpenFile)});
  std::size_t text_left = view_text_limit(kernel), unreadable_left = unreadable_limit;

  for (const TaskGroup &group : groups) {
    // A leader that ended has no table while its other threads go on.
    const auto holder = std::ranges::find_if(group.tasks, [&](Gva task) { return tables.files_of(task).has_value(); });
    if (holder == group.tasks.end())
      continue; // a zombie
    const std::string comm = task_comm(kernel, group.tasks.front());
    const std::size_t first_item = view.items.size();
    std::string unreadable;
    bool consistent = false;
    WalkResult walk;
    for (std::size_t attempt = 0; attempt < attempts && !consistent; ++attempt) {
      view.status.retries += attempt != 0;
      view.items.resize(first_item);
      unreadable.clear();
      std::vector<FileDescriptor> before, after;
      walk = tables.for_each(*holder, [&](const FileDescriptor &descriptor) {
        before.push_back(descriptor);
        if (auto file = reader.read(descriptor.file)) {
          file->pid = group.pid;
          file->comm = comm;
          file->fd = descriptor.number;
          file->close_on_exec = descriptor.close_on_exec;
          if (descriptor.close_on_exec)
            file->flags |= o_close_on_exec; // as /proc/PID/fdinfo has it
          text_left -= std::min(text_left, file->path.size() + sizeof(OpenFile));
          view.items.push_back(*std::move(file));
        } else {
          if (unreadable.empty())
            unreadable =
                fmt::format("descriptor {} of process {} leads to what is no file", descriptor.number, group.pid);
          if (--unreadable_left == 0)
            return false;
        }
        return before.size() < limit && view.items.size() < limit && text_left != 0;
      });
      if (walk.end == WalkEnd::stopped || walk.end == WalkEnd::limit) {
        view.status.truncated = true;
        view.status.warn("the guest has more open files than its memory can hold");
        return view;
      }
      // A file that is closed while we look at it, and its memory used again, shows another file's members. The table
      // tells: what it held before and after was there all the time.
      const auto again = tables.for_each(*holder, [&](const FileDescriptor &descriptor) {
        after.push_back(descriptor);
        return after.size() <= before.size();
      });
      consistent = walk.consistent() && again.consistent() && unreadable.empty() &&
                   std::ranges::equal(before, after, [](const FileDescriptor &a, const FileDescriptor &b) {
                     return a.number == b.number && a.file == b.file;
                   });
      if (!consistent)
        for (const FileDescriptor &descriptor : before)
          reader.forget(descriptor.file);
    }
    if (!consistent) {
      view.status.raced = true;
      if (!unreadable.empty())
        view.status.warn(unreadable);
      else if (!walk.consistent())
        view.status.warn(describe(walk, fmt::format("the table of descriptors of process {}", group.pid)));
    }
  }
  return view;
}

} // namespace lararium::linux_guest
