// Processes that do what intruders do: shells on network connections, programs that pass for kernel threads, and
// programs that hold others by ptrace.

#include "lararium/detect/check.h"
#include "lararium/os/linux/tasks.h"
#include "process_finding.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <map>
#include <set>
#include <tuple>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;

constexpr std::array shells = {"sh",    "bash", "dash", "ash",  "zsh",   "ksh", "mksh",
                               "ksh93", "fish", "csh",  "tcsh", "rbash", "pwsh"};
constexpr std::array interpreters = {"python", "perl", "ruby", "php",  "lua",    "node", "busybox", "nc",     "ncat",
                                     "socat",  "awk",  "gawk", "mawk", "telnet", "java", "tclsh",   "expect", "script"};
constexpr std::array network_protocols = {"tcp",  "tcp6",  "udp",   "udp6",   "sctp", "sctp6",
                                          "dccp", "dccp6", "mptcp", "mptcp6", "vsock"};
constexpr std::size_t shown_limit = 16;

template <std::size_t N> bool is_one_of(const std::array<const char *, N> &names, std::string_view name) {
  return std::ranges::any_of(names, [&](const char *each) { return name == each; });
}

// "python3.11" begins with "python", "ncdu" does not with "nc".
template <std::size_t N> bool is_version_of(const std::array<const char *, N> &names, std::string_view name) {
  return std::ranges::any_of(names, [&](const std::string_view each) {
    return name.starts_with(each) && name.substr(each.size()).find_first_not_of("0123456789.-") == name.npos;
  });
}

// A shell's name stands in its command line where one program is many (busybox).
bool is_shell(const Process &process) {
  std::string_view called = process.arguments.empty() ? std::string_view() : file_name(process.arguments.front());
  if (called.starts_with('-'))
    called.remove_prefix(1); // of a login
  return is_one_of(shells, file_name(process.exe)) || is_one_of(shells, process.comm) || is_one_of(shells, called);
}

class ProcessBehaviour final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override {
    TRY(look_at_streams(scene, findings));
    look_at_names(scene, findings);
    TRY(look_at_tracers(scene, findings));
    return {};
  }

