#include "lararium/detect/lies.h"

#include "lararium/os/linux/tasks.h"
#include "module_census.h"
#include "task_census.h"

#include <algorithm>
#include <chrono>
#include <fmt/format.h>
#include <set>
#include <thread>
#include <unordered_map>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;
using linux_guest::LayoutResolver;

constexpr std::uint64_t tick_ns = 10'000'000; // USER_HZ is 100

// Names that every tool prints as they are: no blanks to trim, no signs to escape.
bool is_plain(std::string_view name) {
  return !name.empty() && std::ranges::all_of(name, [](char c) { return c > ' ' && c < '\x7f' && c != '\\'; });
}

bool is_same(const OutsideProcess &a, const OutsideProcess &b) { return a.task == b.task && a.start_ns == b.start_ns; }

bool is_same(const OutsideSocket &a, const OutsideSocket &b) {
  return a.socket == b.socket && a.protocol == b.protocol && a.state == b.state && a.local_port == b.local_port &&
         a.remote_port == b.remote_port && a.net_namespace == b.net_namespace;
}

// Whether the start that the guest tells is that of the process: both are cut off somewhere.
bool starts_agree(std::uint64_t ticks, std::uint64_t start_ns) {
  const std::uint64_t own = start_ns / tick_ns;
  return ticks <= own + 1 && own <= ticks + 1;
}

class Comparison {
public:
  Comparison(const OutsideLook &before, const GuestAnswer &answer, const OutsideLook &after, AnswerTime time,
             Findings &findings)
      : before_(before), answer_(answer), after_(after), time_(time), findings_(findings) {}

  void run() {
    compare_processes();
    if (time_ == AnswerTime::earlier)
      return;
    compare_modules();
    compare_sockets();
  }

private:
  // "proc and ps"
  static std::string joined(const std::vector<std::string> &words) {
    std::string result;
    for (std::size_t i = 0; i < words.size(); ++i)
      result += (i == 0 ? "" : i + 1 == words.size() ? " and " : ", ") + words[i];
    return result;
  }

  Finding &add(std::string subject, Severity severity, const char *technique, std::string sentence) {
    return findings_.add({.check = "lies",
                          .subject = std::move(subject),
                          .severity = severity,
                          .technique = technique,
                          .sentence = std::move(sentence)});
  }

  // What was there all the time while the guest answered.
  [[nodiscard]] bool was_there(const OutsideProcess &process) const {
    if (time_ == AnswerTime::earlier) {
      constexpr std::uint64_t slack_ns = 1'000'000'000;
      return process.start_ns + slack_ns < answer_.begin_ns;
    }
    const auto earlier = before_.processes.find(process.pid);
    return earlier != before_.processes.end() && is_same(earlier->second, process);
  }

  void compare_processes() {
    const auto by_pid = [](const std::vector<ToldProcess> &told) {
      std::unordered_map<std::int32_t, const ToldProcess *> result;
      for (const ToldProcess &process : told)
        result.emplace(process.pid, &process);
      return result;
    };
    const auto listed = by_pid(answer_.processes);
    const auto ps = answer_.ps ? by_pid(*answer_.ps) : listed;
    for (const auto &[pid, process] : after_.processes) {
      if (!was_there(process))
        continue;
      std::vector<std::string> missing;
      if (!listed.contains(pid))
        missing.emplace_back("/proc");
      if (!ps.contains(pid))
        missing.emplace_back("ps");
      if (!missing.empty()) {
        Finding &finding =
            add(fmt::format("process {} started {}", pid, process.start_ns), Severity::critical, "T1564.001",
                fmt::format("process {} ({}) runs, and the guest's {} {} it out", pid, process.comm, joined(missing),
                            missing.size() > 1 ? "leave" : "leaves"));
        finding.with("missing_from", joined(missing)).with("address", process.task);
        finding.process = process.actor;
      }
      if (const auto told = listed.find(pid); told != listed.end())
        compare_process(process, *told->second);
    }
    // What started with the answer is what made it.
    constexpr std::uint64_t slack_ticks = 100;
    if (time_ == AnswerTime::between)
      for (const ToldProcess &told : answer_.processes)
        if (told.start_ticks && *told.start_ticks < answer_.begin_ns / tick_ns &&
            answer_.begin_ns / tick_ns - *told.start_ticks > slack_ticks && !before_.processes.contains(told.pid) &&
            !after_.processes.contains(told.pid))
          add(fmt::format("process {} told to have started at {}", told.pid, *told.start_ticks), Severity::high,
              "T1014", fmt::format("the guest lists process {} ({}), which there is not", told.pid, told.name))
              .with("found", told.name);
  }

