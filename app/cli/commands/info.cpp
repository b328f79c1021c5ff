#include "../context.h"
#include "../text.h"

#include <algorithm>
#include <fmt/format.h>
#include <utility>

namespace lararium::cli {
namespace {

void write_info(JsonWriter &json, const SystemInfo &info) {
  json.begin_object()
      .member("os", info.os)
      .text_or_null("release", info.release)
      .text_or_null("version", info.version)
      .text_or_null("machine", info.machine)
      .text_or_null("banner", info.banner)
      .text_or_null("build_id", info.build_id)
      .text_or_null("hostname", info.hostname)
      .text_or_null("domain_name", info.domain_name)
      .member("uptime_ns", info.uptime_ns);
  json.key("boot_time");
  info.boot_time_ns ? json.time(*info.boot_time_ns) : json.null();
  json.key("current_time");
  info.current_time_ns ? json.time(*info.current_time_ns) : json.null();
  json.key("cpus")
      .begin_object()
      .member("online", info.cpus_online)
      .member("present", info.cpus_present)
      .member("possible", info.cpus_possible)
      .end_object();
  json.key("memory")
      .begin_object()
      .member("total_bytes", info.memory_total)
      .member("free_bytes", info.memory_free)
      .member("available_bytes", info.memory_available)
      .member("cached_bytes", info.memory_cached)
      .member("buffers_bytes", info.memory_buffers)
      .member("shared_bytes", info.shared_memory)
      .member("swap_total_bytes", info.swap_total)
      .member("swap_free_bytes", info.swap_free)
      .end_object();
  json.key("load");
  if (info.load)
    json.begin_array().value((*info.load)[0]).value((*info.load)[1]).value((*info.load)[2]).end_array();
  else
    json.null();
  json.member("processes", info.process_count).member("threads", info.thread_count);
  json.member("lockdown", info.lockdown)
      .list("security_modules", info.security_modules)
      .member("selinux_enforcing", info.selinux_enforcing)
      .member("apparmor_enabled", info.apparmor_enabled);
  json.member("taint", info.taint).member("taint_letters", info.taint_letters);
  json.text_or_null("command_line", info.command_line);
  json.member("kernel_base", info.kernel_base)
      .member("kernel_physical_base", info.kernel_physical_base)
      .member("paging_levels", info.paging_levels)
      .member("page_table_isolation", info.page_table_isolation)
      .end_object();
}

// "name: value" lines, aligned; a line without a value is left out.
class Sheet {
public:
  void section(std::string_view title) { lines_.emplace_back(title, ""); }
  void line(std::string_view name, std::string_view value) {
    if (!value.empty())
      lines_.emplace_back(name, visible(value));
  }
  void print(Output &out) const {
    constexpr std::size_t column = 18;
    for (const auto &[name, value] : lines_) {
      if (value.empty()) {
        out.buffer() += out.buffer().empty() ? "" : "\n";
        out.styled(Style::bold, name);
      } else {
        out.buffer() += "  ";
        out.styled(Style::dim, name);
        out.buffer().append(name.size() < column ? column - name.size() : 1, ' ');
        out.buffer() += value;
      }
      out.buffer() += '\n';
    }
  }

private:
  std::vector<std::pair<std::string, std::string>> lines_;
};

std::string part_of(std::optional<std::uint64_t> part, std::optional<std::uint64_t> total) {
  if (!part)
    return {};
  if (!total || *total == 0)
    return long_bytes(*part);
  return fmt::format("{} ({:.0f} %)", long_bytes(*part),
                     100.0 * static_cast<double>(*part) / static_cast<double>(*total));
}

std::string yes_no(std::optional<bool> value, std::string_view yes, std::string_view no) {
  return value ? std::string(*value ? yes : no) : std::string();
}

class Info final : public Command {
public:
  Result<void> run(Context &context) override {
    TRY_ASSIGN(Target *const target, context.target());
    TRY_ASSIGN(Guest *const guest, context.attached_guest());
    TRY_ASSIGN(const SystemInfo info, guest->system->info());
    const bool was_paused = context.paused();
    std::optional<RunState> state;
    if (target->run_control && !was_paused)
      if (const auto known = target->run_control->state())
        state = *known;
    if (context.options.json) {
      JsonWriter json = context.begin_document("info", &info.status);
      json.key("item");
      write_info(json, info);
      json.key("state");
      state ? json.value(name_of(*state)) : json.null();
      json.member("ram_bytes", target->memory->total_size())
          .text_or_null("found_by", guest->found_by)
          .text_or_null("profile_source", guest->profile_source)
          .list("limitations", target->limitations);
      TRY(context.release_pause());
      return context.end_document(json);
    }
    TRY(context.release_pause());
    Sheet sheet;
    describe_machine(sheet, *target, state);
    describe_kernel(sheet, info, *guest);
    describe_state(sheet, info);
    describe_security(sheet, info);
    sheet.print(context.out);
    for (const std::string &limitation : target->limitations)
      context.note(visible(limitation));
    context.notes_of(info.status);
    return {};
  }

private:
  static void describe_machine(Sheet &sheet, const Target &target, std::optional<RunState> state) {
    const TargetIdentity &identity = target.identity;
    const bool live = identity.kind == TargetKind::live;
    sheet.section(live ? "Virtual machine" : "Dump");
    sheet.line("name", identity.name);
    sheet.line("uuid", identity.uuid);
    if (live)
      sheet.line("pid", std::to_string(identity.pid));
    sheet.line("accelerator", identity.accelerator);
    if (state)
      sheet.line("state", name_of(*state));
    sheet.line("RAM", long_bytes(target.memory->total_size()));
    sheet.line("read by", identity.memory_access);
  }

