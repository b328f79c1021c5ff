#include "fake_host.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace lararium::cli::test {
namespace {

constexpr std::uint64_t second = 1'000'000'000;
constexpr std::uint64_t boot_time = 1'714'564'800 * second; // 2024-05-01 12:00:00 UTC
constexpr std::uint64_t symbol_address = 0xffffffff81000000;

class FakeMemory final : public PhysicalMemory {
public:
  FakeMemory() : bytes_(4 * page_size) {
    for (std::size_t i = 0; i < bytes_.size(); ++i)
      bytes_[i] = static_cast<std::byte>(i % 251);
    std::memset(bytes_.data() + 0x1000, 0, 0x100);
    std::memcpy(bytes_.data() + 0x1000, "Lararium", 8);
    set_ranges({{Gpa{0}, bytes_.size(), "pc.ram"}});
    set_mapped_runs({{Gpa{0}, bytes_}});
  }

private:
  std::vector<std::byte> bytes_;
};

class FakeRunControl final : public RunControl {
public:
  explicit FakeRunControl(FakeWorld &world) : world_(world) {}
  Result<RunState> state() override { return paused_ ? RunState::paused : RunState::running; }
  Result<void> pause() override {
    ++world_.pauses;
    paused_ = true;
    return {};
  }
  Result<void> resume() override {
    ++world_.resumes;
    paused_ = false;
    return {};
  }
  Result<std::unique_ptr<PauseGuard>> guard_pause() override {
    struct NoGuard final : PauseGuard {
      void paused() override {}
      void dismiss() override {}
    };
    return std::make_unique<NoGuard>();
  }

private:
  FakeWorld &world_;
  bool paused_ = false;
};

class FakeStatistics final : public Statistics {
public:
  Result<VmStatistics> sample() override {
    ++count_;
    VmStatistics statistics;
    statistics.host_nanoseconds = count_ * second;
    statistics.host_resident_bytes = 300 << 20;
    statistics.vcpus = {{0, count_ * second / 100}, {1, count_ * second / 200}};
    statistics.disks = {{"virtio0", count_ << 20, count_ << 19, count_ * 100, count_ * 50}};
    statistics.networks = {{{"net0", count_ << 10, count_ << 9, count_ * 10, count_ * 5}}};
    return statistics;
  }

private:
  std::uint64_t count_ = 0;
};

class FakeSystem final : public OperatingSystem {
public:
  explicit FakeSystem(FakeWorld &world) : world_(world) {}

  void refresh() override { ++world_.samples; }

  Result<SystemInfo> info() override {
    SystemInfo info;
    info.release = "6.1.0-fake-amd64";
    info.version = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.0-1 (2024-05-01)";
    info.machine = "x86_64";
    info.banner = "Linux version 6.1.0-fake-amd64 (builder@example) #1 SMP\n";
    info.build_id = "00112233445566778899aabbccddeeff00112233";
    info.hostname = "web\x1b[2J";
    info.domain_name = "(none)";
    info.uptime_ns = 93'784 * second;
    info.boot_time_ns = boot_time;
    info.current_time_ns = boot_time + *info.uptime_ns;
    info.cpus_online = 2;
    info.cpus_present = 2;
    info.cpus_possible = 4;
    info.memory_total = 512 << 20;
    info.memory_free = 300 << 20;
    info.memory_available = 400 << 20;
    info.memory_cached = 60 << 20;
    info.memory_buffers = 4 << 20;
    info.swap_total = 0;
    info.load = {0.5, 0.25, 0.125};
    info.lockdown = "none";
    info.security_modules = {"lockdown", "capability", "apparmor", "bpf"};
    info.apparmor_enabled = true;
    info.taint = 4096;
    info.taint_letters = "O";
    info.command_line = "console=ttyS0 quiet";
    info.process_count = 6;
    info.thread_count = 9;
    info.kernel_base = Gva{0xffffffff9a000000};
    info.kernel_physical_base = Gpa{0x1a000000};
    info.page_table_isolation = true;
    return info;
  }

