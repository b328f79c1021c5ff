// What a QEMU's argument vector says of its VM. The arguments are foreign text: the parser takes anything, and what it
// does not understand is left at its default. See `man qemu-system` and QEMU's docs/qdev-device-use.txt for the forms.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lararium::qemu {

enum class MonitorProtocol : std::uint8_t { qmp, hmp };

// Where a monitor listens, as the command line puts it: paths are QEMU's own (its mount namespace, its folder).
struct MonitorAddress {
  enum class Transport : std::uint8_t { unix_path, unix_abstract, tcp, descriptor };
  MonitorProtocol protocol = MonitorProtocol::qmp;
  Transport transport = Transport::unix_path;
  std::string path; // or the host's name for tcp
  std::uint16_t port = 0;
  int descriptor = -1; // a listening socket that QEMU inherited: libvirt's way

  bool operator==(const MonitorAddress &) const = default;
};

struct MemoryBackend {
  std::string kind; // "memory-backend-memfd"
  std::string id;
  std::uint64_t size = 0;
  bool shared = false;
  std::string path; // of memory-backend-file
};

struct CommandLine {
  std::string name;
  std::string uuid;                      // lower case
  std::string machine;                   // "pc-q35-7.2"; empty: QEMU's default
  std::vector<std::string> accelerators; // in the order of preference; empty: the default
  std::string cpu_model;
  std::uint64_t ram_size = 0;    // bytes of RAM at the start, without what is hotplugged; 0 where it is not said
  bool ram_hotpluggable = false; // there are slots, and room
  std::uint32_t vcpus = 0;       // 0 where it is not said
  std::optional<std::uint64_t> max_ram_below_4g;
  std::string main_backend; // id of the machine's memory-backend
  std::vector<MemoryBackend> backends;
  std::vector<std::string> numa_backends;   // ids, in node order
  std::vector<std::string> dimm_backends;   // ids that a pc-dimm or the like uses
  std::vector<std::string> shared_backends; // ids that an ivshmem device uses: memory of the guest's, but not its RAM
  std::vector<MonitorAddress> monitors;
  std::string confidential;      // object type that keeps guest memory from the host ("sev-guest"), or empty
  bool has_read_config = false;  // -readconfig: a file that is not read may say more
  bool has_user_network = false; // a network that has no host interface
  std::string libvirt_folder;    // ".../domain-1-name", where one shows
  unsigned recognised = 0;       // options that only QEMU has in this form: is this a QEMU at all
};

inline constexpr std::size_t max_command_line = 1 << 20;
inline constexpr std::size_t max_arguments = 16384;

// Takes the content of /proc/PID/cmdline: arguments that end with NUL each.
[[nodiscard]] CommandLine parse_command_line(std::string_view arguments);

// Pure parts, open for tests.

// "a,b=c,d=e,,f": the first part without a key gets `implied`; a doubled comma is one comma of the value.
[[nodiscard]] std::vector<std::pair<std::string, std::string>> split_options(std::string_view text,
                                                                             std::string_view implied);
// "512", "1.5G", "2048M": bytes; a number alone counts in `unit`. Nothing when it is no size or does not fit.
[[nodiscard]] std::optional<std::uint64_t> parse_size(std::string_view text, std::uint64_t unit);

} // namespace lararium::qemu
