#include "gdb_stub.h"
#include "lararium/driver/qemu.h"
#include "lararium/driver/qemu/layout.h"
#include "lararium/driver/qemu/memory.h"
#include "lararium/driver/qemu/monitor_text.h"
#include "ports.h"
#include "protection.h"

#include <algorithm>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace lararium::qemu {
namespace {

// Blocks whose host address QEMU does not list (before 8.0) are asked for one by one.
Result<void> complete_host_addresses(Monitor &monitor, std::vector<RamBlock> &blocks,
                                     const std::vector<BlockRange> &ranges) {
  for (const auto &range : ranges) {
    auto &block = blocks[range.block];
    if (block.host)
      continue;
    TRY_ASSIGN(const auto answer, monitor.hmp(fmt::format("gpa2hva {:#x}", range.base.value)));
    TRY_ASSIGN(const auto address, parse_host_address(answer));
    // The map may have changed since it was listed: the guest's firmware rearranges the first MiB.
    if (!address.block.empty() && !block.name.ends_with(address.block))
      return fail(ErrorCode::protocol, fmt::format("QEMU's memory map changed at {:#x}", range.base.value));
    block.host = address.host - range.offset;
  }
  return {};
}

// The exact map, as QEMU has it at this moment.
Result<std::vector<GuestRegion>> ask_memory_map(Monitor &monitor, const CommandLine &line) {
  TRY_ASSIGN(const auto block_text, monitor.hmp("info ramblock"));
  TRY_ASSIGN(auto blocks, parse_ram_blocks(block_text));
  TRY_ASSIGN(const auto view_text, monitor.hmp("info mtree -f"));
  TRY_ASSIGN(const auto view, parse_flat_view(view_text));
  TRY_ASSIGN(const auto ranges, main_memory(blocks, view, line.shared_backends));
  TRY(complete_host_addresses(monitor, blocks, ranges));
  std::vector<GuestRegion> regions;
  for (const auto &range : ranges)
    regions.push_back({range.base, range.size, *blocks[range.block].host + range.offset, blocks[range.block].name});
  return regions;
}

// SEV and TDX: what we would read is ciphertext, or refused by the host.
Result<void> refuse_confidential(const VmSummary &vm, const std::vector<OpenDescriptor> &descriptors,
                                 Monitor *monitor) {
  const auto refuse = [&](std::string_view why) {
    return fail(ErrorCode::unsupported,
                fmt::format("the memory of {} is encrypted against its host ({}): it can only be seen from inside",
                            vm.name, why));
  };
  if (!vm.command_line.confidential.empty())
    return refuse(vm.command_line.confidential);
  bool has_sev = false;
  for (const auto &descriptor : descriptors) {
    if (descriptor.target == "anon_inode:[kvm-gmem]")
      return refuse("guest_memfd");
    has_sev = has_sev || descriptor.target == "/dev/sev";
  }
  if (!has_sev || monitor == nullptr || !monitor->speaks_qmp())
    return {};
  const auto answer = monitor->qmp("query-sev");
  const auto sev = answer ? nlohmann::json::parse(*answer, nullptr, false) : nlohmann::json();
  if (sev.is_object() && sev.contains("enabled") && sev["enabled"].is_boolean() && sev["enabled"].get<bool>())
    return refuse("SEV");
  return {};
}

// The map by the rules of the machine type, checked by what firmware left in memory.
Result<std::vector<GuestRegion>> derive_memory_map(const VmSummary &vm, const Process &process,
                                                   std::vector<std::string> &limitations) {
  const auto &line = vm.command_line;
  constexpr std::uint64_t default_ram = 128ULL << 20;
  std::uint64_t ram_size = line.ram_size != 0 ? line.ram_size : default_ram;
  TRY_ASSIGN(const auto mappings, process.mappings());
  TRY_ASSIGN(auto ram, find_ram(join_mappings(mappings), line, ram_size));
  ram_size = 0;
  for (const auto &piece : ram.pieces)
    ram_size += piece.size;

  TRY_ASSIGN(const auto host, HostMemory::open(process));
  const auto read = [&](std::uint64_t offset, std::span<std::byte> out) {
    for (const auto &piece : ram.pieces) {
      if (offset < piece.size)
        return out.size() <= piece.size - offset && host.read(piece.host + offset, out);
      offset -= piece.size;
    }
    return false;
  };
  const auto layouts = possible_layouts(line.machine, ram_size, line.max_ram_below_4g);
  auto acpi_root = find_acpi_root(read);
  // Of places that look alike, the one with a firmware's tables in it is RAM's start.
  constexpr std::size_t most_tries = 16;
  const auto first_choice = ram.pieces.front().host;
  for (std::size_t i = 0; !acpi_root && i < std::min(ram.also_first.size(), most_tries); i++) {
    ram.pieces.front().host = ram.also_first[i];
    acpi_root = find_acpi_root(read);
  }
  if (!acpi_root)
    ram.pieces.front().host = first_choice;
  const bool certain = !ram.ambiguous || (acpi_root && ram.pieces.size() == 1);
  const auto &layout = choose_layout(layouts, acpi_root);

  const std::string rule =
      fmt::format("the memory map is derived from the rules of machine type {} ({} MiB below 4 GiB)", layout.machine,
                  layout.below_4g >> 20);
  limitations.push_back(rule + (acpi_root ? ", and the guest's ACPI tables agree"
                                          : "; nothing in memory confirms it (no ACPI tables of a BIOS)"));
  if (!certain)
    limitations.emplace_back("several mappings of the process look like the VM's RAM: the likeliest were taken");
  if (line.ram_hotpluggable || !line.dimm_backends.empty())
    limitations.emplace_back("hotplugged memory is not seen");

  // Pieces follow each other in RAM, and RAM is split at the hole.
  std::vector<GuestRegion> regions;
  const auto add = [&](Gpa base, std::uint64_t size, const RamPiece &piece, std::uint64_t piece_offset) {
    // A device answers in the middle of the first MiB: what RAM holds there the guest does not see.
    const auto hole_begin = std::clamp(layout.low_hole_begin, base.value, base.value + size) - base.value;
    const auto hole_end = std::clamp(layout.low_hole_end, base.value, base.value + size) - base.value;
    if (hole_begin != 0)
      regions.push_back({base, hole_begin, piece.host + piece_offset, piece.block});
    if (hole_end != size)
      regions.push_back({base + hole_end, size - hole_end, piece.host + (piece_offset + hole_end), piece.block});
  };
  std::uint64_t offset = 0;
  for (const auto &piece : ram.pieces) {
    const auto low = offset < layout.below_4g ? std::min(piece.size, layout.below_4g - offset) : 0;
    if (low != 0)
      add(Gpa{offset}, low, piece, 0);
    if (low < piece.size)
      add(layout.above_base + (offset + low - layout.below_4g), piece.size - low, piece, low);
    offset += piece.size;
  }
  return regions;
}

} // namespace

