// Executable memory that nothing the kernel knows of owns: what a module that took itself off every list, or code that
// was copied out of one, still needs. Read from the page tables themselves, so that there is no record to forge.

#include "code_sites.h"
#include "lararium/detect/check.h"
#include "lararium/os/linux/list.h"
#include "lararium/os/linux/tasks.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <set>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;
using linux_guest::LayoutResolver;

constexpr std::size_t extent_limit = 1 << 17;
constexpr std::size_t pack_limit = 1 << 14;
constexpr Gva module_area_end{0xffffffffff000000}; // MODULES_END
constexpr std::uint64_t vmalloc_bytes_4 = std::uint64_t{32} << 40, vmalloc_bytes_5 = std::uint64_t{12800} << 40;

struct Range {
  Gva begin, end;
};

// Allocators of executable memory that hand out parts: what is free in them belongs to them.
std::vector<Range> reserves(const Kernel &kernel) {
  std::vector<Range> ranges;
  LayoutResolver layout(kernel.types());
  // kernel/bpf/core.c: packs of 2 MiB (57631054fae6, 5.18)
  const auto list = kernel.symbol("pack_list");
  const auto node = layout.optional("bpf_prog_pack", "list"), memory = layout.optional("bpf_prog_pack", "ptr");
  if (list && node && memory)
    linux_guest::walk_list(kernel, *list, pack_limit, [&](Gva link) {
      constexpr std::uint64_t largest_pack = 64 << 20; // 2 MiB for each NUMA node
      if (const auto begin = kernel.read_pointer(link - node->offset, *memory)) {
        const auto nodes = kernel.symbol("nr_online_nodes");
        const std::uint64_t count = nodes ? kernel.read<std::uint32_t>(*nodes).value_or(1) : 1;
        ranges.push_back(
            {*begin, *begin + std::min((std::uint64_t{2} << 20) * std::max<std::uint64_t>(count, 1), largest_pack)});
      }
      return true;
    });
  return ranges;
}

// Classic BPF programs, that the kernel translates but names nowhere: filters of seccomp and of sockets, and the one
// that classifies PTP packets. Since 5.18 they lie in the packs above.
class ClassicPrograms {
public:
  explicit ClassicPrograms(const Scene &scene) : kernel_(scene.kernel()) {
    LayoutResolver layout(kernel_.types());
    function_ = layout.optional("bpf_prog", "bpf_func");
    length_ = layout.optional("bpf_prog", "jited_len");
    if (!function_ || !length_)
      return;
    if (const auto symbol = kernel_.symbol("ptp_insns"))
      add(kernel_.read_pointer(*symbol));
    from_tasks(scene, layout);
    from_sockets(scene, layout);
  }
  [[nodiscard]] std::vector<Range> take() { return std::move(ranges_); }

private:
  static constexpr std::size_t program_limit = 1 << 16;

  void add(std::optional<Gva> program) {
    if (!program || !kernel_.is_kernel_address(*program) || ranges_.size() >= program_limit)
      return;
    const auto code = kernel_.read_pointer(*program, *function_);
    const auto length = kernel_.read_field(*program, *length_);
    constexpr std::uint64_t largest = 16 << 20;
    if (code && length && *length != 0 && *length <= largest)
      ranges_.push_back({*code, *code + *length});
  }

  void from_tasks(const Scene &scene, LayoutResolver &layout) {
    const auto filter = layout.optional("task_struct", "seccomp.filter");
    const auto program = layout.optional("seccomp_filter", "prog"),
               previous = layout.optional("seccomp_filter", "prev");
    if (!filter || !program || !previous)
      return;
    const auto &tasks = scene.tasks();
    if (!tasks)
      return;
    std::set<Gva> known;
    for (const auto &entry : tasks->items) {
      auto current = kernel_.read_pointer(entry.task, *filter);
      while (current && kernel_.is_kernel_address(*current) && known.size() < program_limit &&
             known.insert(*current).second) {
        add(kernel_.read_pointer(*current, *program));
        current = kernel_.read_pointer(*current, *previous);
      }
    }
  }

  void from_sockets(const Scene &scene, LayoutResolver &layout) {
    const auto filter = layout.optional("sock", "sk_filter"), program = layout.optional("sk_filter", "prog");
    const auto sockets = scene.sockets();
    if (!filter || !program || !sockets)
      return;
    for (const Socket &socket : *sockets)
      if (const auto own = kernel_.read_pointer(socket.socket, *filter); own && kernel_.is_kernel_address(*own))
        add(kernel_.read_pointer(*own, *program));
  }

