// The way from user mode into a system call: where each CPU's registers lead to (that code itself is covered by the
// check of text), the tables, and the dispatcher's calls, entry by entry.
//
// Since 6.9 (1e3ad78334a6, also in 5.10 to 6.8 stable trees) x86-64 dispatches by a switch in x64_sys_call(), and
// sys_call_table is only there for tracing: a rootkit that wants to be called has to change the calls in the switch.

#include "decode.h"
#include "lararium/detect/check.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <initializer_list>
#include <iterator>
#include <optional>
#include <vector>

namespace lararium::detect {
namespace {

constexpr std::uint64_t most_entries = 1024;        // system calls; Linux has some 470
constexpr std::uint64_t largest_function = 1 << 16; // of the dispatcher: some 5 KiB

// arch/x86/kernel/cpu/common.c, syscall_init(): the kernel's code segment and the 32-bit user one; TF, IF, DF, IOPL, NT
// and AC are cleared by every kernel that is read here, by newer ones more.
constexpr std::uint64_t linux_selectors = 0x0023'0010;
constexpr std::uint64_t flags_cleared = 0x47700;
constexpr std::uint64_t fred = std::uint64_t{1} << 32; // in CR4

// A function that is one: what the kernel's own tables lead to.
bool is_system_call(std::string_view name) {
  return name.find("sys_") != name.npos &&
         (name.starts_with("__x64_") || name.starts_with("__ia32_") || name.starts_with("__x32_") ||
          name.starts_with("sys_") || name.starts_with("__se_") || name.starts_with("__do_"));
}

class SystemCalls final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override {
    bool any = look_at_table(scene, "sys_call_table", "the system call table", findings);
    any |= look_at_table(scene, "ia32_sys_call_table", "the 32-bit system call table", findings);
    any |= look_at_table(scene, "x32_sys_call_table", "the x32 system call table", findings);
    for (const char *dispatcher : {"x64_sys_call", "ia32_sys_call", "x32_sys_call", "do_syscall_64",
                                   "do_fast_syscall_32", "do_int80_syscall_32"})
      any |= look_at_function(scene, dispatcher, findings);
    if (!any)
      return fail(ErrorCode::not_found, "the kernel's system call tables and dispatchers have no symbols");
    look_at_registers(scene, findings);
    return {};
  }

private:
  static void look_at_registers(const Scene &scene, Findings &findings) {
    const auto &vcpus = scene.vcpus_with_msrs();
    if (!vcpus) {
      findings.could_not_see("the CPUs' registers for system calls: " + vcpus.error().describe());
      return;
    }
    Findings found;
    for (const VcpuRegisters &vcpu : *vcpus) {
      if (!vcpu.msrs)
        continue;
      if ((vcpu.cr4 & fred) != 0) {
        findings.could_not_see(
            fmt::format("CPU {} takes system calls by FRED, whose registers are not read", vcpu.index));
        continue;
      }
      const SystemCallMsrs &msrs = *vcpu.msrs;
      // The trampoline was there from 4.15 to 4.20, with page table isolation.
      look_at_entry(scene, vcpu, "LSTAR", msrs.lstar, {"entry_SYSCALL_64", "entry_SYSCALL_64_trampoline"}, found);
      // Where 32-bit programs are not run, and CSTAR on Intel's CPUs from 5.16 on (TDX), there is none.
      if (msrs.cstar)
        look_at_entry(scene, vcpu, "CSTAR", msrs.cstar,
                      {"entry_SYSCALL_compat", "ignore_sysret", "entry_SYSCALL32_ignore"}, found);
      if (msrs.sysenter_eip)
        look_at_entry(scene, vcpu, "SYSENTER_EIP", msrs.sysenter_eip, {"entry_SYSENTER_compat"}, found);
      if (msrs.star >> 32 != linux_selectors)
        add(vcpu, "STAR",
            fmt::format("has the segments {:#010x} instead of {:#010x}", msrs.star >> 32, linux_selectors), found)
            .with("found", msrs.star)
            .with("expected", linux_selectors << 32);
      if ((msrs.fmask & flags_cleared) != flags_cleared)
        add(vcpu, "FMASK",
            fmt::format("leaves flags {:#x} of the program set in the kernel", flags_cleared & ~msrs.fmask), found)
            .with("found", msrs.fmask);
      if ((vcpu.efer & 1) == 0)
        add(vcpu, "EFER", "makes a system call an invalid instruction", found).with("found", vcpu.efer);
    }
    if (found.items().empty())
      return;
    // A kernel that runs virtual machines itself has their values in these registers until it returns to a program
    // (arch/x86/kvm/x86.c, kvm_set_user_return_msr()), and a VM of its may be on the CPU.
    if (runs_virtual_machines(scene))
      findings.could_not_see(fmt::format("{}, as a guest of this guest may want it", found.items().front().sentence));
    else
      std::ranges::move(found.items(), std::back_inserter(findings.items()));
  }

