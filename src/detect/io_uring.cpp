// Processes that have their files and connections worked on through io_uring, where nothing that watches system calls
// sees it, and sockets that only a ring holds, where no list of open files shows them.

#include "handler.h"
#include "lararium/detect/check.h"
#include "lararium/os/linux/list.h"
#include "lararium/os/linux/tasks.h"
#include "lararium/os/linux/xarray.h"
#include "process_finding.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <map>
#include <set>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;
using linux_guest::LayoutResolver;
using linux_guest::TaskEntry;

constexpr std::size_t user_limit = 256;          // processes with rings
constexpr std::size_t ring_limit = 1024;         // of one task
constexpr std::size_t ring_budget = 1 << 18;     // of all: crafted tasks share one tree of rings
constexpr std::size_t walk_budget = 1 << 20;     // tasks that are met in walks for one process each
constexpr std::uint64_t slot_limit = 1 << 15;    // IORING_MAX_FIXED_FILES of before 5.18; more are not looked at
constexpr std::uint64_t ring_is_polled = 1 << 1; // IORING_SETUP_SQPOLL, uapi/linux/io_uring.h
constexpr std::uint64_t files_per_table = 512;   // IORING_MAX_FILES_TABLE
constexpr std::uint64_t pointer_mask = ~std::uint64_t{7}; // flags of a fixed file
constexpr std::uint32_t mode_mask = 0170000, mode_socket = 0140000;

struct Layout {
  std::optional<FieldLocation> tasks_rings, xarray;
  std::optional<FieldLocation> node_context; // 5.12, 13bf43f5f473
  std::optional<FieldLocation> file_private; // before: the ring's file
  std::optional<FieldLocation> flags, rings, head;
  std::optional<FieldLocation> file_count, files;              // until 6.12
  std::optional<FieldLocation> nodes, node_count, node_file;   // since 6.13 (b54a14041ee6)
  std::optional<FieldLocation> file_data, tables, table_files; // until 5.11
  std::optional<FieldLocation> fixed_file;
  std::uint64_t fixed_file_size = 0, table_size = 0;
  bool files_in_arrays = false;
  std::optional<FieldLocation> inode, mode;
  std::optional<FieldLocation> reads, writes, signal, dead_reads, dead_writes;

  static Result<Layout> resolve(const Kernel &kernel) {
    LayoutResolver layout(kernel.types());
    Layout f;
    f.tasks_rings = layout.optional("task_struct", "io_uring");
    f.xarray = layout.optional("io_uring_task", "xa");
    f.node_context = layout.optional("io_tctx_node", "ctx");
    f.file_private = layout.optional("file", "private_data");
    f.flags = layout.optional("io_ring_ctx", "flags");
    f.rings = layout.optional("io_ring_ctx", "rings");
    f.head = layout.optional("io_rings", "sq.head");
    f.nodes = layout.optional("io_ring_ctx", "file_table.data.nodes");
    f.node_count = layout.optional("io_ring_ctx", "file_table.data.nr");
    f.node_file = layout.optional("io_rsrc_node", "file_ptr");
    f.file_count = layout.optional("io_ring_ctx", "nr_user_files");
    f.file_data = layout.optional("io_ring_ctx", "file_data");
    f.tables = layout.optional("fixed_file_data", "table");
    f.table_files = layout.optional("fixed_file_table", "files");
    // An array of files since 5.15 (0bea96f59ba4), which came to 5.10.y too; from 5.12 an array of such arrays.
    f.files = layout.optional("io_ring_ctx", "file_table.files");
    if (f.files)
      if (const auto pointer = kernel.types().info(f.files->type); pointer && pointer->kind == TypeKind::pointer)
        if (const auto target = kernel.types().info(pointer->target))
          f.files_in_arrays = target->kind == TypeKind::pointer;
    f.fixed_file = layout.optional("io_fixed_file", "file_ptr");
    f.fixed_file_size = kernel.types().size_of("io_fixed_file").value_or(0);
    f.table_size = kernel.types().size_of("fixed_file_table").value_or(0);
    f.inode = layout.optional("file", "f_inode");
    f.mode = layout.optional("inode", "i_mode");
    f.reads = layout.optional("task_struct", "ioac.syscr");
    f.writes = layout.optional("task_struct", "ioac.syscw");
    f.signal = layout.optional("task_struct", "signal");
    f.dead_reads = layout.optional("signal_struct", "ioac.syscr");
    f.dead_writes = layout.optional("signal_struct", "ioac.syscw");
    return f;
  }
};

