// What /proc tells of a QEMU process, and a hold on that process which a reused pid cannot deceive.
#pragma once

#include "lararium/base/result.h"
#include "lararium/base/unique_fd.h"

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <sys/types.h>
#include <utility>
#include <vector>

namespace lararium::qemu {

// One line of /proc/PID/maps.
struct HostMapping {
  Hva begin, end;
  bool readable = false, writable = false, executable = false, shared = false;
  std::uint64_t offset = 0; // in the file
  std::uint32_t device_major = 0, device_minor = 0;
  std::uint64_t inode = 0; // 0: no file
  std::string path;        // "/memfd:memory-backend-memfd (deleted)", "[heap]", or empty

  [[nodiscard]] std::uint64_t size() const { return end - begin; }
};

struct ProcessStat {
  std::string name;
  char state = '?';
  std::uint64_t start_ticks = 0; // since the host's boot
};

// One line of /proc/PID/net/unix. A server's end of a connection is listed under the path that the server listens at,
// from connect() on: as waiting until the server accepts it, as connected after.
struct UnixSocket {
  std::uint64_t inode = 0;
  bool listening = false;
  bool waiting = false;
  bool connected = false;
  std::string path; // '@' in front of an abstract one
};

struct InterfaceCounters {
  std::string name;
  std::uint64_t received_bytes = 0, received_packets = 0, sent_bytes = 0, sent_packets = 0; // as the host sees it
};

// Pure parsers of the kernel's text; lines that are not of the form are left out, and the numbers of lines are bounded.
[[nodiscard]] std::vector<HostMapping> parse_maps(std::string_view text);
[[nodiscard]] std::optional<ProcessStat> parse_stat(std::string_view text);
[[nodiscard]] std::vector<UnixSocket> parse_unix_sockets(std::string_view text);
[[nodiscard]] std::vector<InterfaceCounters> parse_net_dev(std::string_view text);

// Neighbouring lines that continue each other in memory and file become one: the kernel splits a mapping wherever its
// flags differ, as NUMA policies, mlock or userfaultfd make them.
[[nodiscard]] std::vector<HostMapping> join_mappings(std::span<const HostMapping> mappings);

// The numbered entries of a folder of /proc (processes, threads, descriptors), at most `limit`.
[[nodiscard]] Result<std::vector<int>> numbered_entries(const std::string &folder, std::size_t limit);
// Reads a small file to its end; what is longer than `limit` is an error.
[[nodiscard]] Result<std::string> read_small_file(const std::string &path, std::size_t limit);
// The target of a symbolic link (of /proc, where stat() tells no length).
[[nodiscard]] Result<std::string> read_link(const std::string &path);

// An open descriptor of a process: its number and what it refers to ("socket:[123]", "anon_inode:kvm-vm").
struct OpenDescriptor {
  int number = -1;
  std::string target;
};

// One process, from when it was opened. A pid can be used again after the process ended: paths under /proc are only
// believed while alive() holds.
class Process {
public:
  // `start_ticks`: when not 0, the process must have started then, or it is `gone`.
  [[nodiscard]] static Result<Process> open(pid_t pid, std::uint64_t start_ticks = 0);

  [[nodiscard]] pid_t pid() const { return pid_; }
  [[nodiscard]] int pidfd() const { return pidfd_.get(); }
  [[nodiscard]] bool alive() const;
  [[nodiscard]] std::string path(std::string_view below) const; // "/proc/PID/" + below
  [[nodiscard]] Result<std::vector<HostMapping>> mappings() const;
  [[nodiscard]] Result<std::vector<OpenDescriptor>> descriptors() const;
  // The threads with their names; empty where they cannot be listed.
  [[nodiscard]] std::vector<std::pair<pid_t, std::string>> threads() const;
  // `error`, or `gone` where the process ended meanwhile, which then is the cause.
  [[nodiscard]] std::unexpected<Error> explain(Error error) const;

private:
  Process(pid_t pid, UniqueFd pidfd) : pid_(pid), pidfd_(std::move(pidfd)) {}
  pid_t pid_ = 0;
  UniqueFd pidfd_;
};

} // namespace lararium::qemu
