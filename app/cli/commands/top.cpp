#include "../context.h"
#include "../process_json.h"
#include "../text.h"
#include "../top_sampler.h"
#include "../top_screen.h"
#include "lararium/base/unique_fd.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <csignal>
#include <fmt/format.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

namespace lararium::cli {
namespace {

using Clock = std::chrono::steady_clock;

// The alternate screen without echo and cursor. Signals that end or stop a program come as events in between, so that
// the terminal is always given back as it was.
class FullScreen {
public:
  FullScreen() {
    sigset_t set;
    sigemptyset(&set);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGWINCH})
      sigaddset(&set, signal);
    sigprocmask(SIG_BLOCK, &set, &mask_before_);
    signals_.reset(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
    has_input_ = ::tcgetattr(STDIN_FILENO, &terminal_before_) == 0;
    enter();
  }
  FullScreen(const FullScreen &) = delete;
  FullScreen &operator=(const FullScreen &) = delete;
  ~FullScreen() {
    leave();
    sigprocmask(SIG_SETMASK, &mask_before_, nullptr);
  }

  struct Event {
    char key = 0;   // 0: none
    int signal = 0; // 0: none
  };
  // Waits for a key, a signal or the deadline.
  [[nodiscard]] Event wait(Clock::time_point deadline) {
    for (;;) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
      std::array<pollfd, 2> descriptors = {{{signals_.get(), POLLIN, 0}, {has_input_ ? STDIN_FILENO : -1, POLLIN, 0}}};
      const int ready =
          ::poll(descriptors.data(), descriptors.size(), static_cast<int>(std::clamp<long>(left, 0, 3'600'000)));
      if (ready < 0 && errno != EINTR)
        return {.signal = SIGTERM};
      if (signalfd_siginfo info{}; ready > 0 && ::read(signals_.get(), &info, sizeof info) == sizeof info)
        return {.signal = static_cast<int>(info.ssi_signo)};
      if (ready > 0 && descriptors[1].revents != 0) {
        char key = 0;
        if (::read(STDIN_FILENO, &key, 1) == 1)
          return {.key = key};
        has_input_ = false; // closed: go on without keys
      }
      if (Clock::now() >= deadline)
        return {};
    }
  }
  void draw(std::string_view lines) {
    // Each line clears what is left of its predecessor: no flicker.
    std::string text = "\x1b[H";
    for (std::size_t at = 0; at < lines.size();) {
      const std::size_t end = std::min(lines.find('\n', at), lines.size());
      text += at == 0 ? "" : "\r\n";
      text += lines.substr(at, end - at);
      text += "\x1b[K";
      at = end + 1;
    }
    text += "\x1b[J";
    static_cast<void>(descriptor_sink(STDOUT_FILENO)(text));
  }
  // Ctrl-Z: gives the terminal back, stops, and takes it again when the shell continues us.
  void suspend() {
    leave();
    static_cast<void>(::raise(SIGSTOP));
    enter();
  }

private:
  void enter() {
    if (has_input_) {
      termios raw = terminal_before_;
      raw.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
      raw.c_cc[VMIN] = 1;
      raw.c_cc[VTIME] = 0;
      ::tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    }
    static_cast<void>(descriptor_sink(STDOUT_FILENO)("\x1b[?1049h\x1b[?25l\x1b[2J"));
  }
  void leave() {
    static_cast<void>(descriptor_sink(STDOUT_FILENO)("\x1b[?25h\x1b[?1049l"));
    if (has_input_)
      ::tcsetattr(STDIN_FILENO, TCSANOW, &terminal_before_);
  }

  UniqueFd signals_;
  sigset_t mask_before_{};
  termios terminal_before_{};
  bool has_input_ = false;
};

void write_sample(JsonWriter &json, const TopSample &sample) {
  json.begin_object().member("interval_seconds", sample.seconds);
  json.key("host").begin_object().member("cpu_percent", sample.host_cpu_percent);
  json.member("resident_bytes", sample.host_resident_bytes).end_object();
  json.key("vcpus").begin_array();
  for (const auto &vcpu : sample.vcpus)
    json.begin_object().member("index", vcpu.index).member("cpu_percent", vcpu.percent).end_object();
  json.end_array().key("disks").begin_array();
  for (const auto &disk : sample.disks)
    json.begin_object()
        .member("device", disk.device)
        .member("read_bytes_per_second", disk.read_bytes)
        .member("written_bytes_per_second", disk.written_bytes)
        .member("reads_per_second", disk.reads)
        .member("writes_per_second", disk.writes)
        .end_object();
  json.end_array().member("networks_from", sample.networks_from_guest ? "guest" : "vmm").key("networks").begin_array();
  for (const auto &network : sample.networks)
    json.begin_object()
        .member("device", network.device)
        .member("received_bytes_per_second", network.received_bytes)
        .member("sent_bytes_per_second", network.sent_bytes)
        .member("received_packets_per_second", network.received_packets)
        .member("sent_packets_per_second", network.sent_packets)
        .end_object();
  json.end_array().key("guest");
  if (const auto &system = sample.system) {
    json.begin_object();
    json.text_or_null("hostname", system->hostname);
    json.text_or_null("release", system->release);
    json.member("uptime_ns", system->uptime_ns).key("load");
    system->load
        ? json.begin_array().value((*system->load)[0]).value((*system->load)[1]).value((*system->load)[2]).end_array()
        : json.null();
    json.member("memory_total_bytes", system->memory_total)
        .member("memory_available_bytes", system->memory_available)
        .member("memory_cached_bytes", system->memory_cached)
        .member("swap_total_bytes", system->swap_total)
        .member("swap_free_bytes", system->swap_free)
        .end_object();
  } else {
    json.null();
  }
  json.key("processes").begin_array();
  for (const auto &[process, cpu_percent] : sample.tasks) {
    json.begin_object().member("pid", process.pid).member("ppid", process.ppid).member("comm", process.comm);
    json.text_or_null("cmdline", joined_arguments(process));
    json.member("uid", process.uid.effective).key("state").value(std::string_view(&process.state, 1));
    json.member("cpu_percent", cpu_percent)
        .member("cpu_time_ns", process.user_time_ns + process.system_time_ns)
        .member("rss_bytes", process.rss_bytes)
        .member("threads", process.thread_count)
        .end_object();
  }
  json.end_array().end_object();
}

