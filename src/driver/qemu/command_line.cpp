#include "lararium/driver/qemu/command_line.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

namespace lararium::qemu {
namespace {

using Options = std::vector<std::pair<std::string, std::string>>;

constexpr std::uint64_t mebibyte = 1 << 20;

// Options of QEMU (2.x to 10.x) that take no argument; each other one takes the next.
constexpr auto flags = std::to_array<std::string_view>({"S",
                                                        "alt-grab",
                                                        "async-teardown",
                                                        "ctrl-grab",
                                                        "curses",
                                                        "daemonize",
                                                        "enable-fips",
                                                        "enable-hax",
                                                        "enable-kvm",
                                                        "full-screen",
                                                        "h",
                                                        "help",
                                                        "mem-prealloc",
                                                        "no-acpi",
                                                        "no-fd-bootchk",
                                                        "no-frame",
                                                        "no-hpet",
                                                        "no-kvm",
                                                        "no-kvm-irqchip",
                                                        "no-kvm-pit",
                                                        "no-kvm-pit-reinjection",
                                                        "no-quit",
                                                        "no-reboot",
                                                        "no-shutdown",
                                                        "no-user-config",
                                                        "nodefaults",
                                                        "nodefconfig",
                                                        "nographic",
                                                        "old-param",
                                                        "one-insn-per-tb",
                                                        "only-migratable",
                                                        "portrait",
                                                        "preconfig",
                                                        "s",
                                                        "sdl",
                                                        "semihosting",
                                                        "show-cursor",
                                                        "singlestep",
                                                        "snapshot",
                                                        "usb",
                                                        "version",
                                                        "win2k-hack",
                                                        "xen-attach",
                                                        "xen-domid-restrict"});

// Types of -object behind which the host cannot read guest memory.
constexpr auto confidential_types = std::to_array<std::string_view>({"sev-guest", "sev-snp-guest", "tdx-guest"});

std::string_view value_of(const Options &options, std::string_view key) {
  // QEMU lets the last one win.
  for (auto it = options.rbegin(); it != options.rend(); ++it)
    if (it->first == key)
      return it->second;
  return {};
}

bool has(const Options &options, std::string_view key) {
  return std::ranges::any_of(options, [&](const auto &option) { return option.first == key; });
}

bool is_on(std::string_view value) { return value == "on" || value == "yes" || value == "true" || value == "y"; }

template <class T> std::optional<T> parse_number(std::string_view text) {
  T number{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size())
    return std::nullopt;
  return number;
}

std::string lower(std::string_view text) {
  std::string result(text);
  for (char &c : result)
    if (c >= 'A' && c <= 'Z')
      c = static_cast<char>(c - 'A' + 'a');
  return result;
}

// A value of a JSON argument as the text it would have in the key=value form.
std::string text_of(const nlohmann::json &value) {
  if (value.is_string())
    return value.get<std::string>();
  if (value.is_boolean())
    return value.get<bool>() ? "on" : "off";
  if (value.is_number_unsigned())
    return std::to_string(value.get<std::uint64_t>());
  return {};
}

// -object, -device and others also take a JSON object, which is what libvirt passes. Nothing of interest is nested.
Options parse_options(std::string_view text, std::string_view implied) {
  if (!text.starts_with('{'))
    return split_options(text, implied);
  Options options;
  constexpr std::size_t limit = 64 << 10;
  if (text.size() > limit)
    return options;
  const auto parsed = nlohmann::json::parse(text, nullptr, false);
  if (!parsed.is_object())
    return options;
  for (const auto &[key, value] : parsed.items())
    options.emplace_back(key, text_of(value));
  return options;
}

struct Chardev {
  std::string id;
  std::optional<MonitorAddress> address;
};

std::optional<MonitorAddress> socket_address(const Options &options) {
  MonitorAddress address;
  if (const auto path = value_of(options, "path"); !path.empty()) {
    address.path = path;
    address.transport = is_on(value_of(options, "abstract")) ? MonitorAddress::Transport::unix_abstract
                                                             : MonitorAddress::Transport::unix_path;
    return address;
  }
  if (const auto number = parse_number<int>(value_of(options, "fd")); number && *number >= 0) {
    address.transport = MonitorAddress::Transport::descriptor;
    address.descriptor = *number;
    return address;
  }
  if (const auto port = parse_number<std::uint16_t>(value_of(options, "port"))) {
    address.transport = MonitorAddress::Transport::tcp;
    address.path = value_of(options, "host");
    address.port = *port;
    return address;
  }
  return std::nullopt;
}

bool listens(const Options &options) {
  const auto server = value_of(options, "server");
  return has(options, "server") && (server.empty() || is_on(server));
}

class Reader {
public:
  void take(std::string_view option, std::string_view value);
  CommandLine finish();

private:
  void take_object(const Options &options);
  void take_smp(const Options &options);
  void take_monitor_device(std::string_view device, MonitorProtocol protocol);
  void add_accelerators(std::string_view list);

