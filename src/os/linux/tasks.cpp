#include "lararium/os/linux/tasks.h"

#include "lararium/os/linux/paths.h"

#include <algorithm>
#include <array>
#include <bit>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <random>
#include <unordered_map>
#include <unordered_set>

namespace lararium::linux_guest {
namespace {

constexpr std::size_t walk_attempts = 4;
constexpr std::size_t pid_limit = 4 << 20; // PID_MAX_LIMIT on 64 bits
constexpr std::size_t thread_limit = 1 << 20;
constexpr std::uint64_t smallest_stack = 16 << 10;
constexpr std::uint32_t group_count_limit = 65536; // NGROUPS_MAX
constexpr std::size_t argument_bytes_limit = 32 << 10;
constexpr std::size_t argument_count_limit = 4096;
constexpr std::uint32_t pf_kthread = 0x00200000; // include/linux/sched.h, unchanged since 2.6.27
constexpr std::int32_t default_priority = 120;   // DEFAULT_PRIO
constexpr std::size_t tasks_ahead = 32;          // that are expected at once: their memory fits the processor's caches
constexpr std::uint64_t cache_line = 64;

struct ListLayout {
  FieldLocation tasks, pid, tgid, signal, thread_head, thread_node, next_task_offset;
  std::uint64_t task_size = 0;
  // The tasks that the last walk met: where those of the next walk lie, most likely. It serves expect() alone.
  mutable std::vector<Gva> last_walk;

  static Result<ListLayout> resolve(const Kernel &kernel) {
    LayoutResolver layout(kernel.types());
    ListLayout result;
    result.tasks = layout.require("task_struct", "tasks");
    result.pid = layout.require("task_struct", "pid");
    result.tgid = layout.require("task_struct", "tgid");
    result.signal = layout.require("task_struct", "signal");
    // All threads of a group hang on signal->thread_head since 3.14 (0c740d0afc3b).
    result.thread_head = layout.require("signal_struct", "thread_head");
    result.thread_node = layout.require("task_struct", "thread_node");
    result.task_size = layout.require_size("task_struct");
    TRY(layout.check());
    return result;
  }
};

std::string describe_walk(const WalkResult &walk, std::string_view what) {
  switch (walk.end) {
  case WalkEnd::broken: return std::string(what) + " leads out of readable kernel memory";
  case WalkEnd::cyclic: return std::string(what) + " runs in a circle that does not come back to its head";
  case WalkEnd::limit: return std::string(what) + " is longer than this guest can have";
  case WalkEnd::complete:
  case WalkEnd::stopped: break;
  }
  return {};
}

// More tasks than fit into the guest's memory are a lie: each has a stack of its own, of 16 KiB (THREAD_SIZE).
std::size_t task_limit(const Kernel &kernel, std::uint64_t task_size) {
  return std::min<std::size_t>(pid_limit, kernel.memory().total_size() / (smallest_stack + task_size) + 64);
}

// Has the memory brought near that the walk is going to look at of these tasks.
void expect_links(const Kernel &kernel, const ListLayout &layout, std::span<const Gva> tasks) {
  std::vector<Gva> places;
  for (const Gva task : tasks)
    for (const FieldLocation &member : {layout.tasks, layout.pid, layout.tgid, layout.signal, layout.thread_node})
      if (places.empty() || (places.back() - task) / cache_line != member.offset / cache_line)
        places.push_back(task + member.offset);
  kernel.space().expect(places);
  places.clear();
  for (const Gva task : tasks)
    if (const auto signal = kernel.read_pointer(task, layout.signal); signal && kernel.is_kernel_address(*signal))
      places.push_back(*signal + layout.thread_head.offset);
  kernel.space().expect(places);
}

} // namespace

Result<std::vector<TaskEntry>> list_tasks(const Kernel &kernel, bool threads, ViewStatus &status,
                                          std::span<const std::int32_t> only) {
  const auto init_task = kernel.symbol("init_task");
  if (!init_task)
    return fail(ErrorCode::not_found, "the kernel has no symbol init_task");
  TRY_ASSIGN(const ListLayout *kept, kernel.layout<ListLayout>());
  const ListLayout &layout = *kept;
  const std::size_t limit = task_limit(kernel, layout.task_size);

  const std::unordered_set<std::int32_t> wanted(only.begin(), only.end());
  std::vector<TaskEntry> tasks;
  WalkResult walk;
  std::string thread_problem;
  for (std::size_t attempt = 0; attempt < walk_attempts; ++attempt) {
    tasks.clear();
    thread_problem.clear();
    bool threads_consistent = true;
    std::vector<Gva> leaders;
    leaders.reserve(layout.last_walk.size());
    walk = walk_list(kernel, *init_task + layout.tasks.offset, limit, [&](Gva node) {
      const Gva task = node - layout.tasks.offset;
      if (leaders.size() % tasks_ahead == 0 && leaders.size() < layout.last_walk.size()) {
        const auto rest = std::span(layout.last_walk).subspan(leaders.size());
        expect_links(kernel, layout, rest.first(std::min(tasks_ahead, rest.size())));
      }
      leaders.push_back(task);
      const auto pid = kernel.read<std::int32_t>(task + layout.pid.offset);
      const auto tgid = kernel.read<std::int32_t>(task + layout.tgid.offset);
      if (!pid || !tgid || (!wanted.empty() && !wanted.contains(*tgid)))
        return true;
      if (!threads) {
        tasks.push_back({task, *pid, *tgid});
        return true;
      }
      const auto signal = kernel.read_pointer(task, layout.signal);
      bool leader_seen = false;
      if (signal && *signal) {
        const auto thread_walk = walk_list(kernel, *signal + layout.thread_head.offset,
                                           std::min(thread_limit, limit - tasks.size()), [&](Gva link) {
                                             const Gva thread = link - layout.thread_node.offset;
                                             const auto tid = kernel.read<std::int32_t>(thread + layout.pid.offset);
                                             if (!tid || tasks.size() >= limit)
                                               return false;
                                             leader_seen |= thread == task;
                                             tasks.push_back({thread, *tid, *tgid});
                                             return true;
                                           });
        if (thread_walk.end != WalkEnd::complete && thread_problem.empty())
          thread_problem = describe_walk(thread_walk, "a thread list");
        threads_consistent &= thread_walk.consistent();
      }
      if (!leader_seen)
        tasks.push_back({task, *pid, *tgid});
      return tasks.size() < limit;
    });
    layout.last_walk = std::move(leaders);
    if (walk.end == WalkEnd::stopped)
      walk.end = WalkEnd::limit;
    if (walk.consistent() && threads_consistent)
      return tasks;
    if (walk.end == WalkEnd::limit)
      break; // no race
    ++status.retries;
  }
  status.raced = true;
  if (walk.end != WalkEnd::complete) {
    status.truncated = true;
    status.warn(describe_walk(walk, "the task list"));
  }
  if (!thread_problem.empty())
    status.warn(thread_problem);
  return tasks;
}

Result<Gva> find_task(const Kernel &kernel, std::int32_t pid) {
  ViewStatus status;
  TRY_ASSIGN(const auto leaders, list_tasks(kernel, false, status));
  for (const auto &entry : leaders)
    if (entry.pid == pid)
      return entry.task;
  TRY_ASSIGN(const auto threads, list_tasks(kernel, true, status));
  for (const auto &entry : threads)
    if (entry.pid == pid)
      return entry.task;
  return fail(ErrorCode::not_found, "the guest has no process " + std::to_string(pid));
}

namespace {

// The top table of an mm, from its kernel-virtual `pgd`.
std::optional<x86_64::PageTableRoot> page_table_of(const Kernel &kernel, Gva pgd) {
  const auto table = kernel.space().translate(pgd);
  if (!table)
    return std::nullopt;
  return x86_64::PageTableRoot{table->address.page(), kernel.location().root.levels};
}

} // namespace

std::optional<x86_64::PageTableRoot> user_page_table(const Kernel &kernel, Gva task) {
  const auto mm_field = kernel.types().field("task_struct", "mm");
  const auto pgd_field = kernel.types().field("mm_struct", "pgd");
  if (!mm_field || !pgd_field)
    return std::nullopt;
  const auto mm = kernel.read_pointer(task, *mm_field);
  if (!mm || !*mm)
    return std::nullopt;
  const auto pgd = kernel.read_pointer(*mm, *pgd_field);
  return pgd ? page_table_of(kernel, *pgd) : std::nullopt;
}

std::optional<Gva> timekeeper_address(const Kernel &kernel) {
  const auto real = kernel.types().field("timekeeper", "offs_real");
  const auto seconds = kernel.types().field("timekeeper", "xtime_sec");
  const auto monotonic = kernel.types().field("timekeeper", "wall_to_monotonic.tv_sec");
  if (!real || !seconds || !monotonic)
    return std::nullopt;
  for (const char *name : {"tk_core", "timekeeper_data"}) { // the latter since 6.17 (22c62b9a84b8)
    const auto start = kernel.symbol(name);
    if (!start)
      continue;
    // The timekeeper follows a lock or a sequence count in a structure without a name, of a size that depends on the
    // configuration: the place is the one where offs_real, which is -wall_to_monotonic, agrees with its origin.
    for (std::uint64_t distance = 0; distance <= 64; distance += 8) {
      const Gva timekeeper = *start + distance;
      const auto offset_real = kernel.read<std::int64_t>(timekeeper + real->offset);
      const auto wall = kernel.read<std::int64_t>(timekeeper + seconds->offset);
      const auto to_monotonic = kernel.read<std::int64_t>(timekeeper + monotonic->offset);
      if (!offset_real || !wall || !to_monotonic || *wall <= 0 || *to_monotonic == 0)
        continue;
      const std::int64_t origin = *offset_real / 1'000'000'000;
      const auto sum =
          static_cast<std::int64_t>(static_cast<std::uint64_t>(origin) + static_cast<std::uint64_t>(*to_monotonic));
      if (sum >= -1 && sum <= 1 && *wall >= origin)
        return timekeeper;
    }
  }
  return std::nullopt;
}

std::optional<std::int64_t> boot_time_ns(const Kernel &kernel) {
  const auto real = kernel.types().field("timekeeper", "offs_real");
  const auto boot = kernel.types().field("timekeeper", "offs_boot");
  const auto timekeeper = timekeeper_address(kernel);
  if (!real || !boot || !timekeeper)
    return std::nullopt;
  const auto offset_real = kernel.read<std::uint64_t>(*timekeeper + real->offset);
  const auto offset_boot = kernel.read<std::uint64_t>(*timekeeper + boot->offset);
  if (!offset_real || !offset_boot)
    return std::nullopt;
  return static_cast<std::int64_t>(*offset_real - *offset_boot);
}

namespace {

// Where the page table entries lie that map the processes' arguments, kept from one look to the next: a page table
// stays where it is as long as what it maps is mapped, so that the tables above need not be read each time. The entry
// itself is. A process may unmap its arguments and map them again, which nothing here tells: a place is found anew
// every so many looks.
struct ArgumentPlaces {
  struct Place {
    Gva task;
    std::uint64_t start_time = 0, exec_id = 0; // with `task`: this process, and since its last execve
    Gva pgd, begin;
    Gpa entry; // 0: not found
    std::uint32_t looks = 0;

