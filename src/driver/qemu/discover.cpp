#include "lararium/base/mapping.h"
#include "lararium/driver/qemu.h"
#include "lararium/driver/qemu/process.h"
#include "ports.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <map>
#include <sys/stat.h>
#include <unistd.h>

namespace lararium::qemu {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t max_processes = 1 << 20;
constexpr std::uint64_t default_ram = 128ULL << 20;
// Discovery must not hang on a host where QEMUs do: their monitors get this much time, all together.
constexpr std::chrono::milliseconds monitors_budget{3000};
constexpr MonitorTimeouts discovery_timeouts{.greeting = std::chrono::milliseconds(50),
                                             .command = std::chrono::milliseconds(1000)};

std::string_view base_name(std::string_view path) {
  constexpr std::string_view deleted = " (deleted)";
  if (path.ends_with(deleted))
    path.remove_suffix(deleted.size());
  return path.substr(path.rfind('/') + 1);
}

bool is_qemu_name(std::string_view name) {
  return name.starts_with("qemu-system-") || name == "qemu-kvm" || name == "kvm" || name == "qemu";
}

Architecture architecture_of(std::string_view name) {
  constexpr std::string_view prefix = "qemu-system-";
  if (!name.starts_with(prefix))
    return Architecture::x86_64; // qemu-kvm; or renamed, and attach() will see
  name.remove_prefix(prefix.size());
  if (name.starts_with("x86_64") || name.starts_with("i386"))
    return Architecture::x86_64;
  return name.starts_with("aarch64") ? Architecture::aarch64 : Architecture::other;
}

// The version in a QEMU's binary, which makes sure that it is one. The binary is not run: it is not ours, and may come
// from a container.
class Binaries {
public:
  std::string version_of(pid_t pid) {
    const UniqueFd file(::open(fmt::format("/proc/{}/exe", pid).c_str(), O_RDONLY | O_CLOEXEC));
    struct stat status{};
    if (!file || ::fstat(file.get(), &status) != 0 || !S_ISREG(status.st_mode))
      return {};
    const auto [entry, is_new] = versions_.try_emplace({status.st_dev, status.st_ino});
    if (is_new)
      entry->second = search(file.get(), static_cast<std::uint64_t>(status.st_size));
    return entry->second;
  }

private:
  static std::string search(int file, std::uint64_t size) {
    constexpr std::uint64_t limit = 512 << 20;
    const auto mapping = Mapping::map_file(file, 0, std::min(size, limit));
    if (!mapping)
      return {};
    constexpr std::string_view text = "QEMU emulator version ";
    const Bytes bytes = mapping->bytes();
    const void *found = ::memmem(bytes.data(), bytes.size(), text.data(), text.size());
    if (found == nullptr)
      return {};
    const auto at = static_cast<std::size_t>(static_cast<const std::byte *>(found) - bytes.data()) + text.size();
    const auto version = c_string(bytes, at, 32);
    return std::string(version.substr(0, version.find_first_not_of("0123456789.")));
  }

  std::map<std::pair<dev_t, ino_t>, std::string> versions_;
};

bool program_exists(std::string_view name) {
  const char *path = std::getenv("PATH");
  std::string_view folders = path == nullptr ? "/usr/bin:/bin" : path;
  while (!folders.empty()) {
    const auto folder = folders.substr(0, folders.find(':'));
    if (!folder.empty() && ::access(fmt::format("{}/{}", folder, name).c_str(), X_OK) == 0)
      return true;
    folders.remove_prefix(std::min(folder.size() + 1, folders.size()));
  }
  return false;
}

bool same_namespace(const Process &process, std::string_view kind) {
  const auto theirs = read_link(process.path(fmt::format("ns/{}", kind)));
  const auto ours = read_link(fmt::format("/proc/self/ns/{}", kind));
  return theirs && ours && *theirs == *ours;
}

class Discovery {
public:
  // All VMs, as far as examine() tells of them.
  std::vector<VmSummary> run() {
    std::vector<VmSummary> result;
    const auto pids = numbered_entries("/proc", max_processes);
    if (!pids)
      return result;
    for (const int pid : *pids)
      if (auto vm = examine(pid))
        result.push_back(std::move(*vm));
    std::ranges::sort(result, {}, &VmSummary::pid);
    return result;
  }

