#include "../context.h"
#include "../table.h"
#include "../text.h"

#include <fmt/format.h>

namespace lararium::cli {
namespace {

struct Row {
  VmListing vm;
  std::optional<SystemInfo> system;
  std::string why_not; // why there is no `system`
};

void write_vm(JsonWriter &json, const Row &row) {
  const VmListing &vm = row.vm;
  json.begin_object().member("name", vm.identity.name);
  json.text_or_null("uuid", vm.identity.uuid);
  json.member("pid", vm.identity.pid).member("owner_uid", vm.owner);
  json.text_or_null("accelerator", vm.identity.accelerator);
  json.text_or_null("machine", vm.machine);
  json.text_or_null("qemu_version", vm.version);
  json.key("vcpus");
  vm.vcpus == 0 ? json.null() : json.value(vm.vcpus);
  json.key("ram_bytes");
  vm.ram_bytes == 0 ? json.null() : json.value(vm.ram_bytes);
  json.member("state", name_of(vm.state));
  json.text_or_null("memory_access", vm.identity.memory_access);
  json.member("readable", vm.readable).list("problems", vm.problems);
  json.key("guest");
  if (row.system) {
    json.begin_object().member("os", row.system->os).member("release", row.system->release);
    json.text_or_null("hostname", row.system->hostname);
    json.end_object();
  } else {
    json.null();
  }
  json.text_or_null("guest_error", row.why_not);
  json.end_object();
}

class Vms final : public Command {
public:
  void describe(Syntax &syntax) override {
    syntax.flag("-n,--no-guest", "do not look into the guests for their kernels", no_guest_);
    syntax.flag("-w,--wide", "do not cut lines to the terminal's width", wide_);
  }

  Result<void> run(Context &context) override {
    TRY_ASSIGN(auto vms, context.host.vms());
    std::vector<Row> rows;
    for (VmListing &vm : vms) {
      Row row{std::move(vm), {}, {}};
      if (!no_guest_ && row.vm.readable)
        look_inside(context, row);
      rows.push_back(std::move(row));
    }
    if (context.options.json)
      return context.json_list("vms", rows, nullptr, write_vm);
    if (rows.empty()) {
      context.note("no VM runs on this host that you can see");
      return {};
    }
    Table table{{"PID", Align::right},
                {"NAME"},
                {"STATE"},
                {"ACCEL", Align::left, true},
                {"VCPUS", Align::right},
                {"RAM", Align::right},
                {"GUEST", Align::left, true},
                {"HOSTNAME", Align::left, true},
                {"MEMORY"},
                {"UUID", Align::left, true}};
    for (const Row &row : rows) {
      const VmListing &vm = row.vm;
      table.number(std::int64_t{vm.identity.pid}).guest(vm.identity.name, Style::bold);
      table.text(name_of(vm.state), vm.state == RunState::running ? Style::green : Style::yellow);
      table.guest(vm.identity.accelerator);
      vm.vcpus == 0 ? table.text("?") : table.number(std::uint64_t{vm.vcpus});
      table.text(vm.ram_bytes == 0 ? "?" : short_bytes(vm.ram_bytes));
      if (row.system)
        table.guest(row.system->os + ' ' + row.system->release, Style::cyan).guest(row.system->hostname);
      else
        table.text(no_guest_ ? "" : "?").text("");
      table.guest(vm.identity.memory_access).guest(vm.identity.uuid, Style::dim);
    }
    TRY(table.print(context.out, !wide_));
    for (const Row &row : rows) {
      for (const std::string &problem : row.vm.problems)
        context.note(fmt::format("{}: {}", visible(row.vm.identity.name), visible(problem)));
      if (!row.why_not.empty())
        context.note(fmt::format("{}: {}", visible(row.vm.identity.name), visible(row.why_not)));
    }
    return {};
  }

private:
  static void look_inside(Context &context, Row &row) {
    auto target = context.host.open(std::to_string(row.vm.identity.pid));
    if (!target) {
      row.why_not = target.error().describe();
      return;
    }
    row.vm.identity.memory_access = target->identity.memory_access;
    // The command line does not know of memory that was plugged in. The memory map has holes in its first MiB, and a
    // little of what is no RAM; modules of memory are of whole 128 MiB, as Linux takes them.
    constexpr std::uint64_t module = 128 << 20;
    if (const std::uint64_t seen = target->memory->total_size() + module / 2; seen > row.vm.ram_bytes + module)
      row.vm.ram_bytes += (seen - row.vm.ram_bytes) / module * module;
    auto guest = context.host.attach(*target, context.options.guest);
    auto system = guest ? guest->system->info() : Result<SystemInfo>(std::unexpected(guest.error()));
    if (system)
      row.system = std::move(*system);
    else
      row.why_not = system.error().describe();
  }

  bool no_guest_ = false, wide_ = false;
};

LARARIUM_COMMAND(Vms, "vms", machine, none, "the VMs that run on this host")

} // namespace
} // namespace lararium::cli