  // What both looks agree in, where there were two.
  void compare_process(const OutsideProcess &process, const ToldProcess &told) {
    const auto earlier = before_.processes.find(process.pid);
    if (time_ == AnswerTime::earlier || earlier == before_.processes.end())
      return;
    const auto tell = [&](std::string_view what, const std::string &is, const std::string &said) {
      Finding &finding =
          add(fmt::format("{} of process {} started {}", what, process.pid, process.start_ns), Severity::high, "T1014",
              fmt::format("the {} of process {} ({}) is {}, and the guest says {}", what, process.pid, process.comm, is,
                          said));
      finding.with("expected", is).with("found", said).with("address", process.task);
      finding.process = process.actor;
    };
    // What a kernel thread works on is part of the name that /proc shows.
    if (!process.kernel_thread && earlier->second.comm == process.comm && is_plain(process.comm) &&
        told.name != process.comm)
      tell("name", process.comm, told.name.empty() ? "nothing" : told.name);
    if (process.uid && earlier->second.uid == process.uid && told.uid && told.uid != process.uid)
      tell("user", std::to_string(*process.uid), std::to_string(*told.uid));
    if (told.start_ticks && !starts_agree(*told.start_ticks, process.start_ns))
      tell("start", fmt::format("{} hundredths of a second after boot", process.start_ns / tick_ns),
           std::to_string(*told.start_ticks));
  }

  void compare_modules() {
    const auto names_of = [](const std::vector<ToldModule> &modules) {
      std::set<std::string, std::less<>> names;
      for (const ToldModule &module : modules)
        names.insert(module.name);
      return names;
    };
    const auto listed = names_of(answer_.modules), lsmod = answer_.lsmod ? names_of(*answer_.lsmod) : listed;
    for (const auto &[address, module] : after_.modules) {
      const auto earlier = before_.modules.find(address);
      if (earlier == before_.modules.end() || earlier->second.name != module.name ||
          earlier->second.instance != module.instance || !is_plain(module.name))
        continue;
      std::vector<std::string> missing;
      if (!listed.contains(module.name))
        missing.emplace_back("/proc/modules");
      if (!lsmod.contains(module.name))
        missing.emplace_back("lsmod");
      if (!missing.empty())
        add(fmt::format("module {} at {:#x}", module.name, address.value), Severity::critical, "T1014",
            fmt::format("the module {} is loaded, and the guest's {} {} it out", module.name, joined(missing),
                        missing.size() > 1 ? "leave" : "leaves"))
            .with("module", module.name)
            .with("address", address)
            .with("missing_from", joined(missing));
    }
    if (time_ != AnswerTime::between)
      return;
    const auto is_there = [](const OutsideLook &look, std::string_view name) {
      return std::ranges::any_of(look.modules, [&](const auto &entry) { return entry.second.name == name; });
    };
    for (const ToldModule &told : answer_.modules)
      if (told.inode != 0 && !is_there(before_, told.name) && !is_there(after_, told.name))
        add(fmt::format("module {} told to be inode {}", told.name, told.inode), Severity::high, "T1014",
            fmt::format("the guest lists a module {}, which there is not", told.name))
            .with("module", told.name);
  }

  [[nodiscard]] bool is_compared(const OutsideSocket &socket) const {
    if (socket.net_namespace != answer_.net_namespace)
      return false;
    if (socket.protocol == "tcp" || socket.protocol == "tcp6")
      return socket.state == "LISTEN" || socket.state == "ESTABLISHED" || socket.state == "CLOSE_WAIT";
    if (socket.protocol == "udp" || socket.protocol == "udp6")
      return socket.local_port != 0; // others are in no table
    return socket.protocol == "raw" || socket.protocol == "raw6" || socket.protocol == "packet";
  }

