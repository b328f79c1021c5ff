// Interrupt and segment descriptors: what the CPUs really use, by their registers, against the kernel's own tables.

#include "lararium/detect/check.h"
#include "segments.h"

#include <array>
#include <fmt/format.h>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;

struct Gate { // Intel SDM volume 3, 6.14.1
  std::uint16_t offset_low, selector;
  std::uint8_t stack, attributes;
  std::uint16_t offset_middle;
  std::uint32_t offset_high, reserved;
  [[nodiscard]] Gva target() const {
    return Gva{std::uint64_t{offset_high} << 32 | std::uint64_t{offset_middle} << 16 | offset_low};
  }
  [[nodiscard]] bool present() const { return (attributes & 0x80) != 0; }
};
static_assert(sizeof(Gate) == 16);

class Interrupts final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override {
    const Kernel &kernel = scene.kernel();
    const auto table = kernel.symbol("idt_table");
    if (!table)
      return fail(ErrorCode::not_found, "the kernel has no symbol idt_table");
    look_at_gates(scene, *table, "idt_table", findings);
    const auto own = kernel.space().translate(*table);
    for (const VcpuRegisters &vcpu : scene.vcpus()) {
      if (!vcpu.paging() || !vcpu.idt_base)
        continue;
      // Linux maps its table at a fixed place, read-only: another view of the same page.
      const auto used = kernel.space().translate(vcpu.idt_base);
      if (own && used && own->address == used->address)
        continue;
      findings
          .add({.subject = fmt::format("IDTR of CPU {}", vcpu.index),
                .severity = Severity::critical,
                .technique = "T1014",
                .sentence = fmt::format("CPU {} takes interrupts by a table at {:#x} that is not the kernel's",
                                        vcpu.index, vcpu.idt_base.value)})
          .with("found", vcpu.idt_base)
          .with("expected", *table);
      look_at_gates(scene, vcpu.idt_base, fmt::format("the table of CPU {}", vcpu.index), findings);
    }
    look_at_segments(scene, findings);
    look_at_descriptors(scene, findings);
    return {};
  }

private:
  static void look_at_gates(const Scene &scene, Gva table, const std::string &name, Findings &findings) {
    std::array<Gate, 256> gates{};
    if (!scene.kernel().space().read(table, std::as_writable_bytes(std::span(gates))))
      return;
    for (std::size_t vector = 0; vector < gates.size(); ++vector) {
      const Gate &gate = gates[vector];
      if (!gate.present())
        continue;
      const CodeRange *owner = scene.code().find(gate.target());
      constexpr std::uint16_t kernel_code = 0x10;
      if (owner != nullptr && owner->owner == CodeOwner::kernel && gate.selector == kernel_code)
        continue;
      // Exceptions that no CPU raises keep their gates of early boot, into code that was freed since.
      if (owner != nullptr && owner->owner == CodeOwner::kernel_init &&
          scene.describe(gate.target()).starts_with("early_idt_handler"))
        continue;
      findings
          .add({.subject = fmt::format("{}[{}]", name, vector),
                .severity = Severity::critical,
                .technique = "T1014",
                .sentence = fmt::format("interrupt {} is handled by {}, outside of the kernel's text", vector,
                                        scene.describe(gate.target()))})
          .with("address", table + vector * sizeof(Gate))
          .with("number", std::uint64_t{vector})
          .with("found", gate.target())
          .with("selector", std::uint64_t{gate.selector})
          .with("owner", std::string(owner != nullptr ? name_of(owner->owner) : "nobody"));
    }
  }

  static void look_at_descriptors(const Scene &scene, Findings &findings) {
    const Kernel &kernel = scene.kernel();
    for (std::uint32_t cpu = 0; cpu < kernel.cpu_count(); ++cpu) {
      const auto table = kernel.per_cpu_symbol("gdt_page", cpu);
      std::array<std::uint64_t, segment_count> descriptors{};
      if (!table || !kernel.space().read(*table, std::as_writable_bytes(std::span(descriptors))))
        continue;
      for (unsigned index = 0; index < segment_count; ++index) {
        const std::string_view why = what_is_wrong(index, descriptors[index]);
        if (why.empty())
          continue;
        if (findings.is_full()) {
          findings.leave_out();
          continue;
        }
        findings
            .add({.subject = fmt::format("GDT[{}] of CPU {}", index, cpu),
                  .severity = Severity::critical,
                  .technique = "T1014",
                  .sentence = fmt::format("segment descriptor {} of CPU {}, {:#018x}, {}", index, cpu,
                                          descriptors[index], why)})
            .with("address", *table + index * sizeof(std::uint64_t))
            .with("number", std::uint64_t{index})
            .with("found", descriptors[index]);
      }
    }
  }

  // Each CPU's table of segments is the start of its per-CPU gdt_page.
  static void look_at_segments(const Scene &scene, Findings &findings) {
    const Kernel &kernel = scene.kernel();
    for (const VcpuRegisters &vcpu : scene.vcpus()) {
      const auto table = kernel.per_cpu_symbol("gdt_page", vcpu.index);
      if (!vcpu.gdt_base || !table)
        continue;
      const auto own = kernel.space().translate(*table), used = kernel.space().translate(vcpu.gdt_base);
      if (!own || (used && used->address == own->address))
        continue;
      findings
          .add({.subject = fmt::format("GDTR of CPU {}", vcpu.index),
                .severity = Severity::high,
                .technique = "T1014",
                .sentence = fmt::format("CPU {} uses segments at {:#x} that are not the kernel's", vcpu.index,
                                        vcpu.gdt_base.value)})
          .with("found", vcpu.gdt_base)
          .with("expected", *table);
    }
  }
};

LARARIUM_CHECK(
    Interrupts, "interrupts", "T1014", "interrupt and segment tables of each CPU",
    "Each CPU's IDTR and GDTR must name the kernel's own tables, and every gate must lead into the kernel's "
    "text with its code segment. Every segment descriptor must be what Linux has at its place: no call gate, "
    "none that gives a program the kernel's privilege. Needs the vCPUs' registers for the first part.")

} // namespace
} // namespace lararium::detect