    [[nodiscard]] bool is_of(const Place &other) const {
      return task == other.task && start_time == other.start_time && exec_id == other.exec_id && pgd == other.pgd &&
             begin == other.begin;
    }
  };
  static constexpr std::uint32_t looks_limit = 16;
  mutable std::vector<Place> last; // in the order of the task list

  static Result<ArgumentPlaces> resolve(const Kernel &) { return ArgumentPlaces{}; }
};

// Everything `ps` reads of a task, resolved once.
struct ProcessLayout {
  // task_struct
  FieldLocation pid, tgid, real_parent, comm, flags, signal, real_cred, mm, state, start_time, utime, stime,
      exec_runtime, static_priority, thread_pid;
  std::optional<FieldLocation> exit_state, cpu, login_uid, nsproxy, cgroups, fs, exec_id;
  // signal_struct
  FieldLocation thread_count, group_utime, group_stime, pids;
  std::optional<FieldLocation> group_runtime, tty;
  // cred
  FieldLocation uid, gid, suid, sgid, euid, egid, fsuid, fsgid, cap_inheritable, cap_permitted, cap_effective,
      cap_bounding, user_ns, group_info;
  std::optional<FieldLocation> cap_ambient, groups_count, groups;
  // mm_struct
  FieldLocation pgd, total_vm, arg_start, arg_end, exe_file, rss;
  std::optional<FieldLocation> rss_count, rss_counters; // percpu_counter since 6.2 (f1a7941243c1)
  std::uint64_t rss_stride = 8;
  FieldLocation file_path;
  // struct pid
  FieldLocation pid_level, pid_numbers, upid_number, upid_ns;
  std::uint64_t upid_size = 0;
  // namespaces
  std::optional<FieldLocation> ns_mnt, ns_uts, ns_ipc, ns_net, ns_cgroup, ns_time;
  std::optional<FieldLocation> inum_mnt, inum_uts, inum_ipc, inum_net, inum_cgroup, inum_time, inum_pid, inum_user;
  std::optional<FieldLocation> default_cgroup, cgroup_node, tty_name, fs_pwd;

