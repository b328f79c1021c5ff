#include "lararium/os/linux/cpu_registers.h"

#include "lararium/os/linux/tasks.h"

#include <algorithm>
#include <fmt/format.h>
#include <initializer_list>

namespace lararium::linux_guest {
namespace {

constexpr std::uint64_t write_protect = 1 << 16;                                  // in CR0
constexpr std::uint64_t protection_keys = 1 << 22, fred = std::uint64_t{1} << 32; // in CR4
// arch/x86/include/asm/cpufeatures.h: word and bit
constexpr std::uint64_t feature_pti = 7 * 32 + 11, feature_ospke = 16 * 32 + 4;

// Whether the kernel makes use of a feature of the processor's; nothing: it does not tell.
std::optional<bool> has_feature(const Kernel &kernel, std::uint64_t feature) {
  const auto cpu = kernel.symbol("boot_cpu_data");
  const auto words = kernel.types().field("cpuinfo_x86", "x86_capability");
  if (!cpu || !words || feature / 32 * 4 + 4 > words->size)
    return std::nullopt;
  const auto word = kernel.read<std::uint32_t>(*cpu + words->offset + feature / 32 * 4);
  return word ? std::optional((*word >> feature % 32 & 1) != 0) : std::nullopt;
}

// A kernel maps its own tables and entry code at more than one place: they are told by where they lie in memory.
bool is_same_memory(const Kernel &kernel, Gva one, Gva other) {
  const auto a = kernel.space().translate(one), b = kernel.space().translate(other);
  return one == other || (a && b && a->address == b->address);
}

void judge_entry(const Kernel &kernel, const VcpuRegisters &vcpu, std::vector<RegisterDeviation> &out) {
  if (!vcpu.msrs || (vcpu.cr4 & fred) != 0)
    return;
  // The trampoline was there from 4.15 to 4.20, with page table isolation.
  std::optional<Gva> expected;
  for (const char *name : {"entry_SYSCALL_64", "entry_SYSCALL_64_trampoline"})
    if (const auto entry = kernel.symbol(name)) {
      if (is_same_memory(kernel, vcpu.msrs->lstar, *entry))
        return;
      expected = expected.value_or(*entry);
    }
  if (expected)
    out.push_back(
        {"LSTAR", vcpu.msrs->lstar.value, expected->value,
         fmt::format("takes system calls to {:#x}, which is not the kernel's entry", vcpu.msrs->lstar.value)});
}

void judge_tables(const Kernel &kernel, const VcpuRegisters &vcpu, std::vector<RegisterDeviation> &out) {
  constexpr std::uint64_t gate_size = 16, gates = 256;
  if (const auto table = kernel.symbol("idt_table"); table && (vcpu.cr4 & fred) == 0) {
    if (!is_same_memory(kernel, vcpu.idt_base, *table))
      out.push_back(
          {"IDTR", vcpu.idt_base.value, table->value,
           fmt::format("takes interrupts by a table at {:#x} that is not the kernel's", vcpu.idt_base.value)});
    else if (vcpu.idt_limit < gate_size * 32 - 1 || vcpu.idt_limit > gate_size * gates - 1)
      out.push_back({"IDTR", vcpu.idt_limit, gate_size * gates - 1,
                     fmt::format("takes interrupts by a table of {} bytes", vcpu.idt_limit + 1)});
  }
  std::optional<Gva> first;
  for (std::uint32_t cpu = 0; cpu < kernel.cpu_count(); ++cpu)
    if (const auto table = kernel.per_cpu_symbol("gdt_page", cpu)) {
      if (is_same_memory(kernel, vcpu.gdt_base, *table))
        return;
      if (!first || cpu == vcpu.index)
        first = table;
    }
  if (first)
    out.push_back({"GDTR", vcpu.gdt_base.value, first->value,
                   fmt::format("uses segments at {:#x} that are not the kernel's", vcpu.gdt_base.value)});
}

std::string names_of_bits(std::uint64_t bits) {
  struct Name {
    unsigned bit;
    std::string_view name;
  };
  std::string text;
  for (const auto &[bit, name] :
       {Name{11, "UMIP"}, {16, "FSGSBASE"}, {20, "SMEP"}, {21, "SMAP"}, {22, "PKE"}, {23, "CET"}})
    if ((bits >> bit & 1) != 0) {
      text += text.empty() ? "" : ", ";
      text += name;
      bits &= ~(std::uint64_t{1} << bit);
    }
  return bits == 0 ? text : fmt::format("{}{}{:#x}", text, text.empty() ? "" : ", ", bits);
}

void judge_protections(const Kernel &kernel, const VcpuRegisters &vcpu, std::vector<RegisterDeviation> &out) {
  if ((vcpu.cr0 & write_protect) == 0)
    out.push_back({"CR0", vcpu.cr0, vcpu.cr0 | write_protect, "does not heed write protection: CR0.WP is off"});
  std::uint64_t wanted = 0;
  if (const auto pinned = kernel.symbol("cr4_pinned_bits"))
    wanted = kernel.read<std::uint64_t>(*pinned).value_or(0);
  if (has_feature(kernel, feature_ospke).value_or(false))
    wanted |= protection_keys;
  if (const std::uint64_t lacking = wanted & ~vcpu.cr4; lacking != 0)
    out.push_back({"CR4", vcpu.cr4, vcpu.cr4 | wanted,
                   fmt::format("has protections off that the kernel switched on: {}", names_of_bits(lacking))});
}

} // namespace

std::vector<RegisterDeviation> judge_registers(const Kernel &kernel, const VcpuRegisters &vcpu) {
  std::vector<RegisterDeviation> out;
  if (!vcpu.runs_64_bit_kernel())
    return out;
  judge_entry(kernel, vcpu, out);
  judge_tables(kernel, vcpu, out);
  judge_protections(kernel, vcpu, out);
  return out;
}

bool PageTables::hold(const x86_64::PageTableRoot &root) const {
  return std::ranges::binary_search(tables_, root.table) ||
         (isolated_ && std::ranges::binary_search(tables_, root.kernel_half().table));
}

Result<PageTables> PageTables::read(const Kernel &kernel) {
  const auto pgd = kernel.types().field("mm_struct", "pgd"), mm = kernel.types().field("task_struct", "mm"),
             borrowed = kernel.types().field("task_struct", "active_mm");
  if (!pgd || !mm || !borrowed)
    return fail(ErrorCode::no_types, "the kernel's type information lacks mm_struct.pgd or task_struct.active_mm");
  PageTables result;
  std::vector<Gva> spaces;
  const auto add_task = [&](Gva task) {
    for (const FieldLocation &field : {*mm, *borrowed})
      if (const auto space = kernel.read_pointer(task, field); space && kernel.is_kernel_address(*space))
        if (spaces.empty() || spaces.back() != *space)
          spaces.push_back(*space);
  };
  ViewStatus status;
  TRY_ASSIGN(const auto tasks, list_tasks(kernel, true, status));
  result.complete_ = !status.raced && !status.truncated;
  for (const TaskEntry &task : tasks)
    add_task(task.task);
  // Idle tasks are in no list, and who exits leaves it before its CPU leaves him.
  if (const auto first = kernel.symbol("init_task"))
    add_task(*first);
  for (std::uint32_t cpu = 0; cpu < kernel.cpu_count(); ++cpu) {
    if (const auto idle = kernel.per_cpu_symbol("idle_threads", cpu))
      if (const auto task = kernel.read_pointer(*idle); task && kernel.is_kernel_address(*task))
        add_task(*task);
    if (const auto running = running_task(kernel, cpu))
      add_task(running->task);
  }
  for (const char *own : {"init_mm", "efi_mm", "tboot_mm"})
    if (const auto space = kernel.symbol(own))
      spaces.push_back(*space);
  for (const char *pointer : {"poking_mm", "text_poke_mm"}) // for patching: 4fc19708b165, 5.2; renamed in 6.16
    if (const auto place = kernel.symbol(pointer))
      if (const auto space = kernel.read_pointer(*place); space && kernel.is_kernel_address(*space))
        spaces.push_back(*space);
  std::ranges::sort(spaces);
  const auto rest = std::ranges::unique(spaces);
  spaces.erase(rest.begin(), rest.end());
  for (const Gva space : spaces)
    if (const auto table = kernel.read_pointer(space, *pgd); table && kernel.is_kernel_address(*table))
      if (const auto frame = kernel.space().translate(*table))
        result.tables_.push_back(frame->address.page());
  result.tables_.push_back(kernel.location().root.kernel_half().table);
  // By which CPUs are started, and the machine is restarted.
  const auto trampoline = kernel.types().field("real_mode_header", "trampoline_pgd");
  if (const auto header = kernel.symbol("real_mode_header"); header && trampoline)
    if (const auto at = kernel.read_pointer(*header); at && kernel.is_kernel_address(*at))
      if (const auto table = kernel.read_field(*at, *trampoline))
        result.tables_.push_back(Gpa{*table}.page());
  std::ranges::sort(result.tables_);
  result.isolated_ = has_feature(kernel, feature_pti).value_or(true);
  return result;
}

} // namespace lararium::linux_guest