class Top final : public Command {
public:
  void describe(Syntax &syntax) override {
    syntax.flag("-1,--once", "print one sample and end", once_);
    syntax.option("-i,--interval", "SECONDS", "how long a sample takes; 1 if left out", interval_);
    syntax.option("-s,--sort", "KEY", "order of the processes", sort_, {"cpu", "memory", "pid"});
    syntax.option("-n,--lines", "N", "with --once: only the first N processes", lines_);
  }

  Result<void> run(Context &context) override {
    if (!std::isfinite(interval_) || interval_ < 0.01 || interval_ > 3600)
      return fail(ErrorCode::usage, "an interval lies between 0.01 and 3600 seconds");
    if (context.options.pause)
      return fail(ErrorCode::usage, "top watches a guest that runs: leave out --pause");
    once_ = once_ || context.options.json;
    if (!once_ && !context.out.device().terminal)
      return fail(ErrorCode::usage, "standard output is no terminal: use --once");
    order_ = sort_ == "memory" ? TopOrder::memory : sort_ == "pid" ? TopOrder::pid : TopOrder::cpu;
    TRY_ASSIGN(Target *const target, context.target());
    if (target->identity.kind != TargetKind::live)
      return fail(ErrorCode::unsupported, "a dump stands still: top needs a VM that runs");
    // What the VMM counts can be shown without the operating system.
    OperatingSystem *system = nullptr;
    if (auto guest = context.guest())
      system = *guest;
    else
      context.note(fmt::format("the guest is not understood, so its processes are not shown: {}",
                               visible(guest.error().describe())));
    TopSampler sampler(*target, system);
    TRY(sampler.start());
    return once_ ? print_once(context, sampler) : watch(context, sampler);
  }

private:
  [[nodiscard]] Clock::duration interval() const {
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(interval_));
  }

  Result<void> print_once(Context &context, TopSampler &sampler) {
    const auto pause = std::chrono::duration_cast<std::chrono::nanoseconds>(interval()).count();
    const timespec time{static_cast<time_t>(pause / 1'000'000'000), static_cast<long>(pause % 1'000'000'000)};
    ::nanosleep(&time, nullptr);
    TRY_ASSIGN(TopSample sample, sampler.sample());
    sort_tasks(sample.tasks, order_);
    const std::size_t most = lines_ && *lines_ >= 0 ? static_cast<std::size_t>(*lines_) : SIZE_MAX;
    if (context.options.json) {
      JsonWriter json = context.begin_document("top", &sample.status);
      json.key("item");
      sample.tasks.resize(std::min(sample.tasks.size(), most));
      write_sample(json, sample);
      return context.end_document(json);
    }
    context.out.buffer() += render_top(sample, {context.vm_name(), order_, 0, most}, context.out.device());
    context.notes_of(sample.status);
    return {};
  }

  Result<void> watch(Context &context, TopSampler &sampler) {
    int ended_by = 0;
    Result<void> result;
    {
      FullScreen screen;
      TopSample sample;
      bool have_sample = false;
      // The first sample soon, so that the screen is not empty for a whole interval.
      auto next = Clock::now() + std::min<Clock::duration>(interval(), std::chrono::milliseconds(200));
      Device device = context.out.device();
      const auto draw = [&] {
        if (have_sample)
          screen.draw(render_top(sample, {context.vm_name(), order_, device.rows, SIZE_MAX}, device));
      };
      for (;;) {
        const FullScreen::Event event = screen.wait(next);
        if (event.signal == SIGTSTP) {
          screen.suspend();
          draw();
        } else if (event.signal == SIGWINCH) {
          const Device now = describe_device(STDOUT_FILENO);
          device.columns = now.columns;
          device.rows = now.rows;
          draw();
        } else if (event.signal != 0) {
          ended_by = event.signal;
          break;
        } else if (event.key == 'q') {
          break;
        } else if (event.key != 0) {
          if (event.key == 'c' || event.key == 'm' || event.key == 'p')
            order_ = event.key == 'c' ? TopOrder::cpu : event.key == 'm' ? TopOrder::memory : TopOrder::pid;
          draw();
        } else {
          next = Clock::now() + interval();
          auto fresh = sampler.sample();
          if (!fresh) {
            result = std::unexpected(fresh.error());
            break;
          }
          sample = std::move(*fresh);
          have_sample = true;
          draw();
        }
      }
    }
    if (ended_by != 0)
      static_cast<void>(::raise(ended_by)); // the terminal is as it was: end the way the signal wants it
    return result;
  }

  bool once_ = false;
  double interval_ = 1;
  std::string sort_ = "cpu";
  std::optional<std::int32_t> lines_;
  TopOrder order_ = TopOrder::cpu;
};

LARARIUM_COMMAND(Top, "top", machine, vm, "the VM's health, live: CPU, memory, disk, network, processes")

} // namespace
} // namespace lararium::cli
