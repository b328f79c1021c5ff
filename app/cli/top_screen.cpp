#include "top_screen.h"

#include "process_json.h"
#include "table.h"
#include "text.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <fmt/format.h>

namespace lararium::cli {
namespace {

constexpr std::size_t file_columns = 100; // where there is no terminal

Style style_of_load(double percent) {
  return percent >= 85 ? Style::red : percent >= 50 ? Style::yellow : Style::green;
}

class Lines {
public:
  explicit Lines(const Device &device) : device_(device), columns_(device.terminal ? device.columns : file_columns) {}

  [[nodiscard]] std::size_t columns() const { return columns_; }

  // A piece of the current line; cut at the edge.
  void add(std::string_view text, Style style = Style::plain) {
    const std::size_t room = columns_ - std::min(columns_, used_);
    text = text.substr(0, prefix_of_width(text, room));
    used_ += display_width(text);
    const bool coloured = device_.colour && style != Style::plain;
    line_ += coloured ? escape_of(style) : "";
    line_ += text;
    line_ += coloured ? style_end : "";
  }
  void pad_to(std::size_t column) {
    if (used_ < column)
      add(std::string(column - used_, ' '));
  }
  void bar(double percent, std::size_t width, Style style) {
    const auto filled =
        static_cast<std::size_t>(std::lround(std::clamp(percent, 0.0, 100.0) / 100 * static_cast<double>(width)));
    add("[", Style::dim);
    add(repeat(device_.utf8 ? "█" : "#", filled), style);
    add(repeat(device_.utf8 ? "░" : ".", width - filled), Style::dim);
    add("]", Style::dim);
  }
  void end() {
    line_.resize(line_.find_last_not_of(' ') + 1);
    text_ += line_;
    text_ += '\n';
    line_.clear();
    used_ = 0;
    ++count_;
  }
  [[nodiscard]] std::size_t count() const { return count_; }
  [[nodiscard]] std::string take() { return std::move(text_); }
  [[nodiscard]] bool utf8() const { return device_.utf8; }

private:
  static std::string repeat(std::string_view what, std::size_t times) {
    std::string out;
    while (times-- > 0)
      out += what;
    return out;
  }