struct RingUser { // a process
  std::set<Gva> rings;
  std::uint64_t workers = 0;
  std::uint64_t calls = 0; // reads and writes by system call
  Gva leader;
};

class IoUring final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override {
    const Kernel &kernel = scene.kernel();
    TRY_ASSIGN(const Layout *layout, kernel.layout<Layout>());
    const Layout &f = *layout;
    if (!f.tasks_rings || !f.xarray || !f.rings || !f.head || !f.flags)
      return {}; // no such thing in this kernel
    const auto &tasks = scene.tasks();
    if (!tasks)
      return std::unexpected(tasks.error());
    TRY_ASSIGN(const auto xarray, linux_guest::XarrayReader::create(kernel));
    std::map<std::int32_t, RingUser> users;
    Budget budget(ring_budget);
    for (const TaskEntry &task : tasks->items) {
      const auto rings = kernel.read_pointer(task.task, *f.tasks_rings);
      if (!rings || !*rings || !kernel.is_kernel_address(*rings))
        continue;
      RingUser &user = users[task.tgid];
      xarray.for_each(*rings + f.xarray->offset, ring_limit, [&](const linux_guest::XarrayEntry &entry) {
        const auto context = f.node_context   ? kernel.read_pointer(entry.pointer(), *f.node_context)
                             : f.file_private ? kernel.read_pointer(entry.pointer(), *f.file_private)
                                              : std::nullopt;
        if (!entry.is_value && context && kernel.is_kernel_address(*context))
          user.rings.insert(*context);
        return budget.take();
      });
    }
    std::erase_if(users, [](const auto &entry) { return entry.second.rings.empty(); });
    if (users.empty())
      return {};
    for (const TaskEntry &task : tasks->items)
      if (const auto user = users.find(task.tgid); user != users.end())
        count(kernel, f, task, user->second);
    TRY_ASSIGN(const auto sockets, scene.sockets());
    std::map<std::int32_t, std::uint64_t> connections;
    for (const Socket &socket : sockets)
      if (socket.protocol.starts_with("tcp") || socket.protocol.starts_with("udp"))
        for (const SocketOwner &owner : socket.owners)
          ++connections[owner.pid];
    // Each costs a walk through all tasks: more than a few are made up, or a crowd that is alike.
    std::size_t left = std::min(user_limit, walk_budget / std::max<std::size_t>(tasks->items.size(), 1) + 1);
    for (const auto &[pid, user] : users)
      if (left-- != 0)
        report(scene, f, pid, user, connections[pid], findings);
      else
        break;
    return {};
  }

