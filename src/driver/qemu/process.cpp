#include "lararium/driver/qemu/process.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <memory>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace lararium::qemu {
namespace {

constexpr std::size_t max_lines = 1 << 20; // vm.max_map_count is 65530 by default; some raise it
constexpr std::size_t max_text = 128 << 20;
constexpr std::size_t max_descriptors = 1 << 16;

// Takes the line up to the next newline off the text.
std::string_view next_line(std::string_view &text) {
  const auto line = text.substr(0, text.find('\n'));
  text.remove_prefix(std::min(line.size() + 1, text.size()));
  return line;
}

// Takes the word up to the next blank off the line.
std::string_view next_word(std::string_view &line) {
  line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
  const auto word = line.substr(0, line.find_first_of(" \t"));
  line.remove_prefix(word.size());
  return word;
}

template <class T> bool parse(std::string_view text, T &number, int base = 10) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, base);
  return error == std::errc() && end == text.data() + text.size();
}

// "a-b" or "a:b", both hexadecimal.
template <class T> bool parse_pair(std::string_view text, char separator, T &first, T &second) {
  const auto at = text.find(separator);
  return at != std::string_view::npos && parse(text.substr(0, at), first, 16) && parse(text.substr(at + 1), second, 16);
}

} // namespace

std::vector<HostMapping> parse_maps(std::string_view text) {
  std::vector<HostMapping> result;
  while (!text.empty() && result.size() < max_lines) {
    auto line = next_line(text);
    HostMapping mapping;
    const auto range = next_word(line), flags = next_word(line), offset = next_word(line), device = next_word(line),
               inode = next_word(line);
    if (!parse_pair(range, '-', mapping.begin.value, mapping.end.value) || mapping.begin >= mapping.end ||
        flags.size() != 4 || !parse(offset, mapping.offset, 16) ||
        !parse_pair(device, ':', mapping.device_major, mapping.device_minor) || !parse(inode, mapping.inode))
      continue;
    mapping.readable = flags[0] == 'r';
    mapping.writable = flags[1] == 'w';
    mapping.executable = flags[2] == 'x';
    mapping.shared = flags[3] == 's';
    line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
    mapping.path = line;
    result.push_back(std::move(mapping));
  }
  return result;
}

std::optional<ProcessStat> parse_stat(std::string_view text) {
  // The name is in parentheses and may itself hold parentheses and blanks: the last one closes it.
  const auto open = text.find('('), close = text.rfind(')');
  if (open == std::string_view::npos || close == std::string_view::npos || close < open)
    return std::nullopt;
  ProcessStat stat;
  stat.name = text.substr(open + 1, close - open - 1);
  auto rest = text.substr(close + 1);
  // proc(5): the state is field 3, the start time field 22.
  constexpr int state_field = 3, start_field = 22;
  for (int field = state_field; field <= start_field; field++) {
    const auto word = next_word(rest);
    if (word.empty())
      return std::nullopt;
    if (field == state_field)
      stat.state = word[0];
    else if (field == start_field && !parse(word, stat.start_ticks))
      return std::nullopt;
  }
  return stat;
}

std::vector<UnixSocket> parse_unix_sockets(std::string_view text) {
  std::vector<UnixSocket> result;
  next_line(text); // the heading
  while (!text.empty() && result.size() < max_lines) {
    auto line = next_line(text);
    next_word(line); // address
    next_word(line); // reference count
    next_word(line); // protocol
    const auto flags = next_word(line);
    next_word(line); // type
    const auto state = next_word(line), inode = next_word(line);
    UnixSocket socket;
    std::uint32_t flag_bits = 0;
    if (!parse(flags, flag_bits, 16) || !parse(inode, socket.inode))
      continue;
    constexpr std::uint32_t accepts_connections = 1 << 16; // __SO_ACCEPTCON
    socket.listening = (flag_bits & accepts_connections) != 0;
    socket.waiting = state == "02"; // SS_CONNECTING, which the kernel shows while no process has it
    socket.connected = state == "03";
    line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
    socket.path = line;
    result.push_back(std::move(socket));
  }
  return result;
}

std::vector<InterfaceCounters> parse_net_dev(std::string_view text) {
  std::vector<InterfaceCounters> result;
  next_line(text);
  next_line(text);
  while (!text.empty() && result.size() < max_lines) {
    auto line = next_line(text);
    const auto colon = line.find(':');
    if (colon == std::string_view::npos)
      continue;
    InterfaceCounters counters;
    auto name = line.substr(0, colon);
    counters.name = next_word(name);
    line.remove_prefix(colon + 1);
    std::array<std::uint64_t, 10> columns{};
    if (!std::ranges::all_of(columns, [&](auto &column) { return parse(next_word(line), column); }))
      continue;
    counters.received_bytes = columns[0];
    counters.received_packets = columns[1];
    counters.sent_bytes = columns[8];
    counters.sent_packets = columns[9];
    result.push_back(std::move(counters));
  }
  return result;
}