  // What the command lines tell: enough to name a VM. complete() adds what takes longer to find out.
  std::optional<VmSummary> examine(pid_t pid) {
    const auto executable = read_link(fmt::format("/proc/{}/exe", pid));
    if (!executable && executable.error().code != ErrorCode::permission_denied)
      return std::nullopt; // a kernel thread, or gone
    const std::string folder = fmt::format("/proc/{}/", pid);
    auto name = std::string(executable ? base_name(*executable) : std::string_view());
    // Most processes are told by their name alone; for the others the arguments must look like QEMU's.
    const auto text = read_small_file(folder + "cmdline", max_command_line);
    if (!text || text->empty())
      return std::nullopt;
    auto line = parse_command_line(*text);
    if (!is_qemu_name(name)) {
      if (line.recognised < 2)
        return std::nullopt;
      const auto first = base_name(std::string_view(text->c_str()));
      if (executable ? binaries_.version_of(pid).empty() : !is_qemu_name(first))
        return std::nullopt; // a wrapper that passes QEMU's arguments on
      if (!executable)
        name = first;
    } else if (line.recognised == 0 && text->find("-version") != std::string::npos) {
      return std::nullopt;
    }

    auto process = Process::open(pid);
    const auto stat_text = read_small_file(folder + "stat", page_size);
    const auto stat = stat_text ? parse_stat(*stat_text) : std::nullopt;
    struct stat status{};
    if (!process || !stat || stat->state == 'Z' || ::stat(folder.c_str(), &status) != 0 || !process->alive())
      return std::nullopt;

    VmSummary vm;
    vm.pid = pid;
    vm.start_ticks = stat->start_ticks;
    vm.start_time =
        boot_time() + static_cast<std::time_t>(stat->start_ticks / static_cast<std::uint64_t>(::sysconf(_SC_CLK_TCK)));
    vm.owner = status.st_uid;
    vm.architecture = architecture_of(name);
    if (stat->state == 'T' || stat->state == 't')
      vm.state = RunState::paused; // stopped by a signal or a debugger: no vCPU runs
    vm.command_line = std::move(line);
    vm.name = vm.command_line.name.empty() ? fmt::format("qemu-{}", pid) : vm.command_line.name;
    vm.uuid = vm.command_line.uuid;
    add_routes(vm, *process);
    return vm;
  }

  // False when the VM has ended meanwhile.
  bool complete(VmSummary &vm) {
    const auto process = Process::open(vm.pid, vm.start_ticks);
    if (!process)
      return false;
    describe(vm, *process);
    add_problems(vm);
    return true;
  }

  // By the binary, where no monitor said it. Searching 20 MiB takes longer than all the rest.
  void add_version(VmSummary &vm) {
    if (vm.version.empty())
      vm.version = binaries_.version_of(vm.pid);
  }

  static void ask_monitors(std::vector<VmSummary> &vms) {
    const auto deadline = Clock::now() + monitors_budget;
    for (auto &vm : vms) {
      if (const auto state = state_from_libvirt(vm)) {
        vm.state = *state;
        continue;
      }
      // Not through virsh: a program run for each VM takes too long for a list.
      auto routes = vm.routes;
      std::erase_if(routes, [](const MonitorRoute &route) { return route.kind == MonitorRoute::Kind::virsh; });
      if (routes.empty() || vm.state == RunState::paused)
        continue;
      if (Clock::now() > deadline) {
        vm.problems.emplace_back("its monitor was not asked: others took too long");
        continue;
      }
      const auto monitor = MonitorAccess(std::move(routes), discovery_timeouts).open();
      if (!monitor) {
        vm.problems.push_back(monitor.error().describe());
        continue;
      }
      vm.version = (*monitor)->version();
      if (const auto state = ask_state(**monitor))
        vm.state = *state;
      else
        vm.problems.push_back(state.error().describe());
    }
  }

private:
  void describe(VmSummary &vm, const Process &process) {
    const auto &line = vm.command_line;
    vm.machine = line.machine;
    vm.ram_bytes = line.ram_size != 0 ? line.ram_size : default_ram;
    for (const auto &id : line.dimm_backends)
      for (const auto &backend : line.backends)
        if (backend.id == id)
          vm.ram_bytes += backend.size;
    vm.vcpus = line.vcpus != 0 ? line.vcpus : 1;

    vm.readable = static_cast<bool>(UniqueFd(::open(process.path("mem").c_str(), O_RDONLY | O_CLOEXEC)));
    if (const auto descriptors = process.descriptors()) {
      std::uint32_t kvm_vcpus = 0;
      bool kvm = false;
      for (const auto &descriptor : *descriptors) {
        kvm = kvm || descriptor.target == "anon_inode:kvm-vm";
        kvm_vcpus += descriptor.target.starts_with("anon_inode:kvm-vcpu:") ? 1 : 0;
      }
      vm.accelerator = kvm ? "kvm" : "tcg";
      if (kvm_vcpus != 0)
        vm.vcpus = kvm_vcpus;
    } else {
      const bool says_kvm = !line.accelerators.empty() && line.accelerators.front() == "kvm";
      vm.accelerator = says_kvm ? "kvm" : "tcg";
      vm.problems.emplace_back("the accelerator is what the command line says: the process's open files need root");
    }

    const auto main = std::ranges::find(
        line.backends, line.numa_backends.empty() ? line.main_backend : line.numa_backends.front(), &MemoryBackend::id);
    if (!vm.readable)
      vm.memory_access = fmt::format("not readable: needs root, or the right to trace process {}", vm.pid);
    else if (main != line.backends.end() && main->shared)
      vm.memory_access = fmt::format("mapped ({})", main->kind.substr(main->kind.rfind('-') + 1));
    else
      vm.memory_access = "process_vm_readv (private memory)";
  }