  static Result<ProcessLayout> resolve(const Kernel &kernel) {
    LayoutResolver layout(kernel.types());
    ProcessLayout f;
    const auto task = [&](std::string_view path) { return layout.require("task_struct", path); };
    f.pid = task("pid");
    f.tgid = task("tgid");
    f.real_parent = task("real_parent");
    f.comm = task("comm");
    f.flags = task("flags");
    f.signal = task("signal");
    f.real_cred = task("real_cred");
    f.mm = task("mm");
    f.state = layout.require_any("task_struct", {"__state", "state"});                       // 5.14, 2f064a59a11f
    f.start_time = layout.require_any("task_struct", {"start_boottime", "real_start_time"}); // 5.5, cf25e24db61c
    f.utime = task("utime");
    f.stime = task("stime");
    f.exec_runtime = task("se.sum_exec_runtime");
    f.static_priority = task("static_prio");
    f.thread_pid = layout.require_any("task_struct", {"thread_pid", "pids[0].pid"}); // 4.19, 2c4704756cab
    f.exit_state = layout.optional("task_struct", "exit_state");
    f.cpu = layout.optional_any("task_struct", {"thread_info.cpu", "cpu"}); // 5.16, bcf9033e5449
    f.login_uid = layout.optional("task_struct", "loginuid.val");
    f.nsproxy = layout.optional("task_struct", "nsproxy");
    f.cgroups = layout.optional("task_struct", "cgroups");
    f.fs = layout.optional("task_struct", "fs");
    f.exec_id = layout.optional("task_struct", "self_exec_id");
    f.thread_count = layout.require("signal_struct", "nr_threads");
    f.group_utime = layout.require("signal_struct", "utime");
    f.group_stime = layout.require("signal_struct", "stime");
    f.pids = layout.require_any("signal_struct", {"pids", "__session"});
    f.group_runtime = layout.optional("signal_struct", "sum_sched_runtime");
    f.tty = layout.optional("signal_struct", "tty");
    const auto cred = [&](std::string_view path) { return layout.require("cred", path); };
    f.uid = cred("uid");
    f.gid = cred("gid");
    f.suid = cred("suid");
    f.sgid = cred("sgid");
    f.euid = cred("euid");
    f.egid = cred("egid");
    f.fsuid = cred("fsuid");
    f.fsgid = cred("fsgid");
    f.cap_inheritable = cred("cap_inheritable");
    f.cap_permitted = cred("cap_permitted");
    f.cap_effective = cred("cap_effective");
    f.cap_bounding = cred("cap_bset");
    f.cap_ambient = layout.optional("cred", "cap_ambient");
    f.user_ns = cred("user_ns");
    f.group_info = cred("group_info");
    f.groups_count = layout.optional("group_info", "ngroups");
    f.groups = layout.optional("group_info", "gid");
    const auto mm = [&](std::string_view path) { return layout.require("mm_struct", path); };
    f.pgd = mm("pgd");
    f.total_vm = mm("total_vm");
    f.arg_start = mm("arg_start");
    f.arg_end = mm("arg_end");
    f.exe_file = mm("exe_file");
    f.rss = layout.require_any("mm_struct", {"rss_stat.count", "rss_stat"});
    if (!layout.optional("mm_struct", "rss_stat.count")) {
      f.rss_count = layout.optional("percpu_counter", "count");
      f.rss_counters = layout.optional("percpu_counter", "counters");
      f.rss_stride = layout.require_size("percpu_counter");
    }
    f.file_path = layout.require_any("file", {"f_path", "__f_path"});
    f.pid_level = layout.require("pid", "level");
    f.pid_numbers = layout.require("pid", "numbers");
    f.upid_number = layout.require("upid", "nr");
    f.upid_ns = layout.require("upid", "ns");
    f.upid_size = layout.require_size("upid");
    f.ns_mnt = layout.optional("nsproxy", "mnt_ns");
    f.ns_uts = layout.optional("nsproxy", "uts_ns");
    f.ns_ipc = layout.optional("nsproxy", "ipc_ns");
    f.ns_net = layout.optional("nsproxy", "net_ns");
    f.ns_cgroup = layout.optional("nsproxy", "cgroup_ns");
    f.ns_time = layout.optional("nsproxy", "time_ns");
    f.inum_mnt = layout.optional("mnt_namespace", "ns.inum");
    f.inum_uts = layout.optional("uts_namespace", "ns.inum");
    f.inum_ipc = layout.optional("ipc_namespace", "ns.inum");
    f.inum_net = layout.optional("net", "ns.inum");
    f.inum_cgroup = layout.optional("cgroup_namespace", "ns.inum");
    f.inum_time = layout.optional("time_namespace", "ns.inum");
    f.inum_pid = layout.optional("pid_namespace", "ns.inum");
    f.inum_user = layout.optional("user_namespace", "ns.inum");
    f.default_cgroup = layout.optional("css_set", "dfl_cgrp");
    f.cgroup_node = layout.optional("cgroup", "kn");
    f.tty_name = layout.optional("tty_struct", "name");
    f.fs_pwd = layout.optional("fs_struct", "pwd");
    TRY(layout.check());
    return f;
  }
};

// The letter that ps prints, as task_state_index() in include/linux/sched.h finds it.
char state_letter(std::uint64_t state, std::uint64_t exit_state) {
  constexpr std::uint64_t reported = 0x7f, idle = 0x402, lock_wait = 0x1000, frozen = 0x8000;
  std::uint64_t value = (state | exit_state) & reported;
  if ((state & idle) == idle)
    value = 0x80;
  else if (value == 0 && (state & (lock_wait | frozen)) != 0)
    value = 2;
  constexpr std::string_view letters = "RSDTtXZPI";
  return letters[std::min<std::size_t>(static_cast<std::size_t>(std::bit_width(value)), letters.size() - 1)];
}

// The longest run of at least 12 hexadecimal digits that fills a path component or the part of one between its last '-'
// or ':' and its ".scope": docker, containerd, CRI-O and podman all name cgroups so.
std::string container_id_of(std::string_view cgroup) {
  std::string found;
  while (!cgroup.empty()) {
    const auto slash = cgroup.find('/');
    std::string_view part = cgroup.substr(0, slash);
    cgroup = slash == std::string_view::npos ? std::string_view() : cgroup.substr(slash + 1);
    if (part.ends_with(".scope"))
      part.remove_suffix(6);
    if (const auto separator = part.find_last_of("-:"); separator != std::string_view::npos)
      part.remove_prefix(separator + 1);
    const bool hexadecimal = part.find_first_not_of("0123456789abcdef") == std::string_view::npos;
    if (hexadecimal && part.size() == 64)
      found = part;
  }
  return found;
}

std::string terminal_name(std::string name) {
  if (name.starts_with("pts") && name.size() > 3 && name[3] != '/')
    name.insert(3, "/");
  return name;
}

class ProcessReader {
public:
  ProcessReader(const Kernel &kernel, const ProcessLayout &layout, const ArgumentPlaces &places,
                const ProcessQuery &query, std::optional<PathResolver> paths, ViewStatus &status)
      : kernel_(kernel), f_(layout), query_(query), paths_(paths), boot_time_(boot_time_ns(kernel)), status_(status),
        text_left_(view_text_limit(kernel)), known_places_(places.last) {
    lines_.task = lines_of({f_.real_parent, f_.comm, f_.flags, f_.state, f_.exit_state, f_.start_time,
                            f_.static_priority, f_.cpu, f_.login_uid, f_.real_cred, f_.thread_pid, f_.nsproxy,
                            f_.signal, f_.mm, f_.utime, f_.stime, f_.exec_runtime, f_.cgroups, f_.exec_id});
    lines_.signal = lines_of({f_.thread_count, f_.group_utime, f_.group_stime, f_.pids, f_.group_runtime, f_.tty});
    lines_.cred =
        lines_of({f_.uid, f_.fsgid, f_.cap_inheritable, f_.cap_bounding, f_.cap_ambient, f_.user_ns, f_.group_info});
    lines_.pid = lines_of({f_.pid_level, f_.pid_numbers});
    lines_.mm = lines_of({f_.pgd, f_.total_vm, f_.arg_start, f_.arg_end, f_.exe_file, f_.rss});
  }