  Result<Pulse> pulse() override { return Pulse{boot_time, second, 500, 32768}; }
  Result<View<std::uint32_t>> allocated_pids(std::uint32_t, std::uint32_t) override { return View<std::uint32_t>{}; }
  Result<std::optional<std::uint64_t>> start_of_pid(std::int32_t) override { return std::nullopt; }
  Result<View<Process>> processes(const ProcessQuery &query) override {
    View<Process> view{world_.processes, world_.status};
    if (!query.only_pids.empty())
      std::erase_if(view.items, [&](const Process &process) {
        return std::ranges::find(query.only_pids, process.tgid) == query.only_pids.end();
      });
    for (Process &process : view.items)
      if (process.comm == "sshd")
        process.user_time_ns += world_.samples * second / 50;
    return view;
  }

  Result<View<ProcessMark>> process_marks() override {
    View<ProcessMark> view;
    for (std::size_t i = 0; i < world_.processes.size(); ++i)
      view.items.push_back({world_.processes[i].tgid, i});
    return view;
  }

  Result<View<MemoryRegion>> memory_regions(std::int32_t pid) override {
    if (pid != 1)
      return fail(ErrorCode::not_found, "no process has pid " + std::to_string(pid));
    View<MemoryRegion> view;
    view.items.push_back({.begin = Gva{0x55d000000000},
                          .end = Gva{0x55d000021000},
                          .readable = true,
                          .executable = true,
                          .file_offset = 0x2000,
                          .device_major = 8,
                          .device_minor = 1,
                          .inode = 1234,
                          .path = "/usr/sbin/init"});
    view.items.push_back({.begin = Gva{0x7f0000000000},
                          .end = Gva{0x7f0000001000},
                          .readable = true,
                          .writable = true,
                          .executable = true});
    view.items.push_back({.begin = Gva{0x7ffc00000000},
                          .end = Gva{0x7ffc00021000},
                          .readable = true,
                          .writable = true,
                          .path = "[stack]"});
    return view;
  }

  Result<View<OpenFile>> open_files(std::optional<std::int32_t> pid) override {
    View<OpenFile> view;
    view.items.push_back({.pid = 1,
                          .comm = "init",
                          .fd = 0,
                          .path = "/dev/console",
                          .type = "character",
                          .flags = 2,
                          .access = "rw",
                          .inode = 5,
                          .device_minor = 5});
    view.items.push_back({.pid = 412,
                          .comm = "sshd",
                          .fd = 3,
                          .path = "/tmp/secret \xff\n",
                          .type = "file",
                          .flags = 0,
                          .access = "r",
                          .position = 4096,
                          .inode = 77,
                          .device_major = 8,
                          .device_minor = 1,
                          .size = 123456,
                          .deleted = true});
    if (pid)
      std::erase_if(view.items, [&](const OpenFile &file) { return file.pid != *pid; });
    return view;
  }

  Result<View<std::string>> environment(std::int32_t) override {
    return View<std::string>{{"PATH=/usr/bin:/bin", "EVIL=\x1b]0;owned\x07", "no_value"}, {}};
  }

  Result<View<KernelModule>> modules() override {
    View<KernelModule> view;
    view.items.push_back({.name = "virtio_net",
                          .base = Gva{0xffffffffc0200000},
                          .size = 86016,
                          .references = 0,
                          .state = "live",
                          .module = Gva{0xffffffffc0210000}});
    view.items.push_back({.name = "net_failover",
                          .base = Gva{0xffffffffc0100000},
                          .size = 24576,
                          .references = 1,
                          .used_by = {"virtio_net"},
                          .state = "live",
                          .taint = "OE"});
    return view;
  }