  CommandLine line_;
  std::vector<Chardev> chardevs_;
  std::vector<std::pair<std::string, MonitorProtocol>> by_chardev_; // resolved at the end: order is free
  std::vector<std::pair<std::uint32_t, std::string>> numa_;
};

void Reader::add_accelerators(std::string_view list) {
  while (!list.empty()) {
    const auto part = list.substr(0, list.find(':'));
    if (!part.empty())
      line_.accelerators.emplace_back(part);
    list.remove_prefix(std::min(part.size() + 1, list.size()));
  }
}

void Reader::take_smp(const Options &options) {
  if (const auto count = parse_number<std::uint32_t>(value_of(options, "cpus"))) {
    line_.vcpus = *count;
    return;
  }
  // QEMU computes the product when only the topology is given; an absurd one is a lie.
  std::uint64_t product = 1;
  bool any = false;
  for (const std::string_view key : {"drawers", "books", "sockets", "dies", "clusters", "modules", "cores", "threads"})
    if (const auto count = parse_number<std::uint32_t>(value_of(options, key)); count && *count > 0) {
      any = true;
      product = std::min<std::uint64_t>(product * *count, 1 << 20);
    }
  if (!any)
    product = parse_number<std::uint32_t>(value_of(options, "maxcpus")).value_or(0);
  line_.vcpus = static_cast<std::uint32_t>(product);
}

void Reader::take_object(const Options &options) {
  const auto type = value_of(options, "qom-type");
  if (std::ranges::find(confidential_types, type) != confidential_types.end())
    line_.confidential = type;
  if (type == "secret")
    if (const auto file = value_of(options, "file"); file.ends_with("/master-key.aes"))
      line_.libvirt_folder = file.substr(0, file.rfind('/'));
  if (!type.starts_with("memory-backend-"))
    return;
  MemoryBackend backend;
  backend.kind = type;
  backend.id = value_of(options, "id");
  backend.size = parse_size(value_of(options, "size"), 1).value_or(0);
  // memory-backend-memfd and -shm share by default, the others do not.
  backend.shared = has(options, "share") ? is_on(value_of(options, "share"))
                                         : type == "memory-backend-memfd" || type == "memory-backend-shm";
  backend.path = value_of(options, "mem-path");
  line_.backends.push_back(std::move(backend));
}

// The device of -qmp and -monitor: "unix:PATH,server=on", "tcp:HOST:PORT,server", "chardev:ID".
void Reader::take_monitor_device(std::string_view device, MonitorProtocol protocol) {
  const auto rest_after = [&](std::string_view prefix) { return device.substr(prefix.size()); };
  if (device.starts_with("chardev:")) {
    by_chardev_.emplace_back(rest_after("chardev:"), protocol);
  } else if (device.starts_with("unix:")) {
    const auto options = split_options(rest_after("unix:"), "path");
    if (auto address = socket_address(options); address && listens(options)) {
      address->protocol = protocol;
      line_.monitors.push_back(*address);
    }
  } else if (device.starts_with("tcp:")) {
    const auto options = split_options(rest_after("tcp:"), "address");
    const auto where = value_of(options, "address");
    const auto colon = where.rfind(':');
    if (colon == std::string_view::npos || !listens(options))
      return;
    if (const auto port = parse_number<std::uint16_t>(where.substr(colon + 1)))
      line_.monitors.push_back({.protocol = protocol,
                                .transport = MonitorAddress::Transport::tcp,
                                .path = std::string(where.substr(0, colon)),
                                .port = *port});
  }
}

void Reader::take(std::string_view option, std::string_view value) {
  if (option == "name") {
    const auto options = split_options(value, "guest");
    if (const auto guest = value_of(options, "guest"); !guest.empty())
      line_.name = guest;
  } else if (option == "uuid") {
    line_.uuid = lower(value);
  } else if (option == "smbios") {
    const auto options = split_options(value, "file");
    if (value_of(options, "type") == "1" && line_.uuid.empty())
      line_.uuid = lower(value_of(options, "uuid"));
  } else if (option == "m") {
    const auto options = split_options(value, "size");
    if (const auto size = parse_size(value_of(options, "size"), mebibyte))
      line_.ram_size = *size;
    line_.ram_hotpluggable = has(options, "maxmem") && !value_of(options, "slots").empty();
    line_.recognised++;
  } else if (option == "smp") {
    take_smp(split_options(value, "cpus"));
    line_.recognised++;
  } else if (option == "M" || option == "machine") {
    const auto options = split_options(value, "type");
    if (const auto type = value_of(options, "type"); !type.empty())
      line_.machine = type;
    add_accelerators(value_of(options, "accel"));
    if (const auto backend = value_of(options, "memory-backend"); !backend.empty())
      line_.main_backend = backend;
    if (const auto limit = value_of(options, "max-ram-below-4g"); !limit.empty())
      line_.max_ram_below_4g = parse_size(limit, 1);
    if (!value_of(options, "confidential-guest-support").empty() && line_.confidential.empty())
      line_.confidential = "confidential-guest-support";
    line_.recognised++;
  } else if (option == "accel") {
    const auto options = split_options(value, "accel");
    line_.accelerators.emplace_back(value_of(options, "accel"));
    line_.recognised++;
  } else if (option == "enable-kvm") {
    line_.accelerators.emplace_back("kvm");
    line_.recognised++;
  } else if (option == "cpu") {
    line_.cpu_model = value;
  } else if (option == "object") {
    take_object(parse_options(value, "qom-type"));
  } else if (option == "numa") {
    const auto options = split_options(value, "type");
    if (value_of(options, "type") == "node")
      if (const auto backend = value_of(options, "memdev"); !backend.empty())
        numa_.emplace_back(
            parse_number<std::uint32_t>(value_of(options, "nodeid")).value_or(static_cast<std::uint32_t>(numa_.size())),
            backend);
  } else if (option == "device") {
    const auto options = parse_options(value, "driver");
    if (const auto backend = value_of(options, "memdev"); !backend.empty())
      (value_of(options, "driver").starts_with("ivshmem") ? line_.shared_backends : line_.dimm_backends)
          .emplace_back(backend);
  } else if (option == "qmp" || option == "qmp-pretty") {
    take_monitor_device(value, MonitorProtocol::qmp);
    line_.recognised++;
  } else if (option == "monitor") {
    take_monitor_device(value, MonitorProtocol::hmp);
    line_.recognised++;
  } else if (option == "mon") {
    const auto options = split_options(value, "chardev");
    by_chardev_.emplace_back(value_of(options, "chardev"),
                             value_of(options, "mode") == "control" ? MonitorProtocol::qmp : MonitorProtocol::hmp);
    line_.recognised++;
  } else if (option == "chardev") {
    const auto options = split_options(value, "backend");
    chardevs_.push_back(
        {std::string(value_of(options, "id")), listens(options) ? socket_address(options) : std::nullopt});
    line_.recognised++;
  } else if (option == "netdev" || option == "nic" || option == "net") {
    const auto options = split_options(value, "type");
    if (value_of(options, "type") == "user")
      line_.has_user_network = true;
  } else if (option == "readconfig") {
    line_.has_read_config = true;
  }
}

CommandLine Reader::finish() {
  for (const auto &[id, protocol] : by_chardev_)
    for (const auto &chardev : chardevs_)
      if (chardev.id == id && chardev.address) {
        auto address = *chardev.address;
        address.protocol = protocol;
        line_.monitors.push_back(std::move(address));
        break;
      }
  std::ranges::stable_sort(numa_, {}, &std::pair<std::uint32_t, std::string>::first);
  for (auto &[node, backend] : numa_)
    line_.numa_backends.push_back(std::move(backend));
  if (line_.ram_size == 0)
    for (const auto &backend : line_.backends)
      if (backend.id == line_.main_backend && !backend.id.empty())
        line_.ram_size = backend.size;
  // What QEMU can do more with comes first.
  std::ranges::stable_sort(line_.monitors, {}, &MonitorAddress::protocol);
  return std::move(line_);
}

} // namespace

std::vector<std::pair<std::string, std::string>> split_options(std::string_view text, std::string_view implied) {
  Options options;
  bool first = true;
  std::size_t at = 0;
  constexpr std::size_t limit = 1024;
  while (at < text.size() && options.size() < limit) {
    std::string part;
    while (at < text.size()) {
      if (text[at] == ',') {
        if (at + 1 >= text.size() || text[at + 1] != ',')
          break;
        at++;
      }
      part.push_back(text[at++]);
    }
    at++; // the comma
    const auto equals = part.find('=');
    if (equals != std::string::npos)
      options.emplace_back(part.substr(0, equals), part.substr(equals + 1));
    else if (first && !implied.empty())
      options.emplace_back(implied, part);
    else if (part.starts_with("no") && part.size() > 2) // "nowait": the old form of wait=off
      options.emplace_back(part.substr(2), "off");
    else
      options.emplace_back(part, "on");
    first = false;
  }
  return options;
}

std::optional<std::uint64_t> parse_size(std::string_view text, std::uint64_t unit) {
  if (text.empty())
    return std::nullopt;
  if (text.starts_with("0x")) {
    std::uint64_t number = 0;
    const auto [end, error] = std::from_chars(text.data() + 2, text.data() + text.size(), number, 16);
    if (error != std::errc() || end != text.data() + text.size())
      return std::nullopt;
    return number;
  }
  std::uint64_t multiplier = unit;
  if (const auto position = std::string_view("BKMGTPE").find(static_cast<char>(text.back() & ~0x20));
      position != std::string_view::npos) {
    multiplier = 1ULL << (10 * position);
    text.remove_suffix(1);
  }
  if (const auto whole = parse_number<std::uint64_t>(text)) {
    if (*whole > UINT64_MAX / multiplier)
      return std::nullopt;
    return *whole * multiplier;
  }
  // QEMU takes a fraction ("1.5G"), not an exponent.
  if (text.find_first_not_of("0123456789.") != std::string_view::npos)
    return std::nullopt;
  const auto fraction = parse_number<double>(text);
  if (!fraction || !std::isfinite(*fraction))
    return std::nullopt;
  const double bytes = *fraction * static_cast<double>(multiplier);
  if (bytes >= 0x1p63)
    return std::nullopt;
  return static_cast<std::uint64_t>(bytes);
}

CommandLine parse_command_line(std::string_view arguments) {
  arguments = arguments.substr(0, max_command_line);
  std::vector<std::string_view> words;
  while (!arguments.empty() && words.size() < max_arguments) {
    const auto word = arguments.substr(0, arguments.find('\0'));
    words.push_back(word);
    arguments.remove_prefix(std::min(word.size() + 1, arguments.size()));
  }
  Reader reader;
  for (std::size_t i = 1; i < words.size(); i++) {
    std::string_view option = words[i];
    if (!option.starts_with('-'))
      continue;
    option.remove_prefix(option.starts_with("--") ? 2 : 1);
    const bool is_flag = std::ranges::find(flags, option) != flags.end();
    const std::string_view value = is_flag || i + 1 >= words.size() ? std::string_view() : words[++i];
    reader.take(option, value);
  }
  return reader.finish();
}

} // namespace lararium::qemu