  void compare_sockets() {
    // The tables of both versions of IP together: a socket of one can serve the other. A table that the guest does not
    // have at all is not compared.
    std::map<std::string, std::unordered_map<std::uint64_t, const ToldSocket *>> tables;
    const auto table_of = [](std::string_view protocol) {
      return std::string(protocol.ends_with('6') ? protocol.substr(0, protocol.size() - 1) : protocol);
    };
    std::set<std::string> told_tables;
    for (const auto &[name, sockets] : answer_.sockets) {
      told_tables.insert(name);
      for (const ToldSocket &socket : sockets)
        tables[table_of(name)].emplace(socket.inode, &socket);
    }
    std::set<std::uint64_t> ss;
    if (answer_.ss)
      for (const ToldSocket &socket : *answer_.ss)
        ss.insert(socket.inode);
    for (const auto &[inode, socket] : after_.sockets) {
      const auto earlier = before_.sockets.find(inode);
      if (earlier == before_.sockets.end() || !is_same(earlier->second, socket) || !is_compared(socket))
        continue;
      const auto &table = tables[table_of(socket.protocol)];
      const auto told = table.find(inode);
      std::vector<std::string> missing;
      if (told == table.end() && told_tables.contains(socket.protocol))
        missing.push_back("/proc/net/" + socket.protocol);
      if (answer_.ss && socket.protocol != "packet" && !ss.contains(inode))
        missing.emplace_back("ss");
      const std::string what = fmt::format("{} socket {} {}", socket.protocol, socket.local,
                                           socket.state == "LISTEN" ? "that listens" : socket.remote);
      if (!missing.empty()) {
        Finding &finding = add(fmt::format("socket {} {}", inode, socket.protocol), Severity::critical, "T1014",
                               fmt::format("there is a {}, and the guest's {} {} it out", what, joined(missing),
                                           missing.size() > 1 ? "leave" : "leaves"));
        finding.with("missing_from", joined(missing)).with("inode", inode).with("address", socket.socket);
        finding.process = socket.actor;
      } else if (told != table.end() && socket.protocol.starts_with("tcp") &&
                 (told->second->local_port != socket.local_port || told->second->remote_port != socket.remote_port)) {
        Finding &finding = add(fmt::format("ports of socket {}", inode), Severity::high, "T1014",
                               fmt::format("there is a {}, and the guest says its ports are {} and {}", what,
                                           told->second->local_port, told->second->remote_port));
        finding.with("inode", inode).with("address", socket.socket);
        finding.process = socket.actor;
      }
    }
    if (time_ != AnswerTime::between)
      return;
    for (const auto &[name, sockets] : answer_.sockets)
      for (const ToldSocket &told : sockets)
        if (!before_.sockets.contains(told.inode) && !after_.sockets.contains(told.inode))
          add(fmt::format("socket told to be {} in {}", told.inode, name), Severity::high, "T1014",
              fmt::format("the guest lists a socket {} in /proc/net/{}, which there is not", told.inode, name))
              .with("inode", told.inode);
  }

  const OutsideLook &before_;
  const GuestAnswer &answer_;
  const OutsideLook &after_;
  AnswerTime time_;
  Findings &findings_;
};

struct Layout {
  FieldLocation start, flags, module_name, module_state;
  std::optional<FieldLocation> module_folder, folder_id;
  static Result<Layout> resolve(const Kernel &kernel) {
    LayoutResolver layout(kernel.types());
    Layout f;
    f.start = layout.require_any("task_struct", {"start_boottime", "real_start_time"}); // 5.5, cf25e24db61c
    f.flags = layout.require("task_struct", "flags");
    f.module_name = layout.require("module", "name");
    f.module_state = layout.require("module", "state");
    f.module_folder = layout.optional("module", "mkobj.kobj.sd");
    f.folder_id = layout.optional("kernfs_node", "id");
    TRY(layout.check());
    return f;
  }
};

// kernfs counts its nodes up, so that a module which is unloaded and loaded to the same place has another number.
std::uint64_t instance_of(const Kernel &kernel, const Layout &f, Gva module) {
  const auto folder = f.module_folder ? kernel.read_pointer(module, *f.module_folder) : std::nullopt;
  return folder && *folder && f.folder_id ? kernel.read_field(*folder, *f.folder_id).value_or(0) : 0;
}

} // namespace

void compare_answer(const OutsideLook &before, const GuestAnswer &answer, const OutsideLook &after, AnswerTime time,
                    Findings &findings) {
  Comparison(before, answer, after, time, findings).run();
}