  void add_routes(VmSummary &vm, const Process &process) {
    const bool here = same_namespace(process, "mnt");
    const bool same_net = same_namespace(process, "net");
    bool of_libvirt = !vm.command_line.libvirt_folder.empty();
    for (const auto &address : vm.command_line.monitors) {
      MonitorRoute route;
      route.kind = address.protocol == MonitorProtocol::qmp ? MonitorRoute::Kind::qmp : MonitorRoute::Kind::hmp;
      route.pid = vm.pid;
      route.path = address.path;
      switch (address.transport) {
      case MonitorAddress::Transport::tcp:
        if (!same_net)
          continue; // its loopback is not ours
        route.transport = MonitorRoute::Transport::tcp;
        route.port = address.port;
        break;
      case MonitorAddress::Transport::unix_abstract:
        if (!same_net)
          continue;
        route.transport = MonitorRoute::Transport::unix_abstract;
        route.bound = "@" + address.path;
        break;
      case MonitorAddress::Transport::descriptor: route.bound = socket_path(process, address.descriptor); break;
      case MonitorAddress::Transport::unix_path: route.bound = address.path; break;
      }
      if (route.transport == MonitorRoute::Transport::unix_path) {
        if (route.bound.empty())
          continue;
        of_libvirt = of_libvirt || route.bound.find("/libvirt/qemu/") != std::string::npos;
        if (!route.bound.starts_with('/')) // relative to the folder where QEMU was started, if it stayed there
          route.path = process.path("cwd/") + route.bound;
        else
          route.path = here ? route.bound : process.path("root") + route.bound;
      }
      vm.routes.push_back(std::move(route));
    }
    if (of_libvirt && has_virsh_) {
      MonitorRoute route;
      route.kind = MonitorRoute::Kind::virsh;
      route.pid = vm.pid;
      route.path = vm.uuid.empty() ? vm.name : vm.uuid;
      const bool of_system =
          vm.command_line.libvirt_folder.empty() || vm.command_line.libvirt_folder.starts_with("/var/lib/libvirt/");
      route.connection = of_system ? "qemu:///system" : "qemu:///session";
      if (!route.path.starts_with('-'))
        vm.routes.push_back(std::move(route));
    }
  }

  // The path of a listening socket that QEMU was handed.
  static std::string socket_path(const Process &process, int descriptor) {
    const auto target = read_link(process.path(fmt::format("fd/{}", descriptor)));
    constexpr std::string_view prefix = "socket:[";
    if (!target || !target->starts_with(prefix))
      return {};
    std::uint64_t inode = 0;
    std::from_chars(target->data() + prefix.size(), target->data() + target->size(), inode);
    const auto text = read_small_file(process.path("net/unix"), 64 << 20);
    if (!text)
      return {};
    for (const auto &socket : parse_unix_sockets(*text))
      if (socket.inode == inode && socket.path.starts_with('/'))
        return socket.path;
    return {};
  }

  static void add_problems(VmSummary &vm) {
    if (vm.architecture != Architecture::x86_64)
      vm.problems.emplace_back("only x86-64 guests can be read");
    if (!vm.command_line.confidential.empty())
      vm.problems.push_back(fmt::format("the guest's memory is encrypted ({})", vm.command_line.confidential));
    if (!vm.readable)
      vm.problems.push_back(vm.memory_access);
    if (vm.routes.empty())
      vm.problems.emplace_back("no monitor that can be reached: no registers, no pause, and the memory map is derived");
    if (vm.command_line.has_read_config)
      vm.problems.emplace_back("-readconfig is not followed: what its file says is missing here");
  }