  static bool runs_virtual_machines(const Scene &scene) {
    const auto modules = scene.system().modules();
    return modules && std::ranges::any_of(modules->items, [](const KernelModule &module) {
             return (module.name == "kvm_intel" || module.name == "kvm_amd") && module.references > 0;
           });
  }

  static Finding &add(const VcpuRegisters &vcpu, std::string_view name, const std::string &what, Findings &findings) {
    return findings.add({.subject = fmt::format("{} of CPU {}", name, vcpu.index),
                         .severity = Severity::critical,
                         .technique = "T1014",
                         .sentence = fmt::format("{} of CPU {} {}", name, vcpu.index, what)});
  }

  // The entry code is mapped at more than one place: it is told by where it lies in memory.
  static void look_at_entry(const Scene &scene, const VcpuRegisters &vcpu, std::string_view name, Gva target,
                            std::initializer_list<std::string_view> lawful, Findings &findings) {
    const auto &kernel = scene.kernel();
    const auto used = kernel.space().translate(target);
    std::optional<Gva> expected;
    for (const auto symbol : lawful) {
      const auto entry = kernel.symbol(symbol);
      if (!entry)
        continue;
      expected = expected.value_or(*entry);
      const auto own = kernel.space().translate(*entry);
      if (target == *entry || (used && own && used->address == own->address))
        return;
    }
    if (!expected) {
      findings.could_not_see(fmt::format("{}: the kernel has no symbol {}", name, *lawful.begin()));
      return;
    }
    const CodeRange *range = scene.code().find(target);
    add(vcpu, name,
        fmt::format("takes system calls to {} instead of {}", scene.describe(target), scene.describe(*expected)),
        findings)
        .with("found", target)
        .with("expected", *expected)
        .with("owner", std::string(range != nullptr ? name_of(range->owner) : "nobody"));
  }

  // The table ends where the next symbol begins.
  static std::uint64_t size_up_to_next_symbol(const linux_guest::Kernel &kernel, Gva address, std::uint64_t most) {
    const std::uint64_t offset = address - kernel.location().base;
    std::uint64_t size = 8;
    while (size < most) {
      const auto nearest = kernel.profile().nearest(offset + size);
      if (!nearest || nearest->value != offset)
        break;
      size += 8;
    }
    return std::min(size, most);
  }

  static bool look_at_table(const Scene &scene, const char *symbol, const char *title, Findings &findings) {
    const auto &kernel = scene.kernel();
    const auto table = kernel.symbol(symbol);
    if (!table)
      return false;
    const std::uint64_t bytes = size_up_to_next_symbol(kernel, *table, most_entries * 8);
    std::vector<std::uint64_t> entries(bytes / 8);
    entries.resize(kernel.space().read_prefix(*table, std::as_writable_bytes(std::span(entries))) / 8);
    for (std::size_t number = 0; number < entries.size(); ++number) {
      const Gva handler{entries[number]};
      if (!handler) // padding up to the next symbol
        continue;
      const auto found = scene.system().symbolize(handler);
      const CodeRange *range = scene.code().find(handler);
      const bool lawful = range != nullptr && range->owner == CodeOwner::kernel && found && found->second == 0 &&
                          names_system_call(kernel, handler);
      if (!lawful)
        findings
            .add({.subject = fmt::format("{}[{}]", symbol, number),
                  .severity = Severity::critical,
                  .technique = "T1014",
                  .sentence = fmt::format("entry {} of {} leads to {}, which is no system call of this kernel", number,
                                          title, scene.describe(handler))})
            .with("address", *table + number * 8)
            .with("symbol", std::string(symbol))
            .with("number", std::uint64_t{number})
            .with("found", handler)
            .with("owner", std::string(range != nullptr ? name_of(range->owner) : "nobody"));
    }
    return true;
  }

