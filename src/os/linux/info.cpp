#include "info.h"

#include "lararium/os/linux/tasks.h"

#include <algorithm>
#include <array>
#include <bit>
#include <fmt/format.h>

namespace lararium::linux_guest {
namespace {

constexpr std::size_t text_limit = 512;

class InfoReader {
public:
  explicit InfoReader(const Kernel &kernel) : kernel_(kernel), types_(kernel.types()) {}

  SystemInfo read() {
    SystemInfo info;
    info.banner = kernel_.profile().banner();
    info.build_id = kernel_.profile().build_id().hex();
    info.kernel_base = kernel_.location().base;
    info.kernel_physical_base = kernel_.location().physical_base;
    info.paging_levels = kernel_.location().root.levels;
    names(info);
    clocks(info);
    cpus(info);
    memory(info);
    load(info);
    security(info);
    taint(info);
    info.command_line = text_of("saved_command_line", 4096);
    page_table_isolation(info);
    tasks(info);
    return info;
  }

private:
  template <class T> [[nodiscard]] std::optional<T> global(std::string_view name, std::uint64_t offset = 0) const {
    const auto address = kernel_.symbol(name);
    return address ? kernel_.read<T>(*address + offset) : std::nullopt;
  }

  // The string that a `char *` variable points to.
  [[nodiscard]] std::string text_of(std::string_view pointer, std::size_t limit) const {
    const auto target = global<std::uint64_t>(pointer);
    return target && *target != 0 ? kernel_.space().read_c_string(Gva{*target}, limit).value_or("") : std::string();
  }

  void names(SystemInfo &info) const {
    // The initial UTS namespace: new_utsname holds arrays of 65 bytes.
    const auto address = kernel_.symbol("init_uts_ns");
    if (!address)
      return;
    const auto field = [&](std::string_view path) {
      const auto location = types_.field("uts_namespace", path);
      return location ? kernel_.space().read_c_string(*address + location->offset, 65).value_or("") : std::string();
    };
    info.release = field("name.release");
    info.version = field("name.version");
    info.machine = field("name.machine");
    info.hostname = field("name.nodename");
    info.domain_name = field("name.domainname");
    if (info.domain_name == "(none)")
      info.domain_name.clear();
  }

  void clocks(SystemInfo &info) const {
    const auto boot = boot_time_ns(kernel_);
    if (boot && *boot > 0)
      info.boot_time_ns = static_cast<std::uint64_t>(*boot);
    // The last update of the timekeeper, at most a tick old while the guest runs; with all CPUs idle (NO_HZ) older.
    const auto seconds = types_.field("timekeeper", "xtime_sec");
    const auto nanoseconds = types_.field("timekeeper", "tkr_mono.xtime_nsec");
    const auto shift = types_.field("timekeeper", "tkr_mono.shift");
    const auto timekeeper = timekeeper_address(kernel_);
    if (!timekeeper || !seconds || !nanoseconds || !shift)
      return;
    const auto s = kernel_.read<std::uint64_t>(*timekeeper + seconds->offset);
    const auto ns = kernel_.read<std::uint64_t>(*timekeeper + nanoseconds->offset);
    const auto bits = kernel_.read<std::uint32_t>(*timekeeper + shift->offset);
    if (!s || !ns || !bits || *bits > 63)
      return;
    info.current_time_ns = *s * 1'000'000'000 + (*ns >> *bits);
    if (info.boot_time_ns && *info.current_time_ns > *info.boot_time_ns)
      info.uptime_ns = *info.current_time_ns - *info.boot_time_ns;
  }

  [[nodiscard]] std::optional<std::uint32_t> mask_weight(std::string_view name) const {
    // struct cpumask: a bitmap of NR_CPUS bits, of which nr_cpu_ids count.
    const auto address = kernel_.symbol(name);
    if (!address)
      return std::nullopt;
    const std::uint32_t bits = kernel_.cpu_count();
    std::uint32_t weight = 0;
    for (std::uint32_t word = 0; word * 64 < bits; ++word) {
      const auto value = kernel_.read<std::uint64_t>(*address + 8 * word);
      if (!value)
        return std::nullopt;
      const std::uint32_t left = bits - word * 64;
      weight += static_cast<std::uint32_t>(std::popcount(left >= 64 ? *value : *value & ((1ULL << left) - 1)));
    }
    return weight;
  }

  void cpus(SystemInfo &info) const {
    info.cpus_online = mask_weight("__cpu_online_mask");
    info.cpus_possible = mask_weight("__cpu_possible_mask");
    info.cpus_present = mask_weight("__cpu_present_mask");
  }

  // Counters of enum zone_stat_item and node_stat_item, by the enumerator's name; per-CPU differences that were not yet
  // folded in are added where the kernel's own /proc/meminfo adds none, so they are left out here too.
  [[nodiscard]] std::optional<std::uint64_t> counter(std::string_view array, std::string_view item) const {
    const auto index = types_.enumerator(item);
    const auto address = kernel_.symbol(array);
    if (!index || !address || *index < 0 || *index > 256)
      return std::nullopt;
    const auto value = kernel_.read<std::int64_t>(*address + 8 * static_cast<std::uint64_t>(*index));
    if (!value)
      return std::nullopt;
    return *value > 0 ? static_cast<std::uint64_t>(*value) : 0;
  }