  Process read(const TaskEntry &entry) {
    Process p;
    p.task = entry.task;
    p.pid = entry.pid;
    p.tgid = entry.tgid;
    const Gva task = entry.task;
    if (const auto parent = follow(p, task, f_.real_parent, "parent"))
      p.ppid = number<std::int32_t>(*parent, f_.tgid);
    p.comm = task_comm_at(task + f_.comm.offset, f_.comm.size);
    p.kernel_thread = (number<std::uint32_t>(task, f_.flags) & pf_kthread) != 0;
    p.state = state_letter(number<std::uint64_t>(task, f_.state), number<std::uint64_t>(task, f_.exit_state));
    p.start_since_boot_ns = number<std::uint64_t>(task, f_.start_time);
    if (boot_time_)
      p.start_time_ns = static_cast<std::uint64_t>(*boot_time_) + p.start_since_boot_ns;
    p.nice = number<std::int32_t>(task, f_.static_priority) - default_priority;
    p.cpu = number<std::uint32_t>(task, f_.cpu);
    if (f_.login_uid)
      p.login_uid = number<std::uint32_t>(task, f_.login_uid);
    read_credentials(p);
    read_namespaces(p);
    read_group(p);
    read_memory(p);
    if (query_.paths)
      read_paths(p);
    return p;
  }

  // Has the memory brought near that read() is going to look at, for some tasks together: their objects lie anywhere,
  // so that without this every step from one to the next would wait for memory, or cost a system call of its own.
  // Of what is seen here only places are kept, where arguments are looked for.
  void expect(std::span<const TaskEntry> entries) {
    for (const auto &entry : entries)
      expect_lines(entry.task, lines_.task);
    expect_now();

    const auto follow_all = [&](const FieldLocation &member, const std::vector<std::uint64_t> &lines) {
      for (const auto &entry : entries)
        if (const auto target = kernel_.read_pointer(entry.task, member); target && kernel_.is_kernel_address(*target))
          expect_lines(*target, lines);
    };
    follow_all(f_.signal, lines_.signal);
    follow_all(f_.real_cred, lines_.cred);
    follow_all(f_.thread_pid, lines_.pid);
    if (query_.memory || query_.arguments || query_.paths)
      follow_all(f_.mm, lines_.mm);
    expect_now();

    walks_.clear();
    batch_ = places_.size();
    for (const auto &entry : entries) {
      if (entry.pid != entry.tgid && !query_.threads)
        continue;
      const auto mm = kernel_.read_pointer(entry.task, f_.mm);
      if (!mm || !kernel_.is_kernel_address(*mm))
        continue;
      if (query_.paths)
        if (const auto file = kernel_.read_pointer(*mm, f_.exe_file); file && kernel_.is_kernel_address(*file))
          expected_.push_back(*file + f_.file_path.offset);
      const auto pgd = query_.arguments ? kernel_.read_pointer(*mm, f_.pgd) : std::nullopt;
      const auto begin = kernel_.read_pointer(*mm, f_.arg_start);
      if (!pgd || !begin)
        continue;
      ArgumentPlaces::Place place{entry.task,
                                  number<std::uint64_t>(entry.task, f_.start_time),
                                  number<std::uint64_t>(entry.task, f_.exec_id),
                                  *pgd,
                                  *begin,
                                  {},
                                  0};
      if (const auto *known = f_.exec_id ? known_place(place) : nullptr) {
        place.looks = known->looks + 1;
        walks_.push_back({known->entry.page(), *begin, 1, places_.size()});
        places_.push_back(place);
      } else if (const auto root = page_table_of(kernel_, *pgd); root && x86_64::is_canonical(*begin, root->levels)) {
        walks_.push_back({root->table, *begin, root->levels, places_.size()});
        places_.push_back(place);
      }
    }
    expect_now();
    expect_arguments();
  }

  [[nodiscard]] std::vector<ArgumentPlaces::Place> take_places() { return std::move(places_); }

  // CPU time as /proc/PID/stat reports it: the ticks' ratio of user and system time applied to the exact run time
  // (cputime_adjust() in kernel/sched/cputime.c).
  void set_times(Process &p, std::uint64_t user, std::uint64_t system, std::uint64_t runtime) const {
    if (runtime == 0) {
      p.user_time_ns = user;
      p.system_time_ns = system;
    } else if (system == 0) {
      p.user_time_ns = runtime;
    } else if (user == 0) {
      p.system_time_ns = runtime;
    } else {
      const double share = static_cast<double>(system) / (static_cast<double>(system) + static_cast<double>(user));
      p.system_time_ns = std::min(runtime, static_cast<std::uint64_t>(static_cast<double>(runtime) * share));
      p.user_time_ns = runtime - p.system_time_ns;
    }
  }