  // Several names can stand at one address.
  static bool names_system_call(const linux_guest::Kernel &kernel, Gva handler) {
    const std::uint64_t offset = handler - kernel.location().base;
    const auto &profile = kernel.profile();
    // The symbols are sorted by value: those at this address stand together.
    std::size_t low = 0, high = profile.symbol_count();
    while (low < high) {
      const std::size_t middle = (low + high) / 2;
      const ProfileSymbol symbol = profile.symbol_at(middle);
      if (symbol.base == SymbolBase::image && symbol.value < offset)
        low = middle + 1;
      else
        high = middle;
    }
    for (; low < profile.symbol_count(); ++low) {
      const ProfileSymbol symbol = profile.symbol_at(low);
      if (symbol.base != SymbolBase::image || symbol.value != offset)
        return false;
      if (is_system_call(symbol.name))
        return true;
    }
    return false;
  }

  // Every direct call and jump must stay in the kernel's own text, and every call arrive at a function's first byte.
  static bool look_at_function(const Scene &scene, const char *name, Findings &findings) {
    const auto &kernel = scene.kernel();
    const auto begin = kernel.symbol(name);
    if (!begin)
      return false;
    const std::uint64_t size = size_up_to_next_symbol(kernel, *begin, largest_function);
    std::vector<std::byte> code(size);
    code.resize(kernel.space().read_prefix(*begin, code));
    const Decoder decoder;
    for (std::size_t at = 0; at < code.size();) {
      const Gva address = *begin + at;
      const auto instruction = decoder.decode(Bytes(code).subspan(at), address);
      if (!instruction) {
        // int3 and padding decode; what does not is data behind a jump, or a patch that is under way
        ++at;
        continue;
      }
      at += instruction->length;
      if (!instruction->target)
        continue;
      const Gva target = *instruction->target;
      const CodeRange *range = scene.code().find(target);
      const bool inside = target >= *begin && target - *begin < size;
      const auto symbol = scene.system().symbolize(target);
      const bool own = range != nullptr && range->owner == CodeOwner::kernel;
      // A live patch, a kprobe or a tracer on the dispatcher itself leads to their trampolines.
      const bool traced =
          range != nullptr && (range->owner == CodeOwner::ftrace_trampoline || range->owner == CodeOwner::kprobe_slot);
      if (inside || traced || (own && (!instruction->is_call || (symbol && symbol->second == 0))))
        continue;
      findings
          .add({.subject = fmt::format("{}+{:#x}", name, address - *begin),
                .severity = Severity::critical,
                .technique = "T1014",
                .sentence = fmt::format("a {} in {}, on the way of every system call, leads to {}",
                                        instruction->is_call ? "call" : "jump", name, scene.describe(target))})
          .with("address", address)
          .with("symbol", fmt::format("{}+{:#x}", name, address - *begin))
          .with("found", target)
          .with("found_bytes", std::vector<std::byte>(code.begin() + static_cast<std::ptrdiff_t>(address - *begin),
                                                      code.begin() + static_cast<std::ptrdiff_t>(at)))
          .with("owner", std::string(range != nullptr ? name_of(range->owner) : "nobody"));
    }
    return true;
  }
};

LARARIUM_CHECK(
    SystemCalls, "system_calls", "T1014", "the registers, tables and calls that lead into a system call",
    "On each CPU, LSTAR, CSTAR and SYSENTER_EIP must lead to the kernel's entry code, and STAR, FMASK and EFER be as "
    "Linux sets them; QEMU's monitors do not show these registers, they are read in QEMU's own memory, and what "
    "cannot be found there without doubt is said not to be seen. "
    "Every entry of sys_call_table and of the 32-bit table must be the first byte of a system call of the "
    "kernel's own text, and every direct call and jump in x64_sys_call() and its kin must stay in that text. "
    "An entry that was exchanged for another system call of the same kernel is not seen here.")

} // namespace
} // namespace lararium::detect
