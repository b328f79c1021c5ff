// What the kernel calls because somebody traces it: ftrace, kprobes, kretprobes, tracepoints. The everyday way to hook
// a kernel since its text cannot simply be written.

#include "handler.h"
#include "lararium/os/linux/list.h"

#include <fmt/format.h>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;
using linux_guest::LayoutResolver;

constexpr std::size_t ops_limit = 1 << 14, probe_limit = 1 << 16, tracepoint_limit = 1 << 16, function_limit = 1 << 10;

class Tracing final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override {
    const bool ftrace = look_at_ftrace(scene, findings);
    const bool kprobes = look_at_kprobes(scene, findings);
    const bool tracepoints = look_at_tracepoints(scene, findings);
    if (!ftrace && !kprobes && !tracepoints)
      return fail(ErrorCode::not_found, "this kernel has neither ftrace nor kprobes nor tracepoints");
    return {};
  }

private:
  static bool look_at_ftrace(const Scene &scene, Findings &findings) {
    const Kernel &kernel = scene.kernel();
    const auto list = kernel.symbol("ftrace_ops_list"), end = kernel.symbol("ftrace_list_end");
    LayoutResolver layout(kernel.types());
    const auto next = layout.optional("ftrace_ops", "next"), function = layout.optional("ftrace_ops", "func"),
               flags = layout.optional("ftrace_ops", "flags");
    if (!list || !end || !next || !function || !flags)
      return false;
    const auto first = kernel.read_pointer(*list);
    if (!first)
      return false;
    linux_guest::walk_chain(kernel, *first, next->offset, ops_limit, [&](Gva ops) {
      if (ops == *end)
        return false;
      const auto handler = kernel.read_pointer(ops, *function);
      // While it is traced, func may be the list function, and what was registered stands in saved_func.
      if (handler)
        judge(scene,
              {ops + function->offset, *handler, fmt::format("the ftrace handler at {:#x}", ops.value), "T1014",
               Trust::no_foreign},
              findings);
      if (const auto saved = kernel.types().field("ftrace_ops", "saved_func"))
        if (const auto own = kernel.read_pointer(ops, *saved); own && own != handler)
          judge(scene,
                {ops + saved->offset, *own, fmt::format("the ftrace handler at {:#x}", ops.value), "T1014",
                 Trust::no_foreign},
                findings);
      return true;
    });
    return true;
  }

  static bool look_at_kprobes(const Scene &scene, Findings &findings) {
    const Kernel &kernel = scene.kernel();
    const auto table = kernel.symbol("kprobe_table");
    LayoutResolver layout(kernel.types());
    const auto chain = layout.optional("kprobe", "hlist"), group = layout.optional("kprobe", "list"),
               address = layout.optional("kprobe", "addr"), before = layout.optional("kprobe", "pre_handler"),
               after = layout.optional("kprobe", "post_handler");
    if (!table || !chain || !group || !address || !before || !after)
      return false;
    const auto aggregate = kernel.symbol("aggr_pre_handler"), returns = kernel.symbol("pre_handler_kretprobe");
    const auto return_handler = layout.optional("kretprobe", "handler"),
               entry_handler = layout.optional("kretprobe", "entry_handler"),
               inner = layout.optional("kretprobe", "kp");
    const auto judge_probe = [&](Gva probe) {
      const Gva place = kernel.read_pointer(probe, *address).value_or(Gva{});
      std::string what;
      const auto judge_member = [&](Gva object, const FieldLocation &field, std::string_view name) {
        const auto handler = kernel.read_pointer(object, field);
        if (!handler || is_lawful(scene, object + field.offset, *handler, Trust::no_foreign))
          return;
        if (findings.is_full())
          return findings.leave_out();
        if (what.empty())
          what = fmt::format("of the kprobe at {}", scene.describe(place));
        judge(scene,
              {object + field.offset, *handler, fmt::format("the {} {}", name, what), "T1014", Trust::no_foreign},
              findings);
      };
      judge_member(probe, *before, "handler");
      judge_member(probe, *after, "post handler");
      if (returns && return_handler && entry_handler && inner && kernel.read_pointer(probe, *before) == returns) {
        judge_member(probe - inner->offset, *return_handler, "return handler");
        judge_member(probe - inner->offset, *entry_handler, "entry handler");
      }
    };
    constexpr std::uint64_t buckets = 64; // KPROBE_TABLE_SIZE
    std::size_t probes = 0;               // of all buckets
    for (std::uint64_t bucket = 0; bucket < buckets; ++bucket)
      if (const auto first = kernel.read_pointer(*table + 8 * bucket))
        linux_guest::walk_chain(kernel, *first, 0, probe_limit, [&](Gva node) {
          const Gva probe = node - chain->offset;
          if (++probes > probe_limit)
            return false;
          judge_probe(probe);
          // Several probes at one place hang under one that calls them in turn.
          if (aggregate && kernel.read_pointer(probe, *before) == aggregate)
            linux_guest::walk_list(kernel, probe + group->offset, probe_limit, [&](Gva link) {
              judge_probe(link - group->offset);
              return ++probes <= probe_limit;
            });
          return true;
        });
    return true;
  }

  static bool look_at_tracepoints(const Scene &scene, Findings &findings) {
    const Kernel &kernel = scene.kernel();
    const auto begin = kernel.symbol("__start___tracepoints_ptrs"), end = kernel.symbol("__stop___tracepoints_ptrs");
    LayoutResolver layout(kernel.types());
    const auto name = layout.optional("tracepoint", "name"), functions = layout.optional("tracepoint", "funcs"),
               function = layout.optional("tracepoint_func", "func");
    const auto stride = kernel.types().size_of("tracepoint_func");
    if (!begin || !end || *end <= *begin || !name || !functions || !function || !stride || *stride == 0)
      return false;
    // Distances from their own place, of 4 bytes (46e0c9be206f, 4.19).
    const std::uint64_t count = std::min<std::uint64_t>((*end - *begin) / 4, tracepoint_limit);
    for (std::uint64_t i = 0; i < count; ++i) {
      const Gva place = *begin + 4 * i;
      const auto distance = kernel.read<std::int32_t>(place);
      if (!distance)
        continue;
      const Gva tracepoint = place + static_cast<std::uint64_t>(std::int64_t{*distance});
      const auto list = kernel.read_pointer(tracepoint, *functions);
      if (!list || !kernel.is_kernel_address(*list))
        continue;
      const auto label = kernel.read_pointer(tracepoint, *name);
      const std::string text = label ? kernel.space().read_c_string(*label, 128).value_or("?") : "?";
      for (std::size_t k = 0; k < function_limit; ++k) {
        const Gva at = *list + k * *stride + function->offset;
        const auto handler = kernel.read_pointer(at);
        if (!handler || !*handler)
          break;
        if (!is_lawful(scene, at, *handler, Trust::no_foreign))
          judge(scene, {at, *handler, fmt::format("a probe of the tracepoint {}", text), "T1014", Trust::no_foreign},
                findings);
      }
    }
    return true;
  }
};

LARARIUM_CHECK(
    Tracing, "tracing", "T1014", "handlers of ftrace, kprobes and tracepoints",
    "Every handler must lie in the kernel, in a BPF program, or in a module of the kernel's own tree. One in "
    "nobody's code is critical; one in a module from outside the tree is reported too, for this is how "
    "rootkits hook: a lawful tracer of that kind is a false alarm that you can --skip.")

} // namespace
} // namespace lararium::detect