  struct Times {
    std::uint64_t user = 0, system = 0, runtime = 0;
  };
  [[nodiscard]] Times times_of(Gva task) const {
    return {number<std::uint64_t>(task, f_.utime), number<std::uint64_t>(task, f_.stime),
            number<std::uint64_t>(task, f_.exec_runtime)};
  }
  [[nodiscard]] Times times_of_dead_threads(Gva task) const {
    const auto signal = kernel_.read_pointer(task, f_.signal);
    if (!signal || !*signal)
      return {};
    return {number<std::uint64_t>(*signal, f_.group_utime), number<std::uint64_t>(*signal, f_.group_stime),
            number<std::uint64_t>(*signal, f_.group_runtime)};
  }

private:
  template <class T> [[nodiscard]] T number(Gva object, const FieldLocation &field) const {
    return static_cast<T>(kernel_.read_field(object, field).value_or(0));
  }
  template <class T> [[nodiscard]] T number(Gva object, const std::optional<FieldLocation> &field) const {
    return field ? number<T>(object, *field) : T{};
  }

  // The offsets of some members, one for each cache line.
  static std::vector<std::uint64_t> lines_of(std::initializer_list<std::optional<FieldLocation>> members) {
    std::vector<std::uint64_t> result;
    for (const auto &member : members)
      if (member)
        result.push_back(member->offset / cache_line * cache_line);
    std::ranges::sort(result);
    result.erase(std::ranges::unique(result).begin(), result.end());
    return result;
  }
  void expect_lines(Gva object, const std::vector<std::uint64_t> &offsets) {
    for (const std::uint64_t offset : offsets)
      expected_.push_back(object + offset);
  }
  void expect_now() {
    kernel_.space().expect(expected_);
    expected_.clear();
  }

  // All walks through page tables take each step together.
  struct ArgumentWalk {
    Gpa table;
    Gva address;
    int level = 0;         // of `table`; 0: it is the page that holds the arguments
    std::size_t place = 0; // in places_
  };

  // The list keeps its order, and new tasks come at its end: what is looked for lies at most a few further on.
  [[nodiscard]] const ArgumentPlaces::Place *known_place(const ArgumentPlaces::Place &wanted) {
    constexpr std::size_t ended_between = 64;
    for (std::size_t i = next_known_; i < known_places_.size() && i < next_known_ + ended_between; ++i)
      if (known_places_[i].task == wanted.task) {
        next_known_ = i + 1;
        const auto &known = known_places_[i];
        return known.is_of(wanted) && known.entry.value != 0 && known.looks < ArgumentPlaces::looks_limit ? &known
                                                                                                          : nullptr;
      }
    return nullptr;
  }
  void expect_arguments() {
    const auto place_of = [](const ArgumentWalk &walk) {
      return walk.level == 0 ? walk.table + walk.address.page_offset()
                             : x86_64::entry_address(walk.table, walk.address, walk.level);
    };
    for (int step = 0; step <= 5 && !walks_.empty(); ++step) { // five tables at most, and what they lead to
      expected_places_.clear();
      for (const auto &walk : walks_)
        expected_places_.push_back(place_of(walk));
      kernel_.memory().expect(expected_places_);
      std::erase_if(walks_, [&](ArgumentWalk &walk) {
        std::uint64_t value = 0;
        if (walk.level == 0 || !kernel_.memory().read(place_of(walk), writable_bytes_of(value)) ||
            (value & x86_64::entry::present) == 0 || (walk.level > 1 && (value & x86_64::entry::large) != 0))
          return true;
        if (walk.level == 1)
          places_[walk.place].entry = place_of(walk);
        walk.table = Gpa{value & x86_64::entry::address_mask};
        --walk.level;
        return false;
      });
    }
  }

  [[nodiscard]] std::string task_comm_at(Gva address, std::uint32_t size) const {
    std::array<std::byte, 64> buffer{};
    const auto part = std::span(buffer).first(std::min<std::size_t>(size, buffer.size()));
    if (!kernel_.space().read(address, part))
      return {};
    return std::string(c_string(part, 0));
  }

  void read_credentials(Process &p) {
    const auto cred = follow(p, p.task, f_.real_cred, "credentials");
    if (!cred)
      return;
    const auto id = [&](const FieldLocation &field) { return number<std::uint32_t>(*cred, field); };
    p.uid = {id(f_.uid), id(f_.euid), id(f_.suid), id(f_.fsuid)};
    p.gid = {id(f_.gid), id(f_.egid), id(f_.sgid), id(f_.fsgid)};
    const auto set = [&](const FieldLocation &field) { return number<std::uint64_t>(*cred, field); };
    p.capabilities = {set(f_.cap_inheritable), set(f_.cap_permitted), set(f_.cap_effective), set(f_.cap_bounding),
                      f_.cap_ambient ? set(*f_.cap_ambient) : 0};
    if (const auto user_ns = kernel_.read_pointer(*cred, f_.user_ns))
      p.namespaces.user = number<std::uint32_t>(*user_ns, f_.inum_user);
    const auto group_info = follow(p, *cred, f_.group_info, "groups");
    if (group_info && f_.groups_count && f_.groups) {
      std::array<std::uint32_t, 64> groups{};
      const auto claimed = number<std::uint32_t>(*group_info, f_.groups_count);
      if (claimed > group_count_limit)
        contradiction(fmt::format("process {} claims to be in {} groups", p.pid, claimed));
      const auto count = std::min<std::size_t>(claimed, groups.size());
      if (kernel_.space().read(*group_info + f_.groups->offset,
                               std::as_writable_bytes(std::span(groups)).first(4 * count)))
        p.groups.assign(groups.begin(), groups.begin() + static_cast<std::ptrdiff_t>(count));
    }
  }