  // libvirt holds its monitors, but says the state in a file of its own.
  static std::optional<RunState> state_from_libvirt(const VmSummary &vm) {
    if (vm.name.find('/') != std::string::npos)
      return std::nullopt;
    const auto text = read_small_file(fmt::format("/run/libvirt/qemu/{}.xml", vm.name), 8 << 20);
    // <domstatus state='running' reason='booted' pid='1234'>
    if (!text || text->find(fmt::format(" pid='{}'", vm.pid)) == std::string::npos)
      return std::nullopt;
    constexpr std::string_view key = "<domstatus state='";
    const auto at = text->find(key);
    if (at == std::string::npos)
      return std::nullopt;
    const auto state = std::string_view(*text).substr(at + key.size(), 16);
    if (state.starts_with("running'"))
      return RunState::running;
    if (state.starts_with("paused'"))
      return RunState::paused;
    return state.starts_with("crashed'") ? RunState::crashed : RunState::unknown;
  }

  std::time_t boot_time() {
    if (boot_time_ == 0)
      if (const auto text = read_small_file("/proc/stat", 16 << 20)) {
        constexpr std::string_view key = "\nbtime ";
        if (const auto at = text->find(key); at != std::string::npos)
          std::from_chars(text->data() + at + key.size(), text->data() + text->size(), boot_time_);
      }
    return boot_time_;
  }

  Binaries binaries_;
  bool has_virsh_ = program_exists("virsh");
  std::time_t boot_time_ = 0;
};

std::string list_of(const std::vector<const VmSummary *> &vms) {
  std::vector<std::string> words;
  constexpr std::size_t limit = 20;
  for (const auto *vm : vms) {
    if (words.size() == limit) {
      words.push_back(fmt::format("and {} more", vms.size() - limit));
      break;
    }
    words.push_back(fmt::format("{} (pid {})", vm->name, vm->pid));
  }
  return fmt::format("{}", fmt::join(words, ", "));
}

std::string lower(std::string_view text) {
  std::string result(text);
  std::ranges::transform(result, result.begin(),
                         [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + ('a' - 'A')) : c; });
  return result;
}

bool is_same_file(const std::string &first, const std::string &second) {
  struct stat one{}, two{};
  return ::stat(first.c_str(), &one) == 0 && ::stat(second.c_str(), &two) == 0 && one.st_ino == two.st_ino &&
         one.st_dev == two.st_dev;
}

bool is_called(const VmSummary &vm, std::string_view wanted) {
  constexpr std::size_t shortest_prefix = 8;
  if (vm.name == wanted || std::to_string(vm.pid) == wanted)
    return true;
  if (wanted.size() >= shortest_prefix && vm.uuid.starts_with(lower(wanted)))
    return true;
  return wanted.find('/') != std::string_view::npos && std::ranges::any_of(vm.routes, [&](const MonitorRoute &route) {
           return route.kind != MonitorRoute::Kind::virsh && route.transport == MonitorRoute::Transport::unix_path &&
                  (route.bound == wanted || is_same_file(route.path, std::string(wanted)));
         });
}

} // namespace

std::vector<VmSummary> discover(const DiscoverOptions &options) {
  Discovery discovery;
  auto vms = discovery.run();
  std::erase_if(vms, [&](VmSummary &vm) { return !discovery.complete(vm); });
  if (options.ask_monitors)
    Discovery::ask_monitors(vms);
  for (auto &vm : vms)
    discovery.add_version(vm);
  return vms;
}

Result<VmSummary> resolve(const std::vector<VmSummary> &vms, std::string_view wanted) {
  std::vector<const VmSummary *> fitting, all;
  for (const auto &vm : vms) {
    all.push_back(&vm);
    if (is_called(vm, wanted))
      fitting.push_back(&vm);
  }
  if (fitting.size() == 1)
    return *fitting.front();
  if (fitting.size() > 1)
    return fail(ErrorCode::ambiguous, fmt::format("\"{}\" could be {}; name one by its pid", wanted, list_of(fitting)));
  if (all.empty())
    return fail(ErrorCode::not_found, fmt::format("no VM is called \"{}\": QEMU runs none on this host", wanted));
  return fail(ErrorCode::not_found, fmt::format("no VM is called \"{}\"; there is {}", wanted, list_of(all)));
}

Result<VmSummary> find(std::string_view wanted) {
  Discovery discovery;
  const auto ended = [&] { return fail(ErrorCode::gone, fmt::format("the VM \"{}\" has ended", wanted)); };
  pid_t pid = 0;
  const auto [end, error] = std::from_chars(wanted.data(), wanted.data() + wanted.size(), pid);
  if (error == std::errc() && end == wanted.data() + wanted.size() && pid > 0)
    if (auto vm = discovery.examine(pid)) // no need to look at all the others
      return discovery.complete(*vm) ? Result<VmSummary>(std::move(*vm)) : ended();
  TRY_ASSIGN(auto vm, resolve(discovery.run(), wanted));
  if (!discovery.complete(vm))
    return ended();
  return vm;
}

} // namespace lararium::qemu