  Result<View<Socket>> sockets() override {
    View<Socket> view;
    view.items.push_back({.protocol = "tcp",
                          .type = "stream",
                          .state = "LISTEN",
                          .local_address = "0.0.0.0",
                          .remote_address = "0.0.0.0",
                          .local_port = 22,
                          .inode = 9001,
                          .net_namespace = 4026531840,
                          .send_queue = 128,
                          .owners = {{412, 3, "sshd"}}});
    view.items.push_back({.protocol = "tcp6",
                          .type = "stream",
                          .state = "ESTABLISHED",
                          .local_address = "fe80::1",
                          .remote_address = "fe80::2",
                          .local_port = 443,
                          .remote_port = 50000,
                          .inode = 9002,
                          .interface = "eth0",
                          .owners = {{500, 7, "httpd"}, {501, 7, "httpd"}}});
    view.items.push_back({.protocol = "unix",
                          .type = "stream",
                          .state = "LISTEN",
                          .local_address = "@/tmp/\u202egnp.exe",
                          .inode = 9003,
                          .owners = {{1, 9, "init"}}});
    view.items.push_back({.protocol = "packet",
                          .type = "raw",
                          .state = "UNCONNECTED",
                          .local_address = "eth0",
                          .netlink_port = 3,
                          .inode = 9004,
                          .owners = {{600, 4, "sniff"}}});
    return view;
  }

  Result<View<Mount>> mounts(std::optional<std::int32_t>) override {
    View<Mount> view;
    view.items.push_back({.id = 1,
                          .parent_id = 0,
                          .mount_namespace = 4026531841,
                          .device_major = 8,
                          .device_minor = 1,
                          .root = "/",
                          .mount_point = "/",
                          .filesystem = "ext4",
                          .source = "/dev/vda1",
                          .options = "rw,relatime",
                          .super_options = "errors=remount-ro"});
    view.items.push_back({.id = 2,
                          .parent_id = 1,
                          .mount_namespace = 4026531841,
                          .device_minor = 21,
                          .root = "/",
                          .mount_point = "/proc",
                          .filesystem = "proc",
                          .source = "proc",
                          .options = "rw,nosuid"});
    return view;
  }

  Result<View<NetworkInterface>> interfaces() override {
    View<NetworkInterface> view;
    view.items.push_back({.index = 1,
                          .name = "lo",
                          .mac = "00:00:00:00:00:00",
                          .kind = "loopback",
                          .flags = 73,
                          .mtu = 65536,
                          .up = true,
                          .running = true,
                          .addresses = {{"127.0.0.1", 8}, {"::1", 128}},
                          .received_bytes = 1000,
                          .sent_bytes = 1000});
    view.items.push_back({.index = 2,
                          .name = "eth0",
                          .mac = "52:54:00:12:34:56",
                          .kind = "ether",
                          .flags = 4419,
                          .mtu = 1500,
                          .up = true,
                          .promiscuous = true,
                          .running = true,
                          .addresses = {{"10.0.2.15", 24}},
                          .received_bytes = 123456789,
                          .sent_bytes = 2345});
    return view;
  }