  void read_namespaces(Process &p) {
    if (const auto pid = follow(p, p.task, f_.thread_pid, "pid")) {
      const auto level = std::min<std::uint64_t>(number<std::uint32_t>(*pid, f_.pid_level), 32); // MAX_PID_NS_LEVEL
      const Gva own = *pid + f_.pid_numbers.offset + level * f_.upid_size;
      p.namespace_pid = number<std::int32_t>(own, f_.upid_number);
      if (const auto ns = kernel_.read_pointer(own, f_.upid_ns); ns && *ns)
        p.namespaces.pid = number<std::uint32_t>(*ns, f_.inum_pid);
    }
    const auto proxy = f_.nsproxy ? follow(p, p.task, *f_.nsproxy, "namespaces") : std::nullopt;
    if (!proxy)
      return; // a zombie has none
    const auto inum = [&](const std::optional<FieldLocation> &member, const std::optional<FieldLocation> &field) {
      const auto ns = member ? kernel_.read_pointer(*proxy, *member) : std::nullopt;
      return ns && *ns ? number<std::uint32_t>(*ns, field) : 0u;
    };
    p.namespaces.mnt = inum(f_.ns_mnt, f_.inum_mnt);
    p.namespaces.uts = inum(f_.ns_uts, f_.inum_uts);
    p.namespaces.ipc = inum(f_.ns_ipc, f_.inum_ipc);
    p.namespaces.net = inum(f_.ns_net, f_.inum_net);
    p.namespaces.cgroup = inum(f_.ns_cgroup, f_.inum_cgroup);
    p.namespaces.time = inum(f_.ns_time, f_.inum_time);
  }

  void read_group(Process &p) {
    const auto signal = follow(p, p.task, f_.signal, "thread group");
    if (!signal)
      return;
    p.thread_count = number<std::uint32_t>(*signal, f_.thread_count);
    const auto leader_number = [&](std::uint64_t index) {
      const auto pid = kernel_.read_pointer(*signal + f_.pids.offset + 8 * index);
      return pid && *pid ? number<std::int32_t>(*pid + f_.pid_numbers.offset, f_.upid_number) : 0;
    };
    constexpr std::uint64_t pgid = 2, sid = 3; // enum pid_type
    p.pgrp = leader_number(pgid);
    p.session = leader_number(sid);
    if (f_.tty && f_.tty_name && query_.paths)
      if (const auto tty = kernel_.read_pointer(*signal, *f_.tty); tty && *tty)
        p.tty = terminal_name(task_comm_at(*tty + f_.tty_name->offset, f_.tty_name->size));
  }

  void read_memory(Process &p) {
    const auto mm = follow(p, p.task, f_.mm, "memory");
    if (!mm)
      return;
    p.memory = *mm;
    if (query_.memory) {
      p.virtual_bytes = number<std::uint64_t>(*mm, f_.total_vm) * page_size;
      std::int64_t pages = 0;
      for (const std::uint64_t counter : {0, 1, 3}) // MM_FILEPAGES, MM_ANONPAGES, MM_SHMEMPAGES
        pages += resident_pages(*mm + f_.rss.offset + counter * f_.rss_stride);
      p.rss_bytes = pages > 0 ? static_cast<std::uint64_t>(pages) * page_size : 0;
    }
    if (query_.paths && paths_ && text_left_ != 0)
      if (const auto file = follow(p, *mm, f_.exe_file, "program"))
        if (auto path = paths_->resolve(*file + f_.file_path.offset)) {
          p.exe = std::move(path->text);
          p.exe_deleted = path->deleted;
          take_text(p.exe.size());
        }
    if (query_.arguments && text_left_ != 0)
      read_arguments(p, *mm);
  }

  [[nodiscard]] std::int64_t resident_pages(Gva counter) const {
    if (!f_.rss_count || !f_.rss_counters)
      return kernel_.read<std::int64_t>(counter).value_or(0);
    auto sum = static_cast<std::int64_t>(number<std::uint64_t>(counter, f_.rss_count));
    if (const auto local = kernel_.read_pointer(counter, *f_.rss_counters); local && *local)
      for (std::uint32_t cpu = 0; cpu < kernel_.cpu_count(); ++cpu)
        if (const auto address = kernel_.per_cpu_pointer(*local, cpu))
          sum += kernel_.read<std::int32_t>(*address).value_or(0);
    return sum;
  }

  // What lies in the first page, by the place that expect() found; how many bytes.
  [[nodiscard]] std::size_t read_first_page(Gva task, Gva begin, std::span<std::byte> out) const {
    const auto place = std::find_if(places_.begin() + static_cast<std::ptrdiff_t>(batch_), places_.end(),
                                    [&](const auto &each) { return each.task == task; });
    std::uint64_t value = 0;
    if (place == places_.end() || place->begin != begin || place->entry.value == 0 ||
        !kernel_.memory().read(place->entry, writable_bytes_of(value)) || (value & x86_64::entry::present) == 0)
      return 0;
    const auto part = out.first(std::min<std::size_t>(out.size(), page_size - begin.page_offset()));
    return kernel_.memory().read(Gpa{value & x86_64::entry::address_mask} + begin.page_offset(), part) ? part.size()
                                                                                                       : 0;
  }

  void read_arguments(Process &p, Gva mm) {
    const auto pgd = kernel_.read_pointer(mm, f_.pgd);
    const auto begin = kernel_.read_pointer(mm, f_.arg_start);
    const auto end = kernel_.read_pointer(mm, f_.arg_end);
    if (!pgd || !begin || !end || *end <= *begin)
      return;
    const std::uint64_t whole = *end - *begin;
    const std::size_t length = std::min<std::uint64_t>(whole, argument_bytes_limit);
    buffer_.resize(length);
    std::size_t got = read_first_page(p.task, *begin, buffer_);
    if (got < length && (got == 0 || (*begin + got).page_offset() == 0)) {
      const auto root = page_table_of(kernel_, *pgd);
      if (!root) {
        contradiction(fmt::format("the page table of process {} leads out of readable kernel memory", p.pid));
        return;
      }
      got += read_uncached(kernel_.memory(), *root, *begin + got, std::span(buffer_).subspan(got));
    }
    p.arguments_truncated = got < whole;
    std::size_t at = 0;
    while (at < got && p.arguments.size() < argument_count_limit) {
      const auto argument = c_string(std::span(buffer_).first(got), at);
      p.arguments.emplace_back(argument);
      at += argument.size() + 1;
    }
    p.arguments_truncated |= at < got;
    take_text(got + p.arguments.size() * sizeof(std::string));
  }

  void read_paths(Process &p) {
    if (!paths_)
      return;
    if (f_.cgroups && f_.default_cgroup && f_.cgroup_node && text_left_ != 0)
      if (const auto set = follow(p, p.task, *f_.cgroups, "control group"))
        if (const auto cgroup = kernel_.read_pointer(*set, *f_.default_cgroup); cgroup && *cgroup) {
          auto &known = cgroup_paths_[cgroup->value]; // most processes share a few
          if (known.empty())
            if (const auto node = kernel_.read_pointer(*cgroup, *f_.cgroup_node); node && *node)
              known = paths_->kernfs_path(*node).value_or("");
          p.cgroup = known;
          take_text(p.cgroup.size());
          p.container_id = container_id_of(p.cgroup);
        }
    if (query_.current_directory && f_.fs && f_.fs_pwd)
      if (const auto fs = kernel_.read_pointer(p.task, *f_.fs); fs && *fs)
        if (auto path = paths_->resolve(*fs + f_.fs_pwd->offset))
          p.current_directory = std::move(path->text);
  }

