#include "session.h"

#include "lararium/base/unique_fd.h"
#include "lararium/driver/dump.h"
#include "lararium/driver/qemu.h"
#include "lararium/driver/qemu/guest_agent.h"
#include "lararium/driver/replay.h"
#include "lararium/os/linux.h"
#include "lararium/symbols/isf.h"
#include "output.h"
#include "process_core.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

namespace lararium::cli {
namespace {

enum class FileKind : std::uint8_t { none, regular, socket, other };

FileKind kind_of_file(const std::string &path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0)
    return FileKind::none;
  return S_ISREG(status.st_mode) || S_ISBLK(status.st_mode) ? FileKind::regular
         : S_ISSOCK(status.st_mode)                         ? FileKind::socket
                                                            : FileKind::other;
}

Result<Target> open_file(const std::string &path) {
  return is_recording(path) ? open_recording(path) : open_dump(path);
}

VmListing listing_of(qemu::VmSummary vm) {
  VmListing listing;
  listing.identity.name = std::move(vm.name);
  listing.identity.uuid = std::move(vm.uuid);
  listing.identity.pid = vm.pid;
  listing.identity.architecture = vm.architecture;
  listing.identity.accelerator = std::move(vm.accelerator);
  listing.identity.memory_access = std::move(vm.memory_access);
  listing.machine = std::move(vm.machine);
  listing.version = std::move(vm.version);
  listing.owner = vm.owner;
  listing.vcpus = vm.vcpus;
  listing.ram_bytes = vm.ram_bytes;
  listing.state = vm.state;
  listing.readable = vm.readable;
  listing.problems = std::move(vm.problems);
  return listing;
}

std::vector<VmListing> listings_of(std::vector<qemu::VmSummary> vms) {
  std::vector<VmListing> listings;
  for (qemu::VmSummary &vm : vms)
    listings.push_back(listing_of(std::move(vm)));
  return listings;
}

WriteOptions write_options(const CoreOptions &options) {
  WriteOptions converted;
  converted.overwrite = options.overwrite;
  converted.stored_limit = options.stored_limit;
  if (options.progress)
    converted.progress = [&options](const WriteProgress &progress) {
      return options.progress({progress.done, progress.total});
    };
  return converted;
}

CoreSummary summary_of(const WriteSummary &summary) {
  return {summary.source_bytes, summary.stored_bytes, summary.unreadable_bytes, {}};
}

// The kernel's image and its map of all physical memory, so that debuggers can follow the kernel's pointers.
void add_kernel_views(MachineCore &core, OperatingSystem &system) {
  if (const auto symbol = system.find_symbol("page_offset_base")) {
    std::uint64_t value = 0;
    if (system.read_kernel(symbol->address, writable_bytes_of(value)) == sizeof value && value >> 63 != 0)
      core.direct_map = Gva{value};
  }
  const auto end = system.find_symbol("_end");
  const auto info = system.info();
  constexpr std::uint64_t largest_image = 1ULL << 30; // what x86-64 Linux has room for
  if (end && info && end->address > info->kernel_base && end->address - info->kernel_base <= largest_image)
    core.views.push_back(
        {info->kernel_base, info->kernel_physical_base, ((end->address - info->kernel_base) + page_mask) & ~page_mask});
}

class LocalHost final : public Host {
public:
  Result<std::vector<VmListing>> vms() override { return listings_of(qemu::discover()); }
  Result<std::vector<VmListing>> vm_processes() override {
    return listings_of(qemu::discover({.ask_monitors = false}));
  }

  Result<Target> open(const std::string &name) override {
    const FileKind kind = kind_of_file(name);
    const bool is_path = name.find('/') != name.npos;
    if (is_path && kind == FileKind::regular)
      return open_file(name);
    if (is_path && kind != FileKind::socket)
      return fail(ErrorCode::not_found, fmt::format("{} is neither a dump nor a QMP socket", name));
    auto vm = qemu::find(name);
    if (vm)
      return qemu::attach(*vm);
    // A name without a slash means a VM first, and a dump in this folder second.
    if (vm.error().code == ErrorCode::not_found && kind == FileKind::regular)
      return open_file(name);
    return std::unexpected(vm.error());
  }