  const Device &device_;
  std::size_t columns_;
  std::string text_, line_;
  std::size_t used_ = 0, count_ = 0;
};

std::string rate_text(double bytes) { return long_bytes(static_cast<std::uint64_t>(bytes)) + "/s"; }

constexpr std::size_t label_width = 8;

void label(Lines &lines, std::string_view text) {
  lines.add(text, Style::bold);
  lines.pad_to(label_width);
}

void add_header(Lines &lines, const TopSample &sample, const TopScreen &screen) {
  lines.add(visible(screen.vm_name), Style::bold);
  if (const auto &system = sample.system) {
    lines.add("  ");
    lines.add(visible(system->hostname), Style::cyan);
    lines.add(fmt::format("  {} {}", system->os, visible(system->release)));
    if (system->uptime_ns)
      lines.add(fmt::format("  up {}", duration(*system->uptime_ns)));
    if (system->load)
      lines.add(fmt::format("  load {:.2f} {:.2f} {:.2f}", (*system->load)[0], (*system->load)[1], (*system->load)[2]));
  }
  lines.end();
}

void add_vcpus(Lines &lines, const TopSample &sample) {
  if (sample.vcpus.empty())
    return;
  constexpr std::size_t bar_width = 20;
  constexpr std::size_t cell_width = bar_width + 15;
  constexpr std::size_t most_bars = 8;
  label(lines, "vCPU");
  if (sample.vcpus.size() <= most_bars) {
    std::size_t column = label_width;
    for (const TopSample::Vcpu &vcpu : sample.vcpus) {
      if (column + cell_width > std::max(lines.columns(), label_width + cell_width)) {
        lines.end();
        column = label_width;
      }
      lines.pad_to(column);
      lines.add(fmt::format("{:>2} ", vcpu.index), Style::dim);
      lines.bar(vcpu.percent, bar_width, style_of_load(vcpu.percent));
      lines.add(fmt::format(" {:3.0f} %", vcpu.percent));
      column += cell_width;
    }
    lines.end();
    return;
  }
  // Many: one character each.
  constexpr std::array<std::string_view, 9> steps = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  constexpr std::string_view ascii_steps = " .:-=+*#%";
  double sum = 0;
  std::size_t column = label_width;
  for (const TopSample::Vcpu &vcpu : sample.vcpus) {
    sum += vcpu.percent;
    const auto step = static_cast<std::size_t>(std::lround(std::clamp(vcpu.percent, 0.0, 100.0) / 12.5));
    if (column >= lines.columns()) {
      lines.end();
      lines.pad_to(label_width);
      column = label_width;
    }
    lines.add(lines.utf8() ? steps[step] : ascii_steps.substr(step, 1), style_of_load(vcpu.percent));
    ++column;
  }
  lines.add(fmt::format("  {:.0f} % of {}", sum, sample.vcpus.size() * 100));
  lines.end();
}

void add_memory(Lines &lines, const SystemInfo &system) {
  const auto gauge = [&](std::string_view name, std::uint64_t used, std::uint64_t total, std::string_view rest) {
    constexpr std::size_t bar_width = 20;
    const double percent = 100.0 * static_cast<double>(used) / static_cast<double>(total);
    label(lines, name);
    lines.add("   ");
    lines.bar(percent, bar_width, style_of_load(percent));
    lines.add(fmt::format(" {:3.0f} %  {} of {}{}", percent, long_bytes(used), long_bytes(total), rest));
    lines.end();
  };
  if (const std::uint64_t total = system.memory_total.value_or(0); total > 0) {
    const std::uint64_t available = std::min(total, system.memory_available.value_or(system.memory_free.value_or(0)));
    gauge("memory", total - available, total,
          system.memory_cached ? fmt::format(", {} cached", long_bytes(*system.memory_cached)) : "");
  }
  if (const std::uint64_t total = system.swap_total.value_or(0); total > 0)
    gauge("swap", total - std::min(total, system.swap_free.value_or(0)), total, "");
}

void add_devices(Lines &lines, const TopSample &sample) {
  constexpr std::size_t most = 4; // the busiest of each kind
  auto disks = sample.disks;
  std::erase_if(disks, [](const auto &disk) { return !disk.used; });
  std::ranges::stable_sort(disks, std::greater{},
                           [](const auto &disk) { return disk.read_bytes + disk.written_bytes; });
  for (std::size_t i = 0; i < std::min(most, disks.size()); ++i) {
    label(lines, i == 0 ? "disk" : "");
    lines.add(fmt::format("   {:<12}  read {:>11} {:>6.0f}/s   write {:>11} {:>6.0f}/s", visible(disks[i].device),
                          rate_text(disks[i].read_bytes), disks[i].reads, rate_text(disks[i].written_bytes),
                          disks[i].writes));
    lines.end();
  }
  auto networks = sample.networks;
  std::ranges::stable_sort(networks, std::greater{},
                           [](const auto &net) { return net.received_bytes + net.sent_bytes; });
  for (std::size_t i = 0; i < std::min(most, networks.size()); ++i) {
    label(lines, i == 0 ? "network" : "");
    lines.add(fmt::format("   {:<12}    in {:>11} {:>6.0f}/s     out {:>11} {:>6.0f}/s{}", visible(networks[i].device),
                          rate_text(networks[i].received_bytes), networks[i].received_packets,
                          rate_text(networks[i].sent_bytes), networks[i].sent_packets,
                          sample.networks_from_guest ? "  (the guest says)" : ""));
    lines.end();
  }
}

void add_totals(Lines &lines, const TopSample &sample) {
  if (sample.host_cpu_percent) {
    label(lines, "host");
    lines.add(fmt::format("   QEMU uses {:.0f} % CPU, {} of RAM", *sample.host_cpu_percent,
                          long_bytes(sample.host_resident_bytes)));
    lines.end();
  }
  if (sample.system) {
    const auto in_state = [&](char state) {
      return std::ranges::count(sample.tasks, state, [](const auto &task) { return task.process.state; });
    };
    label(lines, "guest");
    lines.add(fmt::format("   {} processes, {} running", sample.tasks.size(), in_state('R')));
    if (const auto blocked = in_state('D'); blocked > 0)
      lines.add(fmt::format(", {} waiting for a device", blocked), Style::yellow);
    if (const auto zombies = in_state('Z'); zombies > 0)
      lines.add(fmt::format(", {} zombies", zombies), Style::yellow);
    if (sample.status.raced)
      lines.add("; the list changed while it was read", Style::dim);
    lines.end();
  }
}

} // namespace

std::string render_top(const TopSample &sample, const TopScreen &screen, const Device &device) {
  Lines lines(device);
  add_header(lines, sample, screen);
  add_vcpus(lines, sample);
  if (sample.system)
    add_memory(lines, *sample.system);
  add_devices(lines, sample);
  add_totals(lines, sample);
  const std::size_t above = lines.count() + 2; // an empty line and the table's heading
  std::string text = lines.take();
  if (sample.system && (screen.rows == 0 || screen.rows > above)) {
    Table table{{"PID", Align::right}, {"UID", Align::right},  {"S"},      {"CPU %", Align::right},
                {"RSS", Align::right}, {"TIME", Align::right}, {"COMMAND"}};
    auto tasks = sample.tasks;
    sort_tasks(tasks, screen.order);
    const std::size_t room = screen.rows == 0 ? tasks.size() : screen.rows - above;
    const std::size_t shown = std::min({tasks.size(), room, screen.tasks});
    for (std::size_t i = 0; i < shown; ++i) {
      const Process &process = tasks[i].process;
      const Style style = process.kernel_thread ? Style::dim : Style::plain;
      table.number(std::int64_t{process.pid}, style).number(std::uint64_t{process.uid.effective}, style);
      table.guest({&process.state, 1}, process.state == 'R' ? Style::green : style);
      table.text(fmt::format("{:.1f}", tasks[i].cpu_percent),
                 tasks[i].cpu_percent >= 50 ? style_of_load(tasks[i].cpu_percent) : style);
      table.text(short_bytes(process.rss_bytes), style);
      table.text(cpu_time(process.user_time_ns + process.system_time_ns), style);
      append_command(table.begin_cell(), process, false);
      table.end_cell(style);
    }
    Output out(
        [&](std::string_view written) -> Result<void> {
          text += written;
          return {};
        },
        device);
    text += '\n';
    static_cast<void>(table.print(out)); // this sink cannot fail
    static_cast<void>(out.flush());
  }
  if (screen.rows > 0) { // a screen too low even for the heading
    std::size_t end = 0;
    for (std::size_t row = 0; row < screen.rows && end < text.size(); ++row)
      end = text.find('\n', end) + 1;
    text.resize(end);
  }
  return text;
}

} // namespace lararium::cli