std::vector<HostMapping> join_mappings(std::span<const HostMapping> mappings) {
  std::vector<HostMapping> result;
  for (const auto &mapping : mappings) {
    if (!result.empty()) {
      auto &last = result.back();
      const bool same_file = last.device_major == mapping.device_major && last.device_minor == mapping.device_minor &&
                             last.inode == mapping.inode && last.path == mapping.path &&
                             (mapping.inode == 0 || last.offset + last.size() == mapping.offset);
      if (last.end == mapping.begin && last.readable == mapping.readable && last.writable == mapping.writable &&
          last.executable == mapping.executable && last.shared == mapping.shared && same_file) {
        last.end = mapping.end;
        continue;
      }
    }
    result.push_back(mapping);
  }
  return result;
}

Result<std::vector<int>> numbered_entries(const std::string &folder, std::size_t limit) {
  const std::unique_ptr<DIR, int (*)(DIR *)> entries(::opendir(folder.c_str()), ::closedir);
  if (!entries)
    return fail_errno(fmt::format("cannot list {}", folder), errno);
  std::vector<int> result;
  while (result.size() < limit) {
    const auto *entry = ::readdir(entries.get());
    if (entry == nullptr)
      break;
    if (int number = 0; parse(std::string_view(entry->d_name), number))
      result.push_back(number);
  }
  return result;
}

Result<std::string> read_small_file(const std::string &path, std::size_t limit) {
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
  if (!file)
    return fail_errno(fmt::format("cannot open {}", path), errno);
  std::string text;
  std::size_t used = 0;
  while (true) {
    // /proc hands out at most a page at a time for some files; the space is doubled as it fills.
    if (text.size() - used < page_size)
      text.resize(std::max<std::size_t>(text.size() * 2, 4 * page_size));
    const auto count = ::read(file.get(), text.data() + used, text.size() - used);
    if (count < 0 && errno == EINTR)
      continue;
    if (count < 0)
      return fail_errno(fmt::format("cannot read {}", path), errno);
    used += static_cast<std::size_t>(count);
    if (used > limit)
      return fail(ErrorCode::corrupt, fmt::format("{} is longer than {} bytes", path, limit));
    if (count == 0)
      break;
  }
  text.resize(used);
  return text;
}

Result<std::string> read_link(const std::string &path) {
  std::array<char, 4096> target;
  const auto length = ::readlink(path.c_str(), target.data(), target.size());
  if (length < 0)
    return fail_errno(fmt::format("cannot read {}", path), errno);
  return std::string(target.data(), static_cast<std::size_t>(length));
}

Result<Process> Process::open(pid_t pid, std::uint64_t start_ticks) {
  UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd)
    return fail_errno(fmt::format("process {}", pid), errno);
  Process process(pid, std::move(pidfd));
  if (start_ticks == 0)
    return process;
  // The pidfd is open: if the start time read now is the right one and the process still lives after, both are of it.
  const auto text = read_small_file(process.path("stat"), page_size);
  const auto stat = text ? parse_stat(*text) : std::nullopt;
  if (!stat || stat->start_ticks != start_ticks || !process.alive())
    return fail(ErrorCode::gone, fmt::format("the VM with pid {} has ended", pid));
  return process;
}

bool Process::alive() const {
  pollfd wait{pidfd_.get(), POLLIN, 0};
  return ::poll(&wait, 1, 0) == 0;
}

std::string Process::path(std::string_view below) const { return fmt::format("/proc/{}/{}", pid_, below); }

Result<std::vector<HostMapping>> Process::mappings() const {
  const auto text = read_small_file(path("maps"), max_text);
  if (!text)
    return explain(text.error());
  // A process that ended has no mappings, but its file may still be there.
  if (!alive())
    return explain({});
  return parse_maps(*text);
}

Result<std::vector<OpenDescriptor>> Process::descriptors() const {
  const auto numbers = numbered_entries(path("fd"), max_descriptors);
  if (!numbers)
    return explain(numbers.error());
  std::vector<OpenDescriptor> result;
  for (const int number : *numbers)
    if (auto target = read_link(path(fmt::format("fd/{}", number)))) // else closed meanwhile
      result.push_back({number, std::move(*target)});
  return result;
}

std::vector<std::pair<pid_t, std::string>> Process::threads() const {
  std::vector<std::pair<pid_t, std::string>> result;
  const auto numbers = numbered_entries(path("task"), max_descriptors);
  if (!numbers)
    return result;
  for (const int thread : *numbers)
    if (auto name = read_small_file(path(fmt::format("task/{}/comm", thread)), page_size))
      result.emplace_back(thread, name->substr(0, name->find('\n')));
  return result;
}

std::unexpected<Error> Process::explain(Error error) const {
  if (alive())
    return std::unexpected(std::move(error));
  return fail(ErrorCode::gone, fmt::format("the VM with pid {} has ended", pid_));
}

} // namespace lararium::qemu