  // What a pointer leads to; nothing for null. One that leads out of the kernel's memory is a race, or a lie.
  [[nodiscard]] std::optional<Gva> follow(const Process &p, Gva object, const FieldLocation &member,
                                          std::string_view what) {
    const auto target = kernel_.read_pointer(object, member);
    if (!target || !*target)
      return std::nullopt;
    if (kernel_.is_kernel_address(*target) && kernel_.space().read<std::uint8_t>(*target))
      return target;
    contradiction(fmt::format("the {} of process {} leads out of readable kernel memory", what, p.pid));
    return std::nullopt;
  }
  void contradiction(std::string sentence) {
    status_.raced = true;
    status_.warn(std::move(sentence));
  }

  // Crafted tasks can share one long text as often as they like, so that all texts together are bounded too.
  void take_text(std::size_t bytes) {
    text_left_ -= std::min(bytes, text_left_);
    if (text_left_ != 0)
      return;
    status_.truncated = true;
    status_.warn("the paths and arguments of all processes are longer than this guest can have; the rest is left out");
  }

  const Kernel &kernel_;
  const ProcessLayout &f_;
  ProcessQuery query_;
  std::optional<PathResolver> paths_;
  std::optional<std::int64_t> boot_time_;
  ViewStatus &status_;
  std::size_t text_left_;
  std::vector<std::byte> buffer_;
  struct {
    std::vector<std::uint64_t> task, signal, cred, pid, mm;
  } lines_;
  std::vector<Gva> expected_;
  std::vector<Gpa> expected_places_;
  std::vector<ArgumentWalk> walks_;
  const std::vector<ArgumentPlaces::Place> &known_places_;
  std::size_t next_known_ = 0;
  std::vector<ArgumentPlaces::Place> places_; // of this look
  std::size_t batch_ = 0;                     // where those of the tasks begin that were expected last
  std::unordered_map<std::uint64_t, std::string> cgroup_paths_;
};

} // namespace

std::size_t view_text_limit(const Kernel &kernel) {
  constexpr std::uint64_t least = 32 << 20, most = 256 << 20;
  return std::clamp<std::uint64_t>(kernel.memory().total_size() / 16, least, most);
}

std::string task_comm(const Kernel &kernel, Gva task) {
  const auto field = kernel.types().field("task_struct", "comm");
  if (!field)
    return {};
  std::array<std::byte, 64> buffer{};
  const auto part = std::span(buffer).first(std::min<std::size_t>(field->size, buffer.size()));
  return kernel.space().read(task + field->offset, part) ? std::string(c_string(part, 0)) : std::string();
}

namespace {

struct BriefLayout {
  FieldLocation pid, tgid, parent, cred, uid;