private:
  // Standard streams that are one connection, as of a shell that somebody far away types into.
  static Result<void> look_at_streams(const Scene &scene, Findings &findings) {
    TRY_ASSIGN(const auto sockets, scene.sockets());
    struct Streams {
      std::set<std::int32_t> numbers;
      const Socket *socket = nullptr;
    };
    std::map<std::pair<std::int32_t, Gva>, Streams> streams; // by process and socket
    for (const Socket &socket : sockets)
      if (is_one_of(network_protocols, socket.protocol) && socket.remote_port != 0)
        for (const SocketOwner &owner : socket.owners)
          if (owner.fd >= 0 && owner.fd <= 2) {
            Streams &of = streams[{owner.pid, socket.socket}];
            of.numbers.insert(owner.fd);
            of.socket = &socket;
          }
    std::map<std::int32_t, const Socket *> connected;
    for (const auto &[key, of] : streams)
      if (of.numbers.contains(0) && of.numbers.size() > 1)
        connected[key.first] = of.socket;
    for (const auto &[pid, socket] : connected) {
      const Process *process = scene.process(pid);
      // What a shell starts has the shell's streams.
      if (process == nullptr || connected.contains(process->ppid))
        continue;
      const bool shell = is_shell(*process), interpreter = is_version_of(interpreters, file_name(process->exe));
      add_finding(scene, findings, *process, "standard streams",
                  shell         ? Severity::critical
                  : interpreter ? Severity::high
                                : Severity::low,
                  "T1059",
                  fmt::format("{} from and to a network connection with {}:{}",
                              shell         ? "is a shell that reads and writes"
                              : interpreter ? "is an interpreter that reads and writes"
                                            : "reads and writes",
                              socket->remote_address, socket->remote_port))
          .with("protocol", socket->protocol)
          .with("local", fmt::format("{}:{}", socket->local_address, socket->local_port))
          .with("remote", fmt::format("{}:{}", socket->remote_address, socket->remote_port))
          .with("inode", socket->inode);
    }
    return {};
  }

  // Names as only kernel threads have them: "[kworker/0:7]" in a command line, "kworker/0:7" for a thread's name.
  static void look_at_names(const Scene &scene, Findings &findings) {
    std::set<std::string, std::less<>> kernel_names, kernel_families;
    for (const Process &process : scene.processes())
      if (process.kernel_thread) {
        kernel_names.insert(process.comm);
        if (const auto slash = process.comm.find('/'); slash != process.comm.npos)
          kernel_families.insert(process.comm.substr(0, slash));
      }
    for (const Process &process : scene.processes()) {
      if (process.kernel_thread || !process.memory)
        continue;
      const std::string_view called = process.arguments.empty() ? std::string_view() : process.arguments.front();
      const std::string_view name = process.comm;
      const bool in_brackets = called.size() > 2 && called.size() <= 40 && called.starts_with('[') &&
                               called.ends_with(']') && called.find(' ') == called.npos;
      const auto slash = name.find('/');
      const bool of_family = slash != name.npos && kernel_families.contains(name.substr(0, slash));
      // A program may have the name of a kernel thread for its own.
      constexpr std::size_t comm_length = 15;
      const bool is_namesake = kernel_names.contains(name) &&
                               !(file_name(process.exe).substr(0, comm_length) == name && is_system_path(process.exe));
      if (!in_brackets && !of_family && !is_namesake)
        continue;
      const std::string shown = in_brackets ? std::string(called) : process.comm;
      add_finding(scene, findings, process, "name of a kernel thread", Severity::high, "T1036.004",
                  fmt::format("calls itself {} as a kernel thread does, and runs {}", shown,
                              process.exe.empty() ? "a program" : process.exe))
          .with("found", shown)
          .with("path", process.exe);
    }
  }

  static bool is_system_path(std::string_view path) {
    constexpr std::array places = {"/usr/", "/bin/", "/sbin/", "/opt/", "/lib/", "/snap/", "/nix/store/"};
    return std::ranges::any_of(places, [&](const char *place) { return path.starts_with(place); });
  }

  struct Traced {
    std::vector<std::int32_t> pids;
    bool attached = false; // to a process that the tracer did not start
  };

  static Result<void> look_at_tracers(const Scene &scene, Findings &findings) {
    const Kernel &kernel = scene.kernel();
    linux_guest::LayoutResolver layout(kernel.types());
    const auto traced = layout.optional("task_struct", "ptrace"), parent = layout.optional("task_struct", "parent"),
               real_parent = layout.optional("task_struct", "real_parent"),
               group = layout.optional("task_struct", "tgid");
    if (!traced || !parent || !real_parent || !group)
      return {};
    const auto &tasks = scene.tasks();
    if (!tasks)
      return std::unexpected(tasks.error());
    std::map<std::int32_t, Traced> tracers;
    for (const auto &task : tasks->items) {
      if (kernel.read_field(task.task, *traced).value_or(0) == 0)
        continue;
      const auto group_of = [&](const FieldLocation &member) -> std::int32_t {
        const auto other = kernel.read_pointer(task.task, member);
        return other && kernel.is_kernel_address(*other)
                   ? static_cast<std::int32_t>(kernel.read_field(*other, *group).value_or(0))
                   : 0;
      };
      const std::int32_t tracer = group_of(*parent);
      if (tracer == 0)
        continue;
      Traced &of = tracers[tracer];
      if (std::ranges::find(of.pids, task.tgid) == of.pids.end() && of.pids.size() < shown_limit)
        of.pids.push_back(task.tgid);
      of.attached |= group_of(*real_parent) != tracer;
    }
    for (const auto &[pid, of] : tracers) {
      const Process *process = scene.process(pid);
      const Process *victim = scene.process(of.pids.front());
      if (process == nullptr || victim == nullptr)
        continue;
      std::string pids;
      for (const std::int32_t each : of.pids)
        pids += (pids.empty() ? "" : ", ") + std::to_string(each);
      add_finding(scene, findings, *process, "tracer", of.attached ? Severity::medium : Severity::low, "T1055.008",
                  fmt::format("traces process {} ({}){}{}", victim->tgid, victim->comm,
                              of.pids.size() > 1 ? " and others" : "",
                              of.attached ? ", which it did not start" : ", which it started"))
          .with("traced", pids);
    }
    return {};
  }
};

LARARIUM_CHECK(
    ProcessBehaviour, "process_behaviour", "T1059 T1036.004 T1055.008",
    "shells on connections, false kernel threads, tracers",
    "Reports processes whose standard input and output are one network connection (critical for shells, high for other "
    "interpreters, low for the rest, which inetd starts so); processes with a name that the guest's kernel threads "
    "have, "
    "or in brackets as ps shows kernel threads; and processes that trace others by ptrace (medium where they did not "
    "start what they trace, low otherwise). A shell behind a relay, on a pipe or a terminal, is not told from others.")

} // namespace
} // namespace lararium::detect