  void memory(SystemInfo &info) const {
    const auto pages = [](std::optional<std::uint64_t> count) -> std::optional<std::uint64_t> {
      return count ? std::optional(*count * page_size) : std::nullopt;
    };
    info.memory_total = pages(global<std::uint64_t>("_totalram_pages"));
    const auto free_pages = counter("vm_zone_stat", "NR_FREE_PAGES");
    info.memory_free = pages(free_pages);
    const auto file_pages = counter("vm_node_stat", "NR_FILE_PAGES");
    const auto shared = counter("vm_node_stat", "NR_SHMEM");
    info.shared_memory = pages(shared);
    const auto swap_cache = counter("vm_node_stat", "NR_SWAPCACHE").value_or(0);
    // /proc/meminfo counts block devices' page cache as Buffers, apart from Cached; the sum is NR_FILE_PAGES.
    if (file_pages)
      info.memory_cached = *file_pages > swap_cache ? (*file_pages - swap_cache) * page_size : 0;
    info.memory_buffers = block_device_pages();
    if (info.memory_buffers && info.memory_cached && *info.memory_cached >= *info.memory_buffers)
      info.memory_cached = *info.memory_cached - *info.memory_buffers;
    available(info, free_pages);
    swap(info);
  }

  // nr_blockdev_pages(): the page cache of all block devices' inodes.
  [[nodiscard]] std::optional<std::uint64_t> block_device_pages() const {
    const auto superblock = global<std::uint64_t>("blockdev_superblock");
    const auto inodes = types_.field("super_block", "s_inodes");
    const auto link = types_.field("inode", "i_sb_list");
    const auto count = types_.field("inode", "i_data.nrpages");
    if (!superblock || *superblock == 0 || !inodes || !link || !count)
      return std::nullopt;
    std::uint64_t sum = 0;
    const auto walk = walk_list(kernel_, Gva{*superblock} + inodes->offset, 65536, [&](Gva node) {
      sum += kernel_.read<std::uint64_t>(node - link->offset + count->offset).value_or(0);
      return true;
    });
    return walk.end == WalkEnd::complete ? std::optional(sum * page_size) : std::nullopt;
  }

  // si_mem_available() in mm/show_mem.c: free memory above the reserves, the page cache but for what must stay, and
  // reclaimable kernel memory.
  void available(SystemInfo &info, std::optional<std::uint64_t> free_pages) const {
    const auto reserve = global<std::uint64_t>("totalreserve_pages");
    const auto active = counter("vm_node_stat", "NR_ACTIVE_FILE");
    const auto inactive = counter("vm_node_stat", "NR_INACTIVE_FILE");
    const auto slab = counter("vm_node_stat", "NR_SLAB_RECLAIMABLE_B");
    const auto other = counter("vm_node_stat", "NR_KERNEL_MISC_RECLAIMABLE");
    const auto low = low_watermark();
    if (!free_pages || !reserve || !active || !inactive || !slab || !other || !low)
      return;
    const std::uint64_t cache = *active + *inactive;
    const std::uint64_t reclaimable = *slab + *other;
    const auto signed_sum = static_cast<std::int64_t>(*free_pages) - static_cast<std::int64_t>(*reserve) +
                            static_cast<std::int64_t>(cache - std::min(cache / 2, *low)) +
                            static_cast<std::int64_t>(reclaimable - std::min(reclaimable / 2, *low));
    info.memory_available = signed_sum > 0 ? static_cast<std::uint64_t>(signed_sum) * page_size : 0;
  }

  // The sum of all zones' low watermarks.
  [[nodiscard]] std::optional<std::uint64_t> low_watermark() const {
    const auto zones = types_.field("pglist_data", "node_zones");
    const auto zone_size = types_.size_of("zone");
    const auto mark = types_.field("zone", "_watermark[1]"); // WMARK_LOW
    if (!zones || !zone_size || !mark || *zone_size == 0)
      return std::nullopt;
    std::uint64_t sum = 0;
    for (const Gva node : nodes())
      for (std::uint64_t at = 0; at + *zone_size <= zones->size && at < 16 * *zone_size; at += *zone_size)
        sum += kernel_.read<std::uint64_t>(node + zones->offset + at + mark->offset).value_or(0);
    return sum;
  }

  [[nodiscard]] std::vector<Gva> nodes() const {
    std::vector<Gva> result;
    if (const auto table = kernel_.symbol("node_data")) {
      for (std::uint64_t i = 0; i < 1024; ++i) { // MAX_NUMNODES
        const auto node = kernel_.read_pointer(*table + 8 * i);
        if (!node || !*node)
          break;
        result.push_back(*node);
      }
    } else if (const auto only = kernel_.symbol("contig_page_data")) {
      result.push_back(*only);
    }
    return result;
  }