private:
  static void count(const Kernel &kernel, const Layout &f, const TaskEntry &task, RingUser &user) {
    const auto number = [&](Gva object, const std::optional<FieldLocation> &member) {
      return member ? kernel.read_field(object, *member).value_or(0) : 0;
    };
    // Threads of the process that the kernel made for its rings (5.12, 3bfe6106693b); before, kernel threads.
    const std::string comm = linux_guest::task_comm(kernel, task.task);
    if (comm.starts_with("iou-wrk-") || comm.starts_with("iou-sqp-"))
      ++user.workers;
    else
      user.calls += number(task.task, f.reads) + number(task.task, f.writes);
    if (task.pid != task.tgid)
      return;
    user.leader = task.task;
    if (const auto signal = f.signal ? kernel.read_pointer(task.task, *f.signal) : std::nullopt; signal && *signal)
      user.calls += number(*signal, f.dead_reads) + number(*signal, f.dead_writes);
  }

  // Files in the ring's own table: they need no descriptor, and no list of descriptors shows them.
  static std::vector<Gva> fixed_files(const Kernel &kernel, const Layout &f, Gva ring) {
    std::vector<Gva> result;
    const bool nodes = f.nodes && f.node_count && f.node_file;
    const auto count_member = nodes ? f.node_count : f.file_count;
    if (!count_member)
      return result;
    const std::uint64_t length = std::min(kernel.read_field(ring, *count_member).value_or(0), slot_limit);
    for (std::uint64_t i = 0; i < length; ++i) {
      const auto file = fixed_file(kernel, f, ring, nodes, i);
      if (const Gva address{file.value_or(Gva{}).value & pointer_mask}; kernel.is_kernel_address(address))
        result.push_back(address);
    }
    return result;
  }

  static std::optional<Gva> fixed_file(const Kernel &kernel, const Layout &f, Gva ring, bool nodes, std::uint64_t i) {
    const auto follow = [&](Gva object, const std::optional<FieldLocation> &member) -> std::optional<Gva> {
      const auto target = member ? kernel.read_pointer(object, *member) : std::nullopt;
      return target && kernel.is_kernel_address(*target) ? target : std::nullopt;
    };
    if (nodes) {
      const auto table = follow(ring, f.nodes);
      const auto node = table ? kernel.read_pointer(*table + 8 * i) : std::nullopt;
      return node && kernel.is_kernel_address(*node) ? kernel.read_pointer(*node, *f.node_file) : std::nullopt;
    }
    if (f.files && f.fixed_file && f.fixed_file_size != 0) {
      auto table = follow(ring, f.files);
      if (table && f.files_in_arrays)
        table = kernel.read_pointer(*table + 8 * (i / files_per_table));
      const std::uint64_t index = f.files_in_arrays ? i % files_per_table : i;
      return table && kernel.is_kernel_address(*table)
                 ? kernel.read_pointer(*table + index * f.fixed_file_size, *f.fixed_file)
                 : std::nullopt;
    }
    const auto data = follow(ring, f.file_data);
    const auto tables = data ? follow(*data, f.tables) : std::nullopt;
    const auto files = tables ? follow(*tables + i / files_per_table * f.table_size, f.table_files) : std::nullopt;
    return files ? kernel.read_pointer(*files + 8 * (i % files_per_table)) : std::nullopt;
  }

  static bool is_socket(const Kernel &kernel, const Layout &f, Gva file) {
    const auto inode = f.inode ? kernel.read_pointer(file, *f.inode) : std::nullopt;
    return inode && kernel.is_kernel_address(*inode) && f.mode &&
           (kernel.read_field(*inode, *f.mode).value_or(0) & mode_mask) == mode_socket;
  }

  static void report(const Scene &scene, const Layout &f, std::int32_t pid, const RingUser &user,
                     std::uint64_t connections, Findings &findings) {
    const Kernel &kernel = scene.kernel();
    std::uint64_t requests = 0, fixed = 0, hidden_sockets = 0;
    bool is_polled = false;
    std::set<Gva> held;
    if (const auto files = scene.system().open_files(pid))
      for (const OpenFile &file : files->items)
        held.insert(file.file);
    for (const Gva ring : user.rings) {
      if (const auto rings = kernel.read_pointer(ring, *f.rings); rings && kernel.is_kernel_address(*rings))
        requests += kernel.read_field(*rings, *f.head).value_or(0);
      is_polled |= (kernel.read_field(ring, *f.flags).value_or(0) & ring_is_polled) != 0;
      for (const Gva file : fixed_files(kernel, f, ring)) {
        ++fixed;
        hidden_sockets += !held.contains(file) && is_socket(kernel, f, file) ? 1 : 0;
      }
    }
    // Who calls read() and write() as well is seen by whoever watches system calls.
    if (requests == 0 || (requests <= user.calls && !is_polled && hidden_sockets == 0))
      return;
    const Process *process = scene.process(pid);
    if (process == nullptr)
      return;
    std::string what =
        hidden_sockets != 0
            ? fmt::format("holds {} sockets in an io_uring that no list of open files shows", hidden_sockets)
            : fmt::format("works through io_uring: {} requests, and {} reads and writes by system call", requests,
                          user.calls);
    add_finding(scene, findings, *process, "io_uring", hidden_sockets != 0 ? Severity::medium : Severity::low, "T1106",
                what)
        .with("rings", std::uint64_t{user.rings.size()})
        .with("requests", requests)
        .with("reads_and_writes", user.calls)
        .with("workers", user.workers)
        .with("polled_by_kernel", is_polled)
        .with("connections", connections)
        .with("fixed_files", fixed)
        .with("hidden_sockets", hidden_sockets);
  }
};

LARARIUM_CHECK(
    IoUring, "io_uring", "T1106", "processes that work through io_uring, where no system call shows it",
    "Finds the rings of every process from its threads, also those that no descriptor leads to any more. Reports a "
    "process that gave its rings more requests than it made reads and writes by system call, or whose ring the kernel "
    "polls (low: databases and web servers do so), and sockets that lie in a ring's own table and in no descriptor "
    "(medium). What the requests were is not kept by the "
    "kernel.")

} // namespace
} // namespace lararium::detect