  const Kernel &kernel_;
  std::optional<FieldLocation> function_, length_;
  std::vector<Range> ranges_;
};

// Whether all of a page is what the kernel fills unused code with, or thunks that it lists nowhere.
bool is_filling(const Kernel &kernel, Gva page) {
  std::array<std::byte, page_size> bytes{};
  return !kernel.space().read(page, bytes) || is_filling_or_thunks(bytes);
}

class OrphanCode final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override {
    const Kernel &kernel = scene.kernel();
    // A list that was read in part would make its members' code look like nobody's; who breaks one for good would have
    // no handler judged.
    if (!scene.code().complete()) {
      findings.add({.subject = "the kernel's lists of code",
                    .severity = Severity::high,
                    .technique = "T1562.001",
                    .sentence =
                        "the kernel's lists of modules, BPF programs and tracers contradict themselves: code that "
                        "nobody owns cannot be told from other code"});
      return {};
    }
    auto owned = reserves(kernel);
    if (owned.empty())
      for (const Range &range : ClassicPrograms(scene).take())
        owned.push_back({range.begin.page(), (range.end + page_mask).page()});
    const auto image_end = kernel.location().base + kernel.location().size;
    search(scene, image_end, module_area_end, owned, findings);
    if (const auto base = kernel.symbol("vmalloc_base"))
      if (const auto begin = kernel.read_pointer(*base); begin && kernel.is_kernel_address(*begin))
        search(scene, *begin, *begin + (kernel.location().root.levels == 5 ? vmalloc_bytes_5 : vmalloc_bytes_4), owned,
               findings);
    return {};
  }

private:
  static void search(const Scene &scene, Gva begin, Gva end, const std::vector<Range> &owned, Findings &findings) {
    const Kernel &kernel = scene.kernel();
    Gva orphan_begin, orphan_end;
    const auto give = [&] {
      if (orphan_begin)
        report(scene, orphan_begin, orphan_end, findings);
      orphan_begin = {};
    };
    for (const MappedExtent &extent : kernel.space().extents(begin, end, extent_limit)) {
      if (!extent.executable)
        continue;
      for (Gva page = extent.base; page < extent.base + extent.size; page += page_size) {
        if (is_owned(scene.code(), owned, page) || is_filling(kernel, page))
          continue;
        if (orphan_begin && orphan_end == page) {
          orphan_end += page_size;
          continue;
        }
        give();
        orphan_begin = page;
        orphan_end = page + page_size;
      }
    }
    give();
  }

  // Whether any code that has an owner, or an allocator, lies in the page.
  static bool is_owned(const CodeMap &code, const std::vector<Range> &owned, Gva page) {
    if (std::ranges::any_of(owned, [&](const Range &range) { return page >= range.begin && page < range.end; }))
      return true;
    const auto &ranges = code.ranges();
    auto after = std::ranges::lower_bound(ranges, page + page_size, {}, &CodeRange::begin);
    constexpr int most_overlapping = 8;
    for (int i = 0; i < most_overlapping && after != ranges.begin(); ++i)
      if (--after; after->end > page)
        return true;
    return false;
  }

  static void report(const Scene &scene, Gva begin, Gva end, Findings &findings) {
    std::array<std::byte, 32> head{};
    const bool readable = scene.kernel().space().read(begin, head);
    Finding &finding =
        findings.add({.subject = fmt::format("{:#x}", begin.value),
                      .severity = Severity::critical,
                      .technique = "T1014",
                      .sentence = fmt::format("{} KiB of executable kernel memory at {:#x} belong to no module, no BPF "
                                              "program and no tracer",
                                              (end - begin) >> 10, begin.value)});
    finding.with("address", begin).with("bytes", end - begin);
    if (readable)
      finding.with("found_bytes", std::vector<std::byte>(head.begin(), head.end()));
  }
};

LARARIUM_CHECK(OrphanCode, "orphan_code", "T1014 T1055", "executable kernel memory that nothing owns",
               "Walks the kernel's page tables through the areas of modules and of vmalloc, and compares every "
               "executable page with the code of the listed modules, BPF programs, ftrace trampolines and kprobes. "
               "Pages that hold nothing but filling are left out. Where these lists contradict themselves at each "
               "look, that is the "
               "finding.")

} // namespace
} // namespace lararium::detect