  void swap(SystemInfo &info) const {
    if (const auto total = global<std::int64_t>("total_swap_pages"))
      info.swap_total = static_cast<std::uint64_t>(std::max<std::int64_t>(*total, 0)) * page_size;
    if (const auto free = global<std::int64_t>("nr_swap_pages"))
      info.swap_free = static_cast<std::uint64_t>(std::max<std::int64_t>(*free, 0)) * page_size;
  }

  void load(SystemInfo &info) const {
    const auto address = kernel_.symbol("avenrun");
    if (!address)
      return;
    std::array<std::uint64_t, 3> fixed{};
    if (!kernel_.space().read(*address, std::as_writable_bytes(std::span(fixed))))
      return;
    constexpr double one = 1 << 11; // FIXED_1
    info.load = {static_cast<double>(fixed[0]) / one, static_cast<double>(fixed[1]) / one,
                 static_cast<double>(fixed[2]) / one};
  }

  void security(SystemInfo &info) const {
    if (const auto level = global<std::uint32_t>("kernel_locked_down")) {
      // Values of enum lockdown_reason that stand for the levels, by name: their numbers move with each new reason.
      const auto integrity = types_.enumerator("LOCKDOWN_INTEGRITY_MAX");
      const auto confidentiality = types_.enumerator("LOCKDOWN_CONFIDENTIALITY_MAX");
      if (*level == 0)
        info.lockdown = "none";
      else if (confidentiality && *level == *confidentiality)
        info.lockdown = "confidentiality";
      else if (integrity && *level == *integrity)
        info.lockdown = "integrity";
      else
        info.lockdown = fmt::format("unknown ({})", *level);
    }
    security_modules(info);
    if (const auto enforcing = types_.field("selinux_state", "enforcing"))
      if (const auto initialised = types_.field("selinux_state", "initialized");
          initialised && global<std::uint8_t>("selinux_state", initialised->offset).value_or(0) != 0)
        info.selinux_enforcing = global<std::uint8_t>("selinux_state", enforcing->offset).value_or(0) != 0;
    if (const auto enabled = global<std::int32_t>("apparmor_initialized"))
      info.apparmor_enabled = *enabled != 0;
  }

  void security_modules(SystemInfo &info) const {
    const std::string names = text_of("lsm_names", text_limit);
    for (std::size_t at = 0; at < names.size();) {
      const auto comma = std::min(names.find(',', at), names.size());
      if (comma > at)
        info.security_modules.push_back(names.substr(at, comma - at));
      at = comma + 1;
    }
    if (!info.security_modules.empty())
      return;
    // Newer kernels build that text when it is read, from a table of the active modules' identities that is there
    // since 6.8 (f3b8788cde61).
    const auto table = kernel_.symbol("lsm_idlist");
    const auto name = types_.field("lsm_id", "name");
    const std::uint32_t count = std::min(global<std::uint32_t>("lsm_active_cnt").value_or(0), 32u);
    for (std::uint32_t i = 0; table && name && i < count; ++i) {
      const auto id = kernel_.read_pointer(*table + 8 * i);
      const auto text = id ? kernel_.read_pointer(*id, *name) : std::nullopt;
      if (text)
        info.security_modules.push_back(kernel_.space().read_c_string(*text, 64).value_or("?"));
    }
  }

  void taint(SystemInfo &info) const {
    info.taint = global<std::uint64_t>("tainted_mask");
    if (!info.taint)
      return;
    constexpr std::string_view letters = "PFSRMBUDAWCIOELKXTNJ"; // taint_flags[] in kernel/panic.c, bit by bit
    for (std::size_t bit = 0; bit < letters.size(); ++bit)
      if ((*info.taint >> bit & 1) != 0)
        info.taint_letters += letters[bit];
  }

  void page_table_isolation(SystemInfo &info) const {
    // Every process has two page tables then, the user half in the page behind the kernel half, and X86_FEATURE_PTI is
    // set in the boot CPU's capability words (word 7, bit 11 since 4.15).
    const auto words = types_.field("cpuinfo_x86", "x86_capability");
    if (const auto word = words ? global<std::uint32_t>("boot_cpu_data", words->offset + 4 * 7) : std::nullopt)
      info.page_table_isolation = (*word >> 11 & 1) != 0;
  }

  void tasks(SystemInfo &info) const {
    ViewStatus status;
    if (const auto all = list_tasks(kernel_, true, status)) {
      info.thread_count = all->size();
      info.process_count = static_cast<std::uint64_t>(
          std::ranges::count_if(*all, [](const TaskEntry &entry) { return entry.pid == entry.tgid; }));
    } else {
      status.warn(fmt::format("the processes cannot be counted: {}", all.error().describe()));
    }
    if (info.release.empty())
      status.warn("the kernel's release and host name are not where its types say");
    info.status = std::move(status);
  }

  const Kernel &kernel_;
  const Types &types_;
};

} // namespace

Result<SystemInfo> read_info(const Kernel &kernel) { return InfoReader(kernel).read(); }

} // namespace lararium::linux_guest
