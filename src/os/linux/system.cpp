#include "system.h"

#include "bpf.h"
#include "environment.h"
#include "files.h"
#include "image.h"
#include "info.h"
#include "interfaces.h"
#include "kernel_log.h"
#include "lararium/os/linux.h"
#include "lararium/os/linux/modules.h"
#include "lararium/os/linux/tasks.h"
#include "locate.h"
#include "maps.h"
#include "mounts.h"
#include "process_image.h"
#include "pulse.h"
#include "recover.h"
#include "sockets.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>

namespace lararium::linux_guest {

const Kernel *kernel_of(const OperatingSystem &system) {
  const auto *own = dynamic_cast<const LinuxSystem *>(&system);
  return own != nullptr ? &own->kernel() : nullptr;
}

void LinuxSystem::refresh() {
  target_.memory->refresh();
  kernel_->space().flush();
  last_process_.reset();
}

Result<SystemInfo> LinuxSystem::info() { return read_info(*kernel_); }
Result<Pulse> LinuxSystem::pulse() { return read_pulse(*kernel_); }
Result<View<std::uint32_t>> LinuxSystem::allocated_pids(std::uint32_t begin, std::uint32_t end) {
  return read_allocated_pids(*kernel_, begin, end);
}
Result<std::optional<std::uint64_t>> LinuxSystem::start_of_pid(std::int32_t pid) {
  return read_start_of_pid(*kernel_, pid);
}
Result<View<Process>> LinuxSystem::processes(const ProcessQuery &query) { return read_processes(*kernel_, query); }
Result<View<ProcessMark>> LinuxSystem::process_marks() { return read_process_marks(*kernel_); }
Result<View<KernelModule>> LinuxSystem::modules() { return read_modules(*kernel_); }
Result<View<MemoryRegion>> LinuxSystem::memory_regions(std::int32_t pid) { return read_memory_regions(*kernel_, pid); }
Result<View<OpenFile>> LinuxSystem::open_files(std::optional<std::int32_t> pid) {
  return read_open_files(*kernel_, pid);
}
Result<View<std::string>> LinuxSystem::environment(std::int32_t pid) { return read_environment(*kernel_, pid); }
Result<View<Mount>> LinuxSystem::mounts(std::optional<std::int32_t> pid) { return read_mounts(*kernel_, pid); }

Result<ProcessImage> LinuxSystem::process_image(std::int32_t pid) {
  std::vector<VcpuRegisters> registers; // of threads that run: without, these threads have none
  if (target_.vcpus)
    if (auto result = target_.vcpus->registers())
      registers = *std::move(result);
  return read_process_image(*kernel_, pid, registers);
}

Result<CachedFile> LinuxSystem::recover_file(std::string_view path,
                                             const std::function<Result<void>(std::uint64_t, Bytes)> &sink) {
  return linux_guest::recover_file(*kernel_, path, sink);
}

Result<View<Socket>> LinuxSystem::sockets() { return read_sockets(*kernel_); }
Result<View<NetworkInterface>> LinuxSystem::interfaces() { return read_interfaces(*kernel_); }
Result<View<LogRecord>> LinuxSystem::kernel_log() { return read_kernel_log(*kernel_); }
Result<BpfView> LinuxSystem::bpf() { return read_bpf(*kernel_); }

ViewStatus LinuxSystem::for_each_symbol(const std::function<bool(const KernelSymbol &)> &visitor) {
  const Profile &profile = kernel_->profile();
  for (std::size_t i = 0; i < profile.symbol_count(); ++i) {
    const ProfileSymbol symbol = profile.symbol_at(i);
    const Gva address = symbol.base == SymbolBase::image ? kernel_->location().base + symbol.value : Gva{symbol.value};
    if (!visitor({address, std::string(symbol.name), symbol.type, {}}))
      return {};
  }
  return for_each_module_symbol(*kernel_, visitor);
}

std::optional<KernelSymbol> LinuxSystem::find_symbol(std::string_view name) {
  if (const auto symbol = kernel_->profile().symbol(name)) {
    const Gva address =
        symbol->base == SymbolBase::image ? kernel_->location().base + symbol->value : Gva{symbol->value};
    return KernelSymbol{address, std::string(symbol->name), symbol->type, {}};
  }
  std::optional<KernelSymbol> found;
  for_each_module_symbol(*kernel_, [&](const KernelSymbol &symbol) {
    if (symbol.name == name)
      found = symbol;
    return !found;
  });
  return found;
}

std::optional<std::pair<KernelSymbol, std::uint64_t>> LinuxSystem::symbolize(Gva address) {
  const KernelLocation &location = kernel_->location();
  if (address >= location.base && address - location.base < location.size) {
    const std::uint64_t offset = address - location.base;
    if (const auto symbol = kernel_->profile().nearest(offset))
      return std::pair(KernelSymbol{location.base + symbol->value, std::string(symbol->name), symbol->type, {}},
                       offset - symbol->value);
    return std::nullopt;
  }
  std::optional<KernelSymbol> best;
  for_each_module_symbol(*kernel_, [&](const KernelSymbol &symbol) {
    constexpr std::uint64_t module_span = 64 << 20;
    if (symbol.address <= address && address - symbol.address < module_span &&
        (!best || symbol.address > best->address))
      best = symbol;
    return true;
  });
  if (!best)
    return std::nullopt;
  return std::pair(*best, address - best->address);
}

std::size_t LinuxSystem::read_kernel(Gva address, std::span<std::byte> out) {
  return kernel_->space().read_prefix(address, out);
}

Result<std::size_t> LinuxSystem::read_process(std::int32_t pid, Gva address, std::span<std::byte> out) {
  if (!last_process_ || last_process_->pid != pid) {
    TRY_ASSIGN(const Gva task, find_task(*kernel_, pid));
    const auto root = user_page_table(*kernel_, task);
    if (!root)
      return fail(ErrorCode::not_found,
                  fmt::format("process {} has no user memory: it is a kernel thread or has ended", pid));
    last_process_ = {pid, *root};
  }
  return read_uncached(*target_.memory, last_process_->root, address, out);
}

std::string LinuxSystem::crash_information() {
  const auto data = kernel_->symbol("vmcoreinfo_data");
  const auto size = kernel_->symbol("vmcoreinfo_size");
  if (!data || !size)
    return {};
  constexpr std::size_t limit = 64 << 10;
  const auto text = kernel_->read_pointer(*data);
  const auto length = kernel_->read<std::uint64_t>(*size);
  if (!text || !length)
    return {};
  std::string result(std::min<std::size_t>(*length, limit), '\0');
  result.resize(kernel_->space().read_prefix(*text, std::as_writable_bytes(std::span(result))));
  return result;
}

namespace {

// A cached profile whose build id stands at its place in the image.
std::shared_ptr<const Profile> cached_profile(const PhysicalMemory &memory, const KernelLocation &location,
                                              const ProfileCache &cache) {
  for (const auto &candidate : cache.candidates()) {
    if (candidate.build_id.size == 0 || candidate.build_id_offset == 0 || candidate.build_id_offset >= location.size)
      continue;
    std::array<std::uint8_t, 32> bytes{};
    const auto length = std::min<std::size_t>(candidate.build_id.size, bytes.size());
    if (!memory.read(location.physical_base + candidate.build_id_offset,
                     std::as_writable_bytes(std::span(bytes)).first(length)) ||
        !std::equal(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(length),
                    candidate.build_id.bytes.begin()))
      continue;
    if (auto profile = cache.find(candidate.build_id))
      return std::move(*profile);
  }
  return nullptr;
}

struct Found {
  KernelLocation location;
  std::shared_ptr<const Profile> profile;
};

// Whether the kernel that the profile describes is the one at this place: its banner stands where the profile says.
bool agrees(const PhysicalMemory &memory, const KernelLocation &location, const Profile &profile) {
  const auto banner = profile.symbol("linux_banner");
  if (!banner || banner->base != SymbolBase::image)
    return false;
  std::array<char, 14> text{};
  return memory.read(location.physical_base + banner->value, std::as_writable_bytes(std::span(text))) &&
         std::string_view(text.data(), text.size()) == "Linux version ";
}

Result<Found> find_profile(const Target &target, const AttachOptions &options, const KernelLocation &location,
                           AttachReport &report) {
  if (options.profile) {
    if (!agrees(*target.memory, location, *options.profile))
      return fail(ErrorCode::not_found,
                  "the given profile is of another kernel: its linux_banner is not where it says in this guest");
    report.profile_source = "file";
    return Found{location, options.profile};
  }
  if (options.cache != nullptr)
    if (auto profile = cached_profile(*target.memory, location, *options.cache);
        profile && agrees(*target.memory, location, *profile)) {
      report.profile_source = "cache";
      return Found{location, std::move(profile)};
    }
  const KernelImage image(*target.memory, location);
  TRY_ASSIGN(auto built, profile_from_image(image, location));
  if (!agrees(*target.memory, location, *built.profile))
    return fail(ErrorCode::corrupt, "the kernel's own symbols contradict its memory");
  report.profile_source = "guest memory";
  report.warnings = std::move(built.warnings);
  if (options.cache != nullptr && built.profile->build_id().size != 0)
    if (const auto stored = options.cache->store(*built.profile); !stored)
      report.warnings.push_back("the profile could not be cached: " + stored.error().describe());
  return Found{location, std::move(built.profile)};
}

Result<Found> find_kernel(const Target &target, const AttachOptions &options, AttachReport &report) {
  if (target.identity.architecture != Architecture::x86_64)
    return fail(ErrorCode::unsupported, "only x86-64 guests are understood so far");
  std::vector<VcpuRegisters> registers;
  if (target.vcpus) {
    if (auto result = target.vcpus->registers())
      registers = std::move(*result);
    else
      report.warnings.push_back("no vCPU registers: " + result.error().describe());
  }

  std::optional<Error> first_error;
  // Registers first: they tell the running kernel for certain, and cost no search.
  for (const bool search_memory : {false, true}) {
    if (search_memory && options.running_only && !registers.empty())
      break;
    for (const auto &location : locate_kernels(target, registers, search_memory)) {
      auto found = find_profile(target, options, location, report);
      if (found) {
        report.found_by = location.found_by;
        return found;
      }
      if (!first_error)
        first_error = std::move(found).error();
    }
  }
  if (first_error)
    return std::unexpected(std::move(*first_error));
  const bool real_mode = std::ranges::any_of(registers, [](const VcpuRegisters &vcpu) { return !vcpu.paging(); });
  return fail(ErrorCode::unknown_os,
              real_mode ? "no operating system that Lararium knows runs (yet): a vCPU is not in protected mode with "
                          "paging, as in firmware or a boot loader"
                        : "no operating system that Lararium knows was found in the guest's memory");
}

} // namespace

namespace {

// A vCPU's CR3 is the table of whatever process runs there: it maps user memory too, and goes with the process. The
// kernel's own table stays, and maps what all others share.
void use_own_page_table(const PhysicalMemory &memory, Found &found, AttachReport &report) {
  for (const std::string_view name : {"init_top_pgt", "init_level4_pgt", "swapper_pg_dir"}) {
    const auto symbol = found.profile->symbol(name);
    if (!symbol || symbol->base != SymbolBase::image)
      continue;
    KernelLocation &location = found.location;
    const x86_64::PageTableRoot own{location.physical_base + symbol->value, location.root.levels};
    const auto base = AddressSpace(memory, own).translate(location.base);
    if (base && base->address == location.physical_base)
      location.root = own;
    else
      report.warnings.push_back("the kernel's own page table does not map the kernel: that of a process is used");
    return;
  }
}

} // namespace

Result<std::shared_ptr<const Profile>> profile_of(const Target &target, const AttachOptions &options) {
  AttachReport report;
  TRY_ASSIGN(auto found, find_kernel(target, options, report));
  return std::move(found.profile);
}

Result<std::unique_ptr<OperatingSystem>> attach(const Target &target, const AttachOptions &options,
                                                AttachReport *report) {
  AttachReport own_report;
  AttachReport &out = report != nullptr ? *report : own_report;
  TRY_ASSIGN(auto found, find_kernel(target, options, out));
  if (!found.profile->has_types())
    return fail(
        ErrorCode::no_types,
        fmt::format("the kernel carries no BTF, so the layout of its structures is unknown; give a Volatility 3 "
                    "ISF file of this very build with --profile ({})",
                    found.profile->banner()));
  use_own_page_table(*target.memory, found, out);
  auto kernel = std::make_unique<Kernel>(*target.memory, std::move(found.location), std::move(found.profile));
  return std::unique_ptr<OperatingSystem>(std::make_unique<LinuxSystem>(target, std::move(kernel)));
}

} // namespace lararium::linux_guest