  Result<Guest> attach(Target &target, const GuestOptions &options) override {
    TRY_ASSIGN(const Attaching attaching, prepare(options));
    linux_guest::AttachReport report;
    Guest guest;
    TRY_ASSIGN(guest.system, linux_guest::attach(target, attaching.options(), &report));
    guest.found_by = std::move(report.found_by);
    guest.profile_source = std::move(report.profile_source);
    guest.notes = std::move(report.warnings);
    return guest;
  }

  Result<std::shared_ptr<const Profile>> profile(Target &target, const GuestOptions &options) override {
    TRY_ASSIGN(const Attaching attaching, prepare(options));
    return linux_guest::profile_of(target, attaching.options());
  }

  Result<CoreSummary> write_machine_core(Target &target, OperatingSystem *system, const std::string &path,
                                         const CoreOptions &options) override {
    MachineCore core;
    if (target.vcpus)
      if (auto registers = target.vcpus->registers())
        core.vcpus = std::move(*registers);
    if (system != nullptr) {
      core.vmcoreinfo = system->crash_information();
      add_kernel_views(core, *system);
    }
    if (core.vmcoreinfo.empty())
      core.vmcoreinfo = target.hints.vmcoreinfo;
    TRY_ASSIGN(const WriteSummary summary, write_elf_core(*target.memory, core, path, write_options(options)));
    return summary_of(summary);
  }

  Result<CoreSummary> write_process_core(OperatingSystem &system, std::int32_t pid, const std::string &path,
                                         const CoreOptions &options) override {
    TRY_ASSIGN(ProcessImage image, system.process_image(pid));
    const ViewStatus status = std::move(image.status);
    const ProcessCore core = process_core_of(std::move(image));
    const ProcessPages pages(system, core);
    TRY_ASSIGN(const WriteSummary summary,
               lararium::write_process_core(
                   core, [&pages](Gva page, std::span<std::byte> out) { return pages.read(page, out); }, path,
                   write_options(options)));
    CoreSummary result = summary_of(summary);
    result.status = status;
    return result;
  }

  Result<void> export_isf(const Profile &profile, const std::string &path) override {
    UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (!file)
      return fail_errno(fmt::format("cannot create {}", path), errno);
    const auto sink = descriptor_sink(file.get());
    TRY(lararium::export_isf(profile, sink));
    if (::close(file.release()) != 0)
      return fail_errno(fmt::format("cannot write {}", path), errno);
    return {};
  }

  Result<std::string> ask_guest_agent(const std::string &socket, std::string_view script,
                                      const AskLimits &limits) override {
    qemu::AgentLimits agent;
    agent.time = limits.time;
    agent.bytes = std::min(agent.bytes, limits.bytes);
    return qemu::run_in_guest(socket, script, agent);
  }

private:
  // What attaching needs, held together for as long as it takes.
  struct Attaching {
    std::optional<ProfileCache> cache;
    std::shared_ptr<const Profile> profile;
    bool running_only = false;
    [[nodiscard]] linux_guest::AttachOptions options() const {
      return {cache ? &*cache : nullptr, profile, running_only};
    }
  };
  static Result<Attaching> prepare(const GuestOptions &options) {
    Attaching attaching;
    attaching.running_only = options.running_only;
    if (options.use_cache)
      attaching.cache =
          options.cache_directory.empty() ? ProfileCache::default_location() : ProfileCache(options.cache_directory);
    if (!options.profile_file.empty()) {
      TRY_ASSIGN(attaching.profile, import_isf_file(options.profile_file));
    }
    return attaching;
  }
};

} // namespace

std::unique_ptr<Host> make_host() { return std::make_unique<LocalHost>(); }

} // namespace lararium::cli