Result<Target> attach(const VmSummary &vm, const AttachOptions &options) {
  if (vm.architecture != Architecture::x86_64)
    return fail(ErrorCode::unsupported, fmt::format("{} is no x86-64 guest", vm.name));
  TRY_ASSIGN(auto process, Process::open(vm.pid, vm.start_ticks));
  const auto session = std::make_shared<Session>(Session{
      std::move(process), MonitorAccess(options.monitor ? vm.routes : std::vector<MonitorRoute>(), options.timeouts)});
  const auto descriptors = session->process.descriptors();
  if (!descriptors) {
    if (descriptors.error().code == ErrorCode::permission_denied)
      return fail(ErrorCode::permission_denied,
                  fmt::format("{} runs as user {}: reading it needs root, or CAP_SYS_PTRACE and CAP_SYS_ADMIN", vm.name,
                              vm.owner));
    return std::unexpected(descriptors.error());
  }

  Target target;
  std::unique_ptr<Monitor> monitor;
  std::string why_no_map = options.monitor ? "the VM has no monitor that can be reached" : "the monitor is not used";
  if (!session->monitors.empty()) {
    auto opened = session->open_monitor();
    if (opened)
      monitor = std::move(*opened);
    else if (opened.error().code == ErrorCode::gone)
      return std::unexpected(std::move(opened).error());
    else
      why_no_map = opened.error().describe();
  }
  TRY(refuse_confidential(vm, *descriptors, monitor.get()));

  std::vector<GuestRegion> regions;
  if (monitor != nullptr) {
    auto map = ask_memory_map(*monitor, vm.command_line);
    if (map)
      regions = std::move(*map);
    else if (!session->process.alive())
      return session->process.explain({});
    else
      why_no_map = map.error().describe();
  }
  if (regions.empty()) {
    target.limitations.push_back(std::move(why_no_map));
    TRY_ASSIGN(regions, derive_memory_map(vm, session->process, target.limitations));
  }
  target.protector = make_protector(session, regions, vm.accelerator != "kvm");
  TRY_ASSIGN(auto memory, QemuMemory::open(session->process, regions));

  target.identity = {.kind = TargetKind::live,
                     .architecture = vm.architecture,
                     .name = vm.name,
                     .uuid = vm.uuid,
                     .pid = vm.pid,
                     .accelerator = vm.accelerator,
                     .memory_access = memory->access()};
  target.memory = std::move(memory);
  if (!session->monitors.empty()) {
    // Also when no monitor answered now: it may be free the next time.
    target.vcpus = make_vcpus(session, std::move(regions));
    target.run_control = make_run_control(session);
    target.code_writer = make_code_writer(session);
    target.debugger = make_debugger(session);
    target.nics = make_nics(session);
  } else {
    target.limitations.emplace_back("without a monitor there are no registers, and the guest cannot be paused");
    target.limitations.emplace_back("without a monitor disks are not counted, and vCPUs only when their threads are "
                                    "named (debug-threads=on)");
  }
  if (monitor != nullptr && !monitor->speaks_qmp())
    target.limitations.emplace_back("vCPUs' times are known only when their threads are named (debug-threads=on): "
                                    "the human monitor does not tell which they are");
  if (tap_interfaces(session->process, *descriptors).empty())
    target.limitations.emplace_back("network traffic is not counted: QEMU keeps no counters, and there is no tap "
                                    "interface, which has some");
  target.statistics = make_statistics(session);
  target.liveness = make_liveness(session);
  return target;
}

} // namespace lararium::qemu
