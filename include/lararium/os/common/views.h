// Views: what Lararium rebuilds of a guest's operating system, as plain data that knows neither the operating system's
// own structures nor how they are shown. Optional fields are empty where a kernel does not have, or we could not read,
// them.
#pragma once

#include "lararium/base/address.h"

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace lararium {

// How far a view can be trusted.
struct ViewStatus {
  bool paused = false;               // the guest stood still while we looked
  bool raced = false;                // the guest changed what we read while we read it, also after the retries
  bool truncated = false;            // a limit was reached; there may be more
  std::uint32_t retries = 0;         // walks that were started again because the guest changed underneath
  std::vector<std::string> warnings; // contradictions in guest memory, one sentence each, bounded in number

  static constexpr std::size_t warning_limit = 64;
  void warn(std::string sentence) {
    if (warnings.size() < warning_limit)
      warnings.push_back(std::move(sentence));
  }
};

template <class Item> struct View {
  std::vector<Item> items;
  ViewStatus status;
};

// Times are nanoseconds. Wall-clock times are since 1970 (UTC) by the guest's own clock.

struct SystemInfo {
  std::string os = "Linux";
  std::string release, version, machine, banner, build_id; // version: "#1 SMP ... "; build_id in hex
  std::string hostname, domain_name;
  std::optional<std::uint64_t> uptime_ns, boot_time_ns, current_time_ns;
  std::optional<std::uint32_t> cpus_online, cpus_possible, cpus_present;
  // bytes
  std::optional<std::uint64_t> memory_total, memory_free, memory_available, memory_cached, memory_buffers, swap_total,
      swap_free, shared_memory;
  std::optional<std::array<double, 3>> load; // over 1, 5 and 15 minutes
  std::optional<std::string> lockdown;       // "none", "integrity", "confidentiality"
  std::vector<std::string> security_modules; // active LSMs, in order, as /sys/kernel/security/lsm
  std::optional<bool> selinux_enforcing;
  std::optional<bool> apparmor_enabled;
  std::optional<std::uint64_t> taint;
  std::string taint_letters; // as the kernel prints them, "" when not tainted
  std::string command_line;  // of the kernel
  std::optional<std::uint64_t> process_count, thread_count;
  Gva kernel_base; // where KASLR put `_text`
  Gpa kernel_physical_base;
  int paging_levels = 4;
  std::optional<bool> page_table_isolation;
  ViewStatus status;
};

// What tells that a system runs, and how fast its pids are used up, at the cost of a few reads.
struct Pulse {
  std::optional<std::uint64_t> time_ns, uptime_ns; // of its last tick: an idle system ticks seldom, a paused one not
  std::optional<std::uint32_t> next_pid;           // where the search for the next free pid begins
  std::optional<std::uint32_t> pid_limit;          // where pids start anew from below
  std::optional<Gpa> last_ram_page;                // the highest page of RAM that the system knows of
};

struct UserIds {
  std::uint32_t real = 0, effective = 0, saved = 0, filesystem = 0;
};

struct Capabilities {
  std::uint64_t inheritable = 0, permitted = 0, effective = 0, bounding = 0, ambient = 0;
};

struct Namespaces { // inode numbers, as in /proc/PID/ns
  std::uint32_t mnt = 0, pid = 0, net = 0, uts = 0, ipc = 0, user = 0, cgroup = 0, time = 0;
};

struct Process {         // a thread group; or, where threads were asked for, one thread
  std::int32_t pid = 0;  // of the thread, in the initial pid namespace
  std::int32_t tgid = 0; // the process
  std::int32_t ppid = 0;
  std::int32_t pgrp = 0, session = 0;
  std::int32_t namespace_pid = 0; // as the process sees itself
  std::uint32_t thread_count = 0;
  bool kernel_thread = false;
  UserIds uid, gid;
  std::vector<std::uint32_t> groups; // supplementary, at most 64
  Capabilities capabilities;
  std::string comm;
  std::string exe; // path in the process' mount namespace; empty for kernel threads
  bool exe_deleted = false;
  std::vector<std::string> arguments; // argv as it stands in the process' memory now
  bool arguments_truncated = false;
  std::string current_directory;              // empty unless asked for
  char state = '?';                           // as ps prints it: R S D T t X Z P I
  std::optional<std::uint64_t> start_time_ns; // wall clock
  std::uint64_t start_since_boot_ns = 0;
  std::uint64_t user_time_ns = 0, system_time_ns = 0; // of the whole group for a process
  std::uint64_t rss_bytes = 0, virtual_bytes = 0;
  Namespaces namespaces;
  std::string cgroup;       // path in the cgroup 2 (else the first) hierarchy
  std::string container_id; // 64 hex digits or what the runtime names it; empty: none
  std::string tty;          // "pts/0", "ttyS0"; empty: none
  std::int32_t nice = 0;
  std::uint32_t cpu = 0; // that it ran on last
  std::uint32_t login_uid = UINT32_MAX;
  Gva task;   // its task_struct
  Gva memory; // its mm_struct, another one after each exec; null: it has none
};

struct MemoryRegion { // one line of /proc/PID/maps
  Gva begin, end;
  bool readable = false, writable = false, executable = false, shared = false;
  std::uint64_t file_offset = 0;
  std::uint32_t device_major = 0, device_minor = 0;
  std::uint64_t inode = 0;
  std::string path; // of the file, or "[heap]", "[stack]", "[vdso]", "[vvar]", "[anon:name]"
  bool deleted = false;
};

struct OpenFile {
  std::int32_t pid = 0;
  std::string comm;
  std::int32_t fd = 0;
  std::string path;        // "socket:[123]", "pipe:[5]", "anon_inode:[eventpoll]", "/memfd:name" as /proc shows them
  std::string type;        // "file", "directory", "character", "block", "fifo", "socket", "link", "anon"
  std::uint32_t flags = 0; // O_*
  std::string access;      // "r", "w", "rw", "path"
  std::uint64_t position = 0;
  std::uint64_t inode = 0;
  std::uint32_t device_major = 0, device_minor = 0;
  std::uint64_t size = 0;
  std::uint32_t special_major = 0, special_minor = 0; // what a device file stands for
  bool deleted = false;
  bool close_on_exec = false;
  Gva file;
};

struct KernelModule {
  std::string name;
  Gva base;               // of its text
  std::uint64_t size = 0; // all of its memory, as /proc/modules prints it
  std::int64_t references = 0;
  std::vector<std::string> used_by;
  std::string state; // "live", "loading", "unloading", "unformed"
  std::string version, source_version, taint;
  std::string arguments; // what it was loaded with, where the kernel keeps it
  Gva module;            // its struct module
  Gva init, exit;
};

struct SocketOwner {
  std::int32_t pid = 0;
  std::int32_t fd = 0;
  std::string comm;
};

struct Socket {
  std::string protocol; // "tcp", "tcp6", "udp", "udp6", "raw", "raw6", "icmp", "packet", "unix", "netlink", ...
  std::string type;     // "stream", "dgram", "raw", "seqpacket", ...
  std::string state;    // "LISTEN", "ESTABLISHED", ...; "UNCONNECTED" for datagrams
  std::string local_address,
      remote_address; // IP text; unix path ("@name" abstract); packet: interface name; netlink: family name
  std::uint16_t local_port = 0, remote_port = 0;
  std::uint32_t netlink_port = 0;          // netlink: port id; packet and raw: protocol number
  std::uint64_t inode = 0, peer_inode = 0; // peer: of unix pairs
  std::uint32_t uid = 0;
  std::uint32_t net_namespace = 0;
  std::uint64_t receive_queue = 0, send_queue = 0; // bytes
  std::string interface;                           // bound to, empty: any
  std::vector<SocketOwner> owners;                 // processes that hold it open; empty: kernel's own, or in flight
  Gva socket;                                      // its struct sock
};

struct Mount {
  std::uint32_t id = 0, parent_id = 0;
  std::uint32_t mount_namespace = 0;
  std::uint32_t device_major = 0, device_minor = 0;
  std::string root, mount_point, filesystem, source, options, super_options;
  std::string propagation; // "shared:1 master:2"; empty: private
};

struct InterfaceAddress {
  std::string address; // IP text
  std::uint8_t prefix_length = 0;
};

struct NetworkInterface {
  std::uint32_t index = 0;
  std::string name, mac, kind; // kind: "loopback", "ether", ...
  std::uint32_t net_namespace = 0;
  std::uint32_t flags = 0, mtu = 0;
  bool up = false, promiscuous = false, running = false;
  std::vector<InterfaceAddress> addresses;
  std::uint64_t received_bytes = 0, sent_bytes = 0, received_packets = 0, sent_packets = 0;
  std::string master; // bridge or bond it belongs to
  bool xdp = false;   // an XDP program is attached
  Gva device;
};

struct LogRecord { // of the kernel's log
  std::uint64_t sequence = 0;
  std::uint64_t time_ns = 0; // since boot
  std::uint8_t level = 0, facility = 0;
  std::string text;
  std::optional<std::uint32_t> caller; // thread id, or CPU with bit 31 set, where kept
};

struct BpfProgram {
  std::uint32_t id = 0;
  std::string type, name, tag;
  std::uint32_t uid = 0;
  std::optional<std::uint64_t> load_time_ns; // since boot
  std::uint64_t run_count = 0, run_time_ns = 0;
  std::uint32_t instructions = 0, jited_bytes = 0;
  std::vector<std::uint32_t> map_ids;
  std::vector<std::string> attached_to; // where, for people: "tracepoint sched:sched_process_exec", "cgroup /x"
  std::vector<SocketOwner> owners;      // processes that hold it open
  std::vector<std::string> pinned;
  bool listed = true; // in the kernel's table of programs; what is in use and not in it is hidden, or just ending
  Gva program;
};
struct BpfMap {
  std::uint32_t id = 0;
  std::string type, name;
  std::uint32_t key_size = 0, value_size = 0, max_entries = 0, flags = 0;
  std::vector<SocketOwner> owners;
  bool listed = true;
  Gva map;
};
struct BpfLink {
  std::uint32_t id = 0, program_id = 0;
  std::string type, target;
  std::vector<SocketOwner> owners;
  std::vector<std::string> pinned;
  bool listed = true;
  Gva link;
};
struct BpfView {
  std::vector<BpfProgram> programs;
  std::vector<BpfMap> maps;
  std::vector<BpfLink> links;
  ViewStatus status;
};

struct KernelSymbol {
  Gva address;
  std::string name;
  char type = '?';
  std::string module; // empty: the kernel itself
};

struct CachedFile { // a file's contents as the page cache holds them
  std::string path;
  std::uint64_t inode = 0, size = 0;
  std::uint64_t cached_bytes = 0; // how much of it was there
  struct Hole {
    std::uint64_t begin = 0, end = 0;
  };
  std::vector<Hole> holes; // parts that were not in memory, written as zeros
  bool holes_truncated = false;
};

} // namespace lararium
