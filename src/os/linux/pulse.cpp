#include "pulse.h"

#include "lararium/os/linux/tasks.h"
#include "lararium/os/linux/xarray.h"

#include <array>

namespace lararium::linux_guest {
namespace {

constexpr std::uint32_t pid_limit = 4 << 20; // PID_MAX_LIMIT on 64 bits

struct PulseLayout {
  std::optional<Gva> banner, pid_namespace, pid_max, max_pfn;
  std::optional<FieldLocation> seconds, nanoseconds, shift, real, boot; // of the timekeeper
  std::optional<FieldLocation> idr, idr_next, namespace_pid_max;
  std::optional<FieldLocation> pid_tasks, pid_links, pid, start; // of struct pid and of a task
  mutable std::optional<Gva> timekeeper;                         // found once the clock has been set

  static Result<PulseLayout> resolve(const Kernel &kernel) {
    const LayoutResolver layout(kernel.types());
    PulseLayout f;
    f.banner = kernel.symbol("linux_banner");
    f.pid_namespace = kernel.symbol("init_pid_ns");
    f.pid_max = kernel.symbol("pid_max");
    f.max_pfn = kernel.symbol("max_pfn");
    f.seconds = layout.optional("timekeeper", "xtime_sec");
    f.nanoseconds = layout.optional("timekeeper", "tkr_mono.xtime_nsec");
    f.shift = layout.optional("timekeeper", "tkr_mono.shift");
    f.real = layout.optional("timekeeper", "offs_real");
    f.boot = layout.optional("timekeeper", "offs_boot");
    f.idr = layout.optional("pid_namespace", "idr"); // 4.15, 95846ecf9dac; a bitmap before
    f.idr_next = layout.optional("idr", "idr_next");
    f.pid_tasks = layout.optional("pid", "tasks");
    f.pid_links = layout.optional("task_struct", "pid_links");
    f.pid = layout.optional("task_struct", "pid");
    f.start = layout.optional_any("task_struct", {"start_boottime", "real_start_time"}); // 5.5, cf25e24db61c
    f.namespace_pid_max = layout.optional("pid_namespace", "pid_max");                   // 6.14, 7863dcc72d0f
    return f;
  }
};

void read_clock(const Kernel &kernel, const PulseLayout &f, Pulse &pulse) {
  if (!f.timekeeper)
    f.timekeeper = timekeeper_address(kernel);
  if (!f.timekeeper || !f.seconds || !f.nanoseconds || !f.shift)
    return;
  const auto seconds = kernel.read<std::uint64_t>(*f.timekeeper + f.seconds->offset);
  const auto nanoseconds = kernel.read<std::uint64_t>(*f.timekeeper + f.nanoseconds->offset);
  const auto shift = kernel.read<std::uint32_t>(*f.timekeeper + f.shift->offset);
  if (!seconds || !nanoseconds || !shift || *shift > 63)
    return;
  pulse.time_ns = *seconds * 1'000'000'000 + (*nanoseconds >> *shift);
  const auto real = f.real ? kernel.read<std::uint64_t>(*f.timekeeper + f.real->offset) : std::nullopt;
  const auto since_boot = f.boot ? kernel.read<std::uint64_t>(*f.timekeeper + f.boot->offset) : std::nullopt;
  if (!real || !since_boot)
    return;
  const auto booted = static_cast<std::int64_t>(*real - *since_boot); // as boot_time_ns() has it
  if (booted > 0 && *pulse.time_ns > static_cast<std::uint64_t>(booted))
    pulse.uptime_ns = *pulse.time_ns - static_cast<std::uint64_t>(booted);
}

} // namespace

Result<Pulse> read_pulse(const Kernel &kernel) {
  TRY_ASSIGN(const PulseLayout *const layout, kernel.layout<PulseLayout>());
  const PulseLayout &f = *layout;
  constexpr std::string_view banner = "Linux version ";
  std::array<char, banner.size()> text{};
  if (!f.banner || !kernel.space().read(*f.banner, std::as_writable_bytes(std::span(text))) ||
      std::string_view(text.data(), text.size()) != banner)
    return fail(ErrorCode::corrupt, "the kernel is not where it was");
  Pulse pulse;
  read_clock(kernel, f, pulse);
  if (f.pid_namespace && f.idr && f.idr_next)
    pulse.next_pid = kernel.read<std::uint32_t>(*f.pid_namespace + f.idr->offset + f.idr_next->offset);
  if (f.pid_namespace && f.namespace_pid_max)
    pulse.pid_limit = kernel.read<std::uint32_t>(*f.pid_namespace + f.namespace_pid_max->offset);
  else if (f.pid_max)
    pulse.pid_limit = kernel.read<std::uint32_t>(*f.pid_max);
  // A number that no kernel has is a lie, or a race: nothing is known then.
  if (pulse.pid_limit && (*pulse.pid_limit > pid_limit || *pulse.pid_limit == 0))
    pulse.pid_limit.reset();
  if (pulse.next_pid && *pulse.next_pid > pulse.pid_limit.value_or(pid_limit))
    pulse.next_pid.reset();
  constexpr std::uint64_t most_pages = std::uint64_t{1} << 40; // of 52 bits of address
  if (const auto past = f.max_pfn ? kernel.read<std::uint64_t>(*f.max_pfn) : std::nullopt;
      past && *past - 1 < most_pages)
    pulse.last_ram_page = Gpa{(*past - 1) * page_size};
  return pulse;
}

Result<View<std::uint32_t>> read_allocated_pids(const Kernel &kernel, std::uint32_t begin, std::uint32_t end) {
  TRY_ASSIGN(const PulseLayout *const f, kernel.layout<PulseLayout>());
  if (!f->pid_namespace || !f->idr)
    return fail(ErrorCode::unsupported, "this kernel keeps its pids in no IDR");
  TRY_ASSIGN(const auto reader, XarrayReader::create(kernel));
  View<std::uint32_t> view;
  const WalkResult walk =
      reader.for_each_of_idr(*f->pid_namespace + f->idr->offset, pid_limit, [&](const XarrayEntry &entry) {
        if (entry.index >= end)
          return false;
        if (entry.index >= begin)
          view.items.push_back(static_cast<std::uint32_t>(entry.index));
        return true;
      });
  view.status.raced = walk.mismatches != 0 || walk.end == WalkEnd::broken;
  view.status.truncated = walk.end == WalkEnd::limit;
  return view;
}

Result<std::optional<std::uint64_t>> read_start_of_pid(const Kernel &kernel, std::int32_t pid) {
  TRY_ASSIGN(const PulseLayout *const f, kernel.layout<PulseLayout>());
  if (!f->pid_namespace || !f->idr || !f->pid_tasks || !f->pid_links || !f->pid || !f->start)
    return fail(ErrorCode::unsupported, "this kernel keeps its pids in no IDR");
  if (pid <= 0)
    return std::nullopt;
  TRY_ASSIGN(const auto reader, XarrayReader::create(kernel));
  TRY_ASSIGN(const auto found, reader.find_in_idr(*f->pid_namespace + f->idr->offset, static_cast<std::uint32_t>(pid)));
  if (!found)
    return std::nullopt;
  // tasks[PIDTYPE_PID].first, a link in task_struct.pid_links[PIDTYPE_PID]; null while only a group or session has it.
  const auto link = kernel.read_pointer(*found, *f->pid_tasks);
  if (!link)
    return fault(*found);
  if (!*link)
    return std::nullopt;
  const Gva task = *link - f->pid_links->offset;
  const auto number = kernel.read_field(task, *f->pid), start = kernel.read_field(task, *f->start);
  if (!kernel.is_kernel_address(task) || !start || number != static_cast<std::uint64_t>(pid))
    return fault(task);
  return *start;
}

} // namespace lararium::linux_guest