Result<OutsideLook> LieDetector::look() {
  system_->refresh();
  TRY_ASSIGN(const auto scene, Scene::create(*target_, *system_));
  const Kernel &kernel = scene->kernel();
  TRY_ASSIGN(const Layout *f, kernel.layout<Layout>());
  OutsideLook result;
  std::unordered_map<std::uint64_t, const Process *> known;
  std::unordered_map<std::int32_t, const Process *> by_pid;
  for (const Process &process : scene->processes()) {
    known.emplace(process.task.value, &process);
    by_pid.emplace(process.tgid, &process);
    if (process.pid == 1)
      result.first_pid_namespace = process.namespaces.pid;
  }
  TRY_ASSIGN(const TaskCensus census, take_task_census(kernel));
  for (const auto &[task, seen] : census.tasks) {
    if (seen.pid <= 0 || seen.pid != seen.tgid || !is_alive(kernel, task))
      continue;
    constexpr std::uint64_t pf_kthread = 0x00200000;
    OutsideProcess process;
    process.task = task;
    process.pid = seen.pid;
    process.start_ns = kernel.read_field(task, f->start).value_or(0);
    process.comm = linux_guest::task_comm(kernel, task);
    process.kernel_thread = (kernel.read_field(task, f->flags).value_or(0) & pf_kthread) != 0;
    if (const auto view = known.find(task.value); view != known.end()) {
      process.uid = view->second->uid.real;
      process.actor = scene->actor(*view->second);
    } else {
      process.actor.emplace();
      process.actor->pid = seen.pid;
      process.actor->comm = process.comm;
    }
    result.processes.insert_or_assign(seen.pid, std::move(process));
  }
  TRY_ASSIGN(const ModuleCensus modules, take_module_census(kernel));
  for (const ModuleSource *source : {&modules.list, &modules.tree, &modules.sysfs})
    for (const Gva module : source->modules)
      if (kernel.read_field(module, f->module_state) == 0) // MODULE_STATE_LIVE
        result.modules.try_emplace(
            module,
            OutsideModule{
                module, kernel.space().read_c_string(module + f->module_name.offset, f->module_name.size).value_or(""),
                instance_of(kernel, *f, module)});
  TRY_ASSIGN(const auto sockets, system_->sockets());
  for (const Socket &socket : sockets.items) {
    if (socket.inode == 0)
      continue;
    OutsideSocket entry;
    entry.socket = socket.socket;
    entry.protocol = socket.protocol;
    entry.state = socket.state;
    entry.local = fmt::format("{}:{}", socket.local_address, socket.local_port);
    entry.remote = fmt::format("{}:{}", socket.remote_address, socket.remote_port);
    entry.inode = socket.inode;
    entry.local_port = socket.local_port;
    entry.remote_port = socket.remote_port;
    entry.net_namespace = socket.net_namespace;
    if (!socket.owners.empty())
      if (const auto owner = by_pid.find(socket.owners.front().pid); owner != by_pid.end())
        entry.actor = scene->actor(*owner->second);
    result.sockets.insert_or_assign(socket.inode, std::move(entry));
  }
  return result;
}

Result<void> LieDetector::look_before() {
  before_ended_ns_.reset();
  TRY_ASSIGN(before_, look());
  return {};
}

// The guest writes its clock at its ticks, and a quiet guest has few: what is read is of some earlier time. Once it has
// changed, it is of a time after the look.
void LieDetector::wait_for_clock() {
  constexpr int attempts = 150;
  constexpr std::chrono::milliseconds pause{20};
  std::optional<std::uint64_t> first;
  for (int attempt = 0; attempt < attempts; ++attempt) {
    system_->refresh();
    const auto pulse = system_->pulse();
    if (!pulse || !pulse->uptime_ns)
      return;
    if (first && *pulse->uptime_ns > *first) {
      before_ended_ns_ = pulse->uptime_ns;
      return;
    }
    first = first ? first : pulse->uptime_ns;
    std::this_thread::sleep_for(pause);
  }
}

Result<AnswerTime> LieDetector::compare(const GuestAnswer &answer, bool asked, Findings &findings) {
  TRY_ASSIGN(const OutsideLook after, look());
  if (answer.uid != 0)
    return fail(ErrorCode::usage, "the guest was not asked by its root: others are not shown all that there is");
  if (after.first_pid_namespace != 0 && answer.pid_namespace != after.first_pid_namespace)
    return fail(ErrorCode::usage, "the guest was asked from within a container, where processes have other numbers");
  system_->refresh();
  constexpr std::uint64_t slack_ns = 60'000'000'000;
  if (const auto pulse = system_->pulse(); pulse && pulse->uptime_ns && answer.end_ns > *pulse->uptime_ns + slack_ns)
    return fail(ErrorCode::usage,
                "the guest's answer is of another boot, or of another guest: it tells a time to come");
  const AnswerTime time = asked                                                      ? AnswerTime::between
                          : before_ended_ns_ && answer.begin_ns >= *before_ended_ns_ ? AnswerTime::later
                                                                                     : AnswerTime::earlier;
  compare_answer(before_, answer, after, time, findings);
  return time;
}

} // namespace lararium::detect