  Result<View<LogRecord>> kernel_log() override {
    View<LogRecord> view;
    view.items.push_back({.sequence = 0, .time_ns = 0, .level = 5, .text = "Linux version 6.1.0-fake-amd64"});
    view.items.push_back(
        {.sequence = 1, .time_ns = 1'234'567'890, .level = 3, .text = "oops: \x1b[31mred", .caller = 412});
    view.status.truncated = true;
    return view;
  }

  Result<BpfView> bpf() override {
    BpfView view;
    view.programs.push_back({.id = 7,
                             .type = "tracing",
                             .name = "watch_exec",
                             .tag = "0123456789abcdef",
                             .instructions = 42,
                             .jited_bytes = 300,
                             .map_ids = {3},
                             .attached_to = {"fentry do_execveat_common"},
                             .owners = {{700, 5, "agent"}}});
    view.maps.push_back(
        {.id = 3, .type = "ringbuf", .name = "events", .key_size = 0, .value_size = 0, .max_entries = 262144});
    view.links.push_back({.id = 9, .program_id = 7, .type = "tracing", .target = "do_execveat_common"});
    return view;
  }

  ViewStatus for_each_symbol(const std::function<bool(const KernelSymbol &)> &visitor) override {
    for (const KernelSymbol &symbol : symbols_)
      if (!visitor(symbol))
        break;
    return {};
  }
  std::optional<KernelSymbol> find_symbol(std::string_view name) override {
    for (const KernelSymbol &symbol : symbols_)
      if (symbol.name == name)
        return symbol;
    return std::nullopt;
  }
  std::optional<std::pair<KernelSymbol, std::uint64_t>> symbolize(Gva address) override {
    if (address < symbols_.front().address || address - symbols_.front().address > 0x1000)
      return std::nullopt;
    return std::pair(symbols_.front(), address - symbols_.front().address);
  }

  // One page is mapped, at the first symbol.
  std::size_t read_kernel(Gva address, std::span<std::byte> out) override {
    std::size_t done = 0;
    for (; done < out.size(); ++done) {
      const std::uint64_t offset = address.value + done - symbol_address;
      if (offset >= page_size)
        break;
      out[done] = static_cast<std::byte>(offset);
    }
    return done;
  }
  Result<std::size_t> read_process(std::int32_t pid, Gva address, std::span<std::byte> out) override {
    if (pid != 1)
      return fail(ErrorCode::not_found, "no process has pid " + std::to_string(pid));
    return read_kernel(Gva{address.value + symbol_address}, out);
  }

  Result<ProcessImage> process_image(std::int32_t) override { return fail(ErrorCode::unsupported, "not here"); }

  Result<CachedFile> recover_file(std::string_view path,
                                  const std::function<Result<void>(std::uint64_t, Bytes)> &sink) override {
    if (path != "/etc/passwd")
      return fail(ErrorCode::not_found, "no file " + std::string(path) + " is known to the guest's kernel");
    TRY(sink(0, bytes_of("root:x:0:0\n")));
    TRY(sink(16, bytes_of("end\n")));
    return CachedFile{
        .path = "/etc/passwd", .inode = 99, .size = 24, .cached_bytes = 15, .holes = {{11, 16}, {20, 24}}};
  }

  std::string crash_information() override { return "OSRELEASE=6.1.0-fake-amd64\n"; }

private:
  FakeWorld &world_;
  std::vector<KernelSymbol> symbols_ = {{Gva{symbol_address}, "_text", 'T', ""},
                                        {Gva{symbol_address + 0x100}, "init_task", 'D', ""},
                                        {Gva{0xffffffffc0200000}, "virtnet_open", 't', "virtio_net"}};
};

class FakeHost final : public Host {
public:
  explicit FakeHost(FakeWorld &world) : world_(world) {}

  Result<std::vector<VmListing>> vms() override { return world_.vms; }
  Result<std::vector<VmListing>> vm_processes() override { return world_.vms; }

  Result<Target> open(const std::string &name) override {
    for (const VmListing &vm : world_.vms)
      if (vm.identity.name == name || std::to_string(vm.identity.pid) == name) {
        Target target;
        target.identity = vm.identity;
        target.memory = std::make_unique<FakeMemory>();
        if (world_.has_run_control)
          target.run_control = std::make_unique<FakeRunControl>(world_);
        target.statistics = std::make_unique<FakeStatistics>();
        return target;
      }
    return fail(ErrorCode::not_found, "no VM and no dump is called " + name + "; lararium vms lists the VMs");
  }

  Result<Guest> attach(Target &, const GuestOptions &) override {
    ++world_.attach_calls;
    if (!world_.knows_system)
      return fail(ErrorCode::unknown_os, "no operating system that Lararium knows runs there");
    Guest guest;
    guest.system = std::make_unique<FakeSystem>(world_);
    guest.found_by = "the CR3 of vCPU 0";
    guest.profile_source = "guest memory";
    return guest;
  }

  Result<std::shared_ptr<const Profile>> profile(Target &, const GuestOptions &) override {
    return fail(ErrorCode::no_types, "the kernel carries no BTF");
  }

  Result<CoreSummary> write_machine_core(Target &, OperatingSystem *system, const std::string &,
                                         const CoreOptions &options) override {
    if (options.progress && !options.progress({4 << 20, 8 << 20}))
      return fail(ErrorCode::io, "stopped");
    return CoreSummary{8 << 20, system == nullptr ? 1U << 20 : 2U << 20, 0, {}};
  }
  Result<CoreSummary> write_process_core(OperatingSystem &, std::int32_t pid, const std::string &,
                                         const CoreOptions &) override {
    if (pid != 1)
      return fail(ErrorCode::not_found, "no process has pid " + std::to_string(pid));
    return CoreSummary{3 << 20, 2 << 20, 1 << 20, {}};
  }
  Result<void> export_isf(const Profile &, const std::string &) override { return {}; }
  Result<std::string> ask_guest_agent(const std::string &, std::string_view, const AskLimits &) override {
    return fail(ErrorCode::not_found, "no agent");
  }

private:
  FakeWorld &world_;
};

Process make_process(std::int32_t pid, std::int32_t ppid, std::string comm, std::vector<std::string> arguments) {
  Process process;
  process.pid = process.tgid = process.namespace_pid = pid;
  process.ppid = ppid;
  process.pgrp = process.session = pid;
  process.thread_count = 1;
  process.comm = std::move(comm);
  process.kernel_thread = arguments.empty();
  if (!arguments.empty()) {
    process.exe = arguments.front();
    process.rss_bytes = static_cast<std::uint64_t>(pid) * 40'000;
    process.virtual_bytes = process.rss_bytes * 4;
  }
  process.arguments = std::move(arguments);
  process.state = 'S';
  process.start_since_boot_ns = static_cast<std::uint64_t>(pid) * second;
  process.start_time_ns = boot_time + process.start_since_boot_ns;
  process.user_time_ns = static_cast<std::uint64_t>(pid) * 10'000'000;
  process.system_time_ns = 20'000'000;
  process.capabilities.effective = 0x1ffffffffff;
  process.namespaces = {.mnt = 4026531841, .pid = 4026531836, .net = 4026531840};
  process.cgroup = "/init.scope";
  process.task = Gva{0xffff888000000000 + static_cast<std::uint64_t>(pid) * 0x1000};
  return process;
}

} // namespace

FakeWorld::FakeWorld() {
  VmListing vm;
  vm.identity.name = "web";
  vm.identity.uuid = "2b5d2c8e-0000-4000-8000-000000000001";
  vm.identity.pid = 4711;
  vm.identity.accelerator = "kvm";
  vm.identity.memory_access = "mapped (memfd)";
  vm.machine = "pc-q35-7.2";
  vm.version = "7.2.22";
  vm.vcpus = 2;
  vm.ram_bytes = 512 << 20;
  vm.state = RunState::running;
  vm.readable = true;
  vms.push_back(std::move(vm));

  processes.push_back(make_process(1, 0, "init", {"/usr/sbin/init", "splash"}));
  processes.push_back(make_process(2, 0, "kthreadd", {}));
  processes.push_back(make_process(12, 2, "kworker/0:1", {}));
  processes.push_back(make_process(412, 1, "sshd", {"/usr/sbin/sshd", "-D"}));
  Process shell = make_process(500, 412, "sh", {"sh", "-c", "printf '\x1b[31m\xff'"});
  shell.tty = "pts/0";
  shell.state = 'R';
  shell.uid = shell.gid = {1000, 1000, 1000, 1000};
  shell.login_uid = 1000;
  processes.push_back(std::move(shell));
  Process miner = make_process(90'001, 412, "\xe6\x8c\x96\xe7\x9f\xbf", {"/tmp/\xe6\x8c\x96\xe7\x9f\xbf"});
  miner.exe_deleted = true;
  miner.container_id = "3f1c0b5a9d8e7f6a5b4c3d2e1f00112233445566778899aabbccddeeff001122";
  processes.push_back(std::move(miner));
}

std::unique_ptr<Host> make_fake_host(FakeWorld &world) { return std::make_unique<FakeHost>(world); }

} // namespace lararium::cli::test