  static void describe_kernel(Sheet &sheet, const SystemInfo &info, const Guest &guest) {
    sheet.section("Kernel");
    sheet.line("release", fmt::format("{} {}", info.os, info.release));
    sheet.line("version", info.version);
    sheet.line("machine", info.machine);
    sheet.line("banner", std::string_view(info.banner).substr(0, info.banner.find_last_not_of('\n') + 1));
    sheet.line("build id", info.build_id);
    sheet.line("base", fmt::format("{:#x}, physical {:#x}", info.kernel_base.value, info.kernel_physical_base.value));
    sheet.line("paging", fmt::format("{} levels{}", info.paging_levels,
                                     info.page_table_isolation
                                         ? (*info.page_table_isolation ? ", isolated (PTI)" : ", not isolated (no PTI)")
                                         : ""));
    sheet.line("command line", info.command_line);
    sheet.line("found by", guest.found_by);
    sheet.line("profile from", guest.profile_source);
  }

  static void describe_state(Sheet &sheet, const SystemInfo &info) {
    sheet.section("System");
    sheet.line("hostname", info.hostname);
    if (info.domain_name != "(none)")
      sheet.line("domain", info.domain_name);
    if (info.current_time_ns)
      sheet.line("time", plain_time(*info.current_time_ns));
    if (info.boot_time_ns)
      sheet.line("booted", plain_time(*info.boot_time_ns));
    if (info.uptime_ns)
      sheet.line("up", duration(*info.uptime_ns));
    if (info.load)
      sheet.line("load", fmt::format("{:.2f} {:.2f} {:.2f}", (*info.load)[0], (*info.load)[1], (*info.load)[2]));
    if (info.cpus_online)
      sheet.line("CPUs", fmt::format("{} online{}", *info.cpus_online,
                                     info.cpus_present && *info.cpus_present != *info.cpus_online
                                         ? fmt::format(" of {}", *info.cpus_present)
                                         : ""));
    if (info.process_count)
      sheet.line("processes", fmt::format("{}{}", *info.process_count,
                                          info.thread_count ? fmt::format(", {} threads", *info.thread_count) : ""));
    if (info.memory_total)
      sheet.line("memory", long_bytes(*info.memory_total));
    sheet.line("  free", part_of(info.memory_free, info.memory_total));
    sheet.line("  available", part_of(info.memory_available, info.memory_total));
    sheet.line("  cached", part_of(info.memory_cached, info.memory_total));
    sheet.line("  buffers", part_of(info.memory_buffers, info.memory_total));
    if (info.swap_total.value_or(0) > 0)
      sheet.line("swap free",
                 fmt::format("{} of {}", long_bytes(info.swap_free.value_or(0)), long_bytes(*info.swap_total)));
  }

  static void describe_security(Sheet &sheet, const SystemInfo &info) {
    sheet.section("Security");
    sheet.line("lockdown", info.lockdown.value_or(""));
    sheet.line("modules", fmt::format("{}", fmt::join(info.security_modules, ", ")));
    sheet.line("SELinux", yes_no(info.selinux_enforcing, "enforcing", "permissive"));
    sheet.line("AppArmor", yes_no(info.apparmor_enabled, "enabled", "disabled"));
    if (info.taint)
      sheet.line("taint",
                 *info.taint == 0 ? std::string("none") : fmt::format("{} ({})", info.taint_letters, *info.taint));
  }
};

LARARIUM_COMMAND(Info, "info", machine, vm, "the VM, its kernel and its state at a glance")

} // namespace
} // namespace lararium::cli