  static Result<BriefLayout> resolve(const Kernel &kernel) {
    LayoutResolver layout(kernel.types());
    BriefLayout result;
    result.pid = layout.require("task_struct", "pid");
    result.tgid = layout.require("task_struct", "tgid");
    result.parent = layout.require("task_struct", "real_parent");
    result.cred = layout.require("task_struct", "real_cred");
    result.uid = layout.require("cred", "euid");
    TRY(layout.check());
    return result;
  }
};

// A member of pcpu_hot from 6.2 to 6.14 (e57ef2ed97c1, 46e8fff6d45f), a variable of its own before and after.
std::optional<Gva> current_task(const Kernel &kernel, std::uint32_t cpu) {
  if (const auto hot = kernel.per_cpu_symbol("pcpu_hot", cpu))
    if (const auto member = kernel.types().field("pcpu_hot", "current_task"))
      return kernel.read_pointer(*hot, *member);
  const auto variable = kernel.per_cpu_symbol("current_task", cpu);
  return variable ? kernel.read_pointer(*variable) : std::nullopt;
}

} // namespace

std::optional<TaskBrief> running_task(const Kernel &kernel, std::uint32_t cpu) {
  const auto layout = kernel.layout<BriefLayout>();
  const auto task = current_task(kernel, cpu);
  if (!layout || !task || !kernel.is_kernel_address(*task))
    return std::nullopt;
  const BriefLayout &f = **layout;
  const auto pid = kernel.read_field(*task, f.pid), tgid = kernel.read_field(*task, f.tgid);
  if (!pid || !tgid)
    return std::nullopt;
  TaskBrief brief{*task, static_cast<std::int32_t>(*pid), static_cast<std::int32_t>(*tgid), 0,
                  0,     task_comm(kernel, *task)};
  if (const auto parent = kernel.read_pointer(*task, f.parent); parent && kernel.is_kernel_address(*parent))
    brief.ppid = static_cast<std::int32_t>(kernel.read_field(*parent, f.tgid).value_or(0));
  if (const auto cred = kernel.read_pointer(*task, f.cred); cred && kernel.is_kernel_address(*cred))
    brief.uid = static_cast<std::uint32_t>(kernel.read_field(*cred, f.uid).value_or(0));
  return brief;
}

std::optional<Process> process_of_task(const Kernel &kernel, Gva task) {
  const auto brief = kernel.layout<BriefLayout>();
  const auto layout = kernel.layout<ProcessLayout>();
  const auto leader_field = kernel.types().field("task_struct", "group_leader");
  auto paths = PathResolver::create(kernel);
  if (!brief || !layout || !paths)
    return std::nullopt;
  const auto leader = leader_field ? kernel.read_pointer(task, *leader_field) : std::nullopt;
  const Gva process = leader && kernel.is_kernel_address(*leader) ? *leader : task;
  const auto pid = kernel.read_field(process, (*brief)->pid), tgid = kernel.read_field(process, (*brief)->tgid);
  if (!pid || !tgid)
    return std::nullopt;
  ViewStatus status;
  const ArgumentPlaces none;
  ProcessReader reader(kernel, **layout, none, {.arguments = false, .memory = false, .only_pids = {}}, *paths, status);
  return reader.read({process, static_cast<std::int32_t>(*pid), static_cast<std::int32_t>(*tgid)});
}

std::optional<std::string> container_of_group(const Kernel &kernel, Gva node, std::uint64_t number) {
  const auto id = kernel.types().field("kernfs_node", "id");
  const auto paths = PathResolver::create(kernel);
  if (!id || !paths || kernel.read_field(node, *id) != number)
    return std::nullopt;
  const auto path = paths->kernfs_path(node);
  return path ? std::optional(container_id_of(*path)) : std::nullopt;
}

std::optional<Gva> parent_of_task(const Kernel &kernel, Gva task) {
  const auto layout = kernel.layout<BriefLayout>();
  const auto parent = layout ? kernel.read_pointer(task, (*layout)->parent) : std::nullopt;
  return parent && kernel.is_kernel_address(*parent) && *parent != task ? parent : std::nullopt;
}

Result<View<Process>> read_processes(const Kernel &kernel, const ProcessQuery &query) {
  View<Process> view;
  // A process' CPU time is the sum over its threads, so all are walked in any case.
  TRY_ASSIGN(const auto tasks, list_tasks(kernel, true, view.status, query.only_pids));
  if (!query.only_pids.empty() && tasks.empty())
    return fail(ErrorCode::not_found, fmt::format("the guest has no process {}", fmt::join(query.only_pids, ", ")));
  TRY_ASSIGN(const ProcessLayout *layout, kernel.layout<ProcessLayout>());
  std::optional<PathResolver> paths;
  if (query.paths || query.current_directory) {
    TRY_ASSIGN(paths, PathResolver::create(kernel));
  }
  TRY_ASSIGN(const ArgumentPlaces *places, kernel.layout<ArgumentPlaces>());
  ProcessReader reader(kernel, *layout, *places, query, paths, view.status);

  view.items.reserve(tasks.size());
  std::size_t ahead = 0;
  for (std::size_t i = 0; i < tasks.size();) {
    if (i >= ahead) {
      const auto next = std::span(tasks).subspan(i, std::min(tasks_ahead, tasks.size() - i));
      reader.expect(next);
      ahead = i + next.size();
    }
    // The threads of a process follow each other; the leader is among them.
    std::size_t end = i;
    while (end < tasks.size() && tasks[end].tgid == tasks[i].tgid)
      ++end;
    const TaskEntry *leader = &tasks[i];
    for (std::size_t t = i; t < end; ++t)
      if (tasks[t].pid == tasks[t].tgid)
        leader = &tasks[t];
    if (query.threads) {
      for (std::size_t t = i; t < end; ++t) {
        auto &process = view.items.emplace_back(reader.read(tasks[t]));
        const auto times = reader.times_of(tasks[t].task);
        reader.set_times(process, times.user, times.system, times.runtime);
      }
    } else {
      auto &process = view.items.emplace_back(reader.read(*leader));
      auto sum = reader.times_of_dead_threads(leader->task);
      for (std::size_t t = i; t < end; ++t) {
        const auto times = reader.times_of(tasks[t].task);
        sum.user += times.user;
        sum.system += times.system;
        sum.runtime += times.runtime;
      }
      reader.set_times(process, sum.user, sum.system, sum.runtime);
    }
    i = end;
  }
  if (query.arguments && query.only_pids.empty())
    places->last = reader.take_places();
  return view;
}

namespace {

// A hash that a guest cannot aim at, as it does not know the key.
class KeyedHash {
public:
  void add(std::uint64_t word) {
    __extension__ using Wide = unsigned __int128;
    const Wide product = static_cast<Wide>(state_ ^ word) * key().second;
    state_ = static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
  }
  [[nodiscard]] std::uint64_t value() const { return state_; }

private:
  static const std::pair<std::uint64_t, std::uint64_t> &key() {
    static const auto made = [] {
      std::random_device random;
      const auto word = [&] { return std::uint64_t{random()} << 32 | random(); };
      return std::pair(word(), word() | 1);
    }();
    return made;
  }
  std::uint64_t state_ = key().first;
};

} // namespace

Result<View<ProcessMark>> read_process_marks(const Kernel &kernel) {
  View<ProcessMark> view;
  TRY_ASSIGN(const auto tasks, list_tasks(kernel, false, view.status));
  TRY_ASSIGN(const ProcessLayout *layout, kernel.layout<ProcessLayout>());
  const ProcessLayout &f = *layout;
  // From the ids to the last of the sets of capabilities, whatever this kernel has between them.
  const std::uint64_t cred_begin = f.uid.offset;
  const auto &last_set = f.cap_ambient ? *f.cap_ambient : f.cap_bounding;
  std::array<std::uint64_t, 32> words{};
  const std::uint64_t cred_bytes =
      std::min<std::uint64_t>(last_set.offset + last_set.size - cred_begin, sizeof words); // 120 on 6.1
  view.items.reserve(tasks.size());
  std::vector<Gva> places;
  for (std::size_t i = 0; i < tasks.size(); ++i) {
    if (i % tasks_ahead == 0) {
      const auto next = std::span(tasks).subspan(i, std::min(tasks_ahead, tasks.size() - i));
      places.clear();
      for (const auto &entry : next)
        for (const FieldLocation &member : {f.real_parent, f.comm, f.start_time, f.real_cred, f.mm})
          places.push_back(entry.task + member.offset);
      kernel.space().expect(places);
      places.clear();
      for (const auto &entry : next)
        if (const auto cred = kernel.read_pointer(entry.task, f.real_cred); cred && kernel.is_kernel_address(*cred))
          places.insert(places.end(), {*cred + cred_begin, *cred + f.user_ns.offset});
      kernel.space().expect(places);
    }
    const Gva task = tasks[i].task;
    KeyedHash hash;
    const auto add_field = [&](Gva object, const std::optional<FieldLocation> &member) {
      hash.add(member ? kernel.read_field(object, *member).value_or(0) : 0);
    };
    const auto add_bytes = [&](Gva address, std::uint64_t size) {
      words.fill(0);
      if (!kernel.space().read(address, std::as_writable_bytes(std::span(words)).first(size)))
        words.fill(0);
      for (std::uint64_t word = 0; word * sizeof words[0] < size; ++word)
        hash.add(words[word]);
    };
    hash.add(task.value);
    hash.add(static_cast<std::uint32_t>(tasks[i].tgid));
    for (const auto &member : {f.start_time, f.real_parent, f.mm, f.real_cred})
      add_field(task, member);
    for (const auto &member : {f.exit_state, f.exec_id, f.nsproxy})
      add_field(task, member);
    add_bytes(task + f.comm.offset, std::min<std::uint64_t>(f.comm.size, sizeof words));
    if (const auto cred = kernel.read_pointer(task, f.real_cred); cred && kernel.is_kernel_address(*cred)) {
      add_bytes(*cred + cred_begin, cred_bytes);
      add_field(*cred, f.user_ns);
    }
    view.items.push_back({tasks[i].pid, hash.value()});
  }
  return view;
}

} // namespace lararium::linux_guest
