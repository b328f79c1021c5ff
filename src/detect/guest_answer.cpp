#include "lararium/detect/lies.h"

#include <algorithm>
#include <charconv>
#include <fmt/format.h>

namespace lararium::detect {
namespace {

constexpr std::string_view mark = "@@lararium ";
constexpr std::size_t line_limit = 1 << 19; // of all parts
constexpr std::size_t name_limit = 256, word_limit = 32;

constexpr std::string_view script =
    R"script(# Lararium asks what this guest says of itself. This reads and prints, and changes nothing.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; export PATH
LC_ALL=C; export LC_ALL
section() { printf '@@lararium %s\n' "$1"; }
section begin
id -u
cat /proc/uptime
readlink /proc/self/ns/pid
readlink /proc/self/ns/net
section proc
for folder in /proc/[0-9]*; do
	name= uid= line=
	{ while read -r key value rest; do
		case $key in
		Name:) name="$value${rest:+ $rest}" ;;
		Uid:) uid=$value; break ;;
		esac
	done <"$folder/status"; read -r line <"$folder/stat"; } 2>/dev/null
	set -f; set -- ${line##*) }; set +f
	printf '%s %s %s %s\n' "${folder#/proc/}" "${uid:--}" "${20:--}" "$name"
done
if command -v ps >/dev/null; then
	section ps
	ps -eo pid,uid,comm 2>/dev/null || ps -o pid,comm 2>/dev/null || ps
fi
section modules
cat /proc/modules 2>/dev/null
if command -v lsmod >/dev/null; then
	section lsmod
	lsmod 2>/dev/null
fi
section sysfs
ls -di /sys/module/* 2>/dev/null
for table in tcp tcp6 udp udp6 raw raw6 packet; do
	section "net.$table"
	cat "/proc/net/$table" 2>/dev/null
done
if command -v ss >/dev/null; then
	section ss
	ss -antuwe 2>/dev/null
fi
section end
cat /proc/uptime
section done
)script";

std::string_view next_line(std::string_view &text) {
  const auto end = text.find('\n');
  std::string_view line = text.substr(0, end);
  text.remove_prefix(end == text.npos ? text.size() : end + 1);
  if (line.ends_with('\r'))
    line.remove_suffix(1);
  return line;
}

std::string_view next_word(std::string_view &line) {
  const auto begin = std::min(line.find_first_not_of(" \t"), line.size());
  line.remove_prefix(begin);
  const auto end = std::min(line.find_first_of(" \t"), line.size());
  const std::string_view word = line.substr(0, end);
  line.remove_prefix(end);
  return word;
}

std::vector<std::string_view> words_of(std::string_view line) {
  std::vector<std::string_view> words;
  while (words.size() < word_limit) {
    const auto word = next_word(line);
    if (word.empty())
      break;
    words.push_back(word);
  }
  return words;
}

template <class T> std::optional<T> number(std::string_view text, int base = 10) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  return error == std::errc() && end == text.data() + text.size() ? std::optional(value) : std::nullopt;
}

// "12345.67" seconds.
std::optional<std::uint64_t> uptime_ns(std::string_view line) {
  const auto word = next_word(line);
  const auto point = word.find('.');
  const auto seconds = number<std::uint64_t>(word.substr(0, point));
  const auto hundredths =
      point == word.npos ? std::optional<std::uint64_t>(0) : number<std::uint64_t>(word.substr(point + 1));
  constexpr std::uint64_t longest = 1ULL << 32; // 136 years
  if (!seconds || !hundredths || *seconds > longest || *hundredths > 99)
    return std::nullopt;
  return *seconds * 1'000'000'000 + *hundredths * 10'000'000;
}

// "pid:[4026531836]"
std::optional<std::uint64_t> namespace_number(std::string_view line) {
  const auto begin = line.find('['), end = line.find(']');
  return begin == line.npos || end == line.npos || end < begin
             ? std::nullopt
             : number<std::uint64_t>(line.substr(begin + 1, end - begin - 1));
}

struct Sections {
  std::map<std::string_view, std::vector<std::string_view>> lines;
  bool whole = false;
};

Result<Sections> split(std::string_view text) {
  Sections result;
  std::vector<std::string_view> *current = nullptr;
  std::size_t lines_left = line_limit;
  while (!text.empty()) {
    const std::string_view line = next_line(text);
    if (line.starts_with(mark)) {
      const std::string_view name = line.substr(mark.size());
      if (name == "begin") // of several answers, the last
        result.lines.clear();
      else if (result.lines.empty())
        continue; // no begin yet
      if (name == "done") {
        result.whole = true;
        current = nullptr;
        continue;
      }
      constexpr std::size_t section_limit = 64;
      if (result.lines.size() >= section_limit)
        return fail(ErrorCode::protocol, "the guest's answer has too many parts");
      result.whole = false;
      current = &result.lines[name];
      current->clear();
    } else if (current != nullptr && !line.empty()) {
      if (lines_left-- == 0)
        return fail(ErrorCode::protocol, fmt::format("the guest's answer has more than {} lines", line_limit));
      current->push_back(line);
    }
  }
  return result;
}

std::string short_name(std::string_view name) { return std::string(name.substr(0, name_limit)); }

// "pid uid start name", each "-" where it is not known.
std::vector<ToldProcess> listed_processes(const std::vector<std::string_view> &lines) {
  std::vector<ToldProcess> result;
  for (std::string_view line : lines) {
    ToldProcess process;
    const auto pid = number<std::int32_t>(next_word(line));
    if (!pid)
      continue;
    process.pid = *pid;
    process.uid = number<std::uint32_t>(next_word(line));
    process.start_ticks = number<std::uint64_t>(next_word(line));
    line.remove_prefix(std::min<std::size_t>(line.size(), 1));
    process.name = short_name(line);
    result.push_back(std::move(process));
  }
  return result;
}

// A table whose header says which column is the pid; the name is taken where it stands last.
std::vector<ToldProcess> ps_processes(const std::vector<std::string_view> &lines) {
  std::vector<ToldProcess> result;
  if (lines.empty())
    return result;
  const auto header = words_of(lines.front());
  if (header.empty())
    return result;
  const auto column = [&](std::string_view name) { return std::ranges::find(header, name) - header.begin(); };
  const std::ptrdiff_t pid_column = column("PID"), uid_column = column("UID");
  for (const std::string_view line : std::span(lines).subspan(1)) {
    std::string_view rest = line;
    ToldProcess process;
    for (std::ptrdiff_t i = 0; i + 1 < std::ssize(header); ++i) {
      const auto word = next_word(rest);
      if (i == pid_column)
        process.pid = number<std::int32_t>(word).value_or(0);
      if (i == uid_column)
        process.uid = number<std::uint32_t>(word);
    }
    const auto begin = std::min(rest.find_first_not_of(" \t"), rest.size());
    if (header.back() == "COMMAND" || header.back() == "COMM")
      process.name = short_name(rest.substr(begin));
    if (process.pid != 0)
      result.push_back(std::move(process));
  }
  return result;
}

std::vector<ToldModule> told_modules(const std::vector<std::string_view> &lines, bool header) {
  std::vector<ToldModule> result;
  for (std::string_view line : std::span(lines).subspan(header && !lines.empty() ? 1 : 0))
    if (const auto name = next_word(line); !name.empty())
      result.push_back({short_name(name)});
  return result;
}

// "1234 /sys/module/ext4"
std::map<std::string, std::uint64_t, std::less<>> module_inodes(const std::vector<std::string_view> &lines) {
  std::map<std::string, std::uint64_t, std::less<>> result;
  for (std::string_view line : lines) {
    const auto inode = number<std::uint64_t>(next_word(line));
    const auto path = next_word(line);
    if (inode && path.rfind('/') != path.npos)
      result.emplace(short_name(path.substr(path.rfind('/') + 1)), *inode);
  }
  return result;
}

std::uint16_t port_of(std::string_view address) {
  const auto colon = address.rfind(':');
  return colon == address.npos ? 0 : number<std::uint16_t>(address.substr(colon + 1), 16).value_or(0);
}

// Rows of /proc/net: the header's first word is "sl" or "sk".
std::vector<ToldSocket> told_sockets(const std::vector<std::string_view> &lines, bool packet) {
  std::vector<ToldSocket> result;
  const std::size_t inode_column = packet ? 8 : 9;
  for (const std::string_view line : lines) {
    const auto words = words_of(line);
    if (words.size() <= inode_column || words[0] == "sl" || words[0] == "sk")
      continue;
    const auto inode = number<std::uint64_t>(words[inode_column]);
    if (!inode || *inode == 0)
      continue;
    result.push_back(
        {*inode, packet ? std::uint16_t{0} : port_of(words[1]), packet ? std::uint16_t{0} : port_of(words[2])});
  }
  return result;
}

// "... ino:1234 sk:5 ..."
std::vector<ToldSocket> ss_sockets(const std::vector<std::string_view> &lines) {
  std::vector<ToldSocket> result;
  constexpr std::string_view key = " ino:";
  for (const std::string_view line : lines) {
    const auto begin = line.find(key);
    if (begin == line.npos)
      continue;
    const auto rest = line.substr(begin + key.size());
    if (const auto inode = number<std::uint64_t>(rest.substr(0, rest.find_first_not_of("0123456789"))); inode && *inode)
      result.push_back({*inode});
  }
  return result;
}

} // namespace

std::string_view answer_script() { return script; }

bool is_whole_answer(std::string_view text) {
  const auto sections = split(text);
  return sections && sections->whole;
}

Result<GuestAnswer> parse_answer(std::string_view text) {
  if (text.size() > answer_limit)
    return fail(ErrorCode::protocol, fmt::format("the guest's answer has more than {} bytes", answer_limit));
  TRY_ASSIGN(const Sections sections, split(text));
  if (!sections.whole)
    return fail(ErrorCode::protocol,
                "that is no whole answer of a guest: `lararium check --lies-script` prints what the "
                "guest has to run");
  const auto part = [&](std::string_view name) -> const std::vector<std::string_view> * {
    const auto found = sections.lines.find(name);
    return found == sections.lines.end() ? nullptr : &found->second;
  };
  const auto *begin = part("begin"), *end = part("end"), *proc = part("proc"), *modules = part("modules");
  if (begin == nullptr || end == nullptr || proc == nullptr || modules == nullptr || begin->size() < 4 || end->empty())
    return fail(ErrorCode::protocol, "the guest's answer lacks a part");
  GuestAnswer answer;
  const auto uid = number<std::uint32_t>((*begin)[0]);
  const auto begin_ns = uptime_ns((*begin)[1]), end_ns = uptime_ns((*end)[0]);
  const auto pid_namespace = namespace_number((*begin)[2]), net_namespace = namespace_number((*begin)[3]);
  if (!uid || !begin_ns || !end_ns || !pid_namespace || !net_namespace || *end_ns < *begin_ns)
    return fail(ErrorCode::protocol, "the guest's answer does not tell who made it, when and where");
  answer.uid = *uid;
  answer.begin_ns = *begin_ns;
  answer.end_ns = *end_ns;
  answer.pid_namespace = *pid_namespace;
  answer.net_namespace = *net_namespace;
  answer.processes = listed_processes(*proc);
  if (const auto *lines = part("ps"); lines != nullptr && !lines->empty())
    answer.ps = ps_processes(*lines);
  answer.modules = told_modules(*modules, false);
  if (const auto *lines = part("sysfs")) {
    const auto inodes = module_inodes(*lines);
    for (ToldModule &module : answer.modules)
      if (const auto inode = inodes.find(module.name); inode != inodes.end())
        module.inode = inode->second;
  }
  if (const auto *lines = part("lsmod"); lines != nullptr && !lines->empty())
    answer.lsmod = told_modules(*lines, true);
  for (const std::string_view table : {"tcp", "tcp6", "udp", "udp6", "raw", "raw6", "packet"})
    if (const auto *lines = part("net." + std::string(table)); lines != nullptr && !lines->empty())
      answer.sockets.emplace(table, told_sockets(*lines, table == "packet"));
  if (const auto *lines = part("ss"); lines != nullptr && !lines->empty())
    answer.ss = ss_sockets(*lines);
  return answer;
}

} // namespace lararium::detect
