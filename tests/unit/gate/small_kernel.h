// A kernel of a few pages: text with one place for each of the kernel's own changes, and read-only data.
#pragma once

#include "../os/linux/tiny_guest.h"

#include "lararium/driver/fake.h"
#include "lararium/os/linux/kernel.h"
#include "lararium/symbols/profile.h"

#include <array>
#include <initializer_list>
#include <memory>
#include <string_view>
#include <vector>

namespace lararium::test {

inline std::vector<std::byte> code(std::initializer_list<unsigned> bytes) {
  std::vector<std::byte> result;
  for (const unsigned byte : bytes)
    result.push_back(static_cast<std::byte>(byte));
  return result;
}

class SmallKernel {
public:
  static constexpr std::uint64_t ram = 4 << 20, image = 1 << 20, image_size = 0x10000;
  static constexpr Gva base{0xffffffff81000000};
  static constexpr std::uint64_t text = 0, text_end = 0x3000, rodata = 0x4000, rodata_end = 0x6000;
  static constexpr std::uint64_t static_call = 0x100, other_function = 0x200, lock = 0x300, trampoline = 0x400,
                                 next_page_call = 0x1ffd; // across a page's end
  static constexpr std::uint64_t system_call_entry = 0x280, pinned = 0x9800, idt = 0x8000;
  static constexpr std::uint64_t probe_table = 0x9000, probe = 0x9400; // the first bucket's only one

  SmallKernel() : memory(ram), tables(memory, Gpa{0x1000}) {
    const auto flags = FakePageTables::present;
    for (std::uint64_t at = 0; at < image_size; at += page_size)
      tables.map(base + at, Gpa{image + at}, FakePageTables::PageSize::small,
                 at >= 0x8000 ? flags | FakePageTables::writable : std::uint64_t{flags});
    put(0x7000, bytes_of("Linux version 1.2.3 of a test, long enough for what is remembered of it, and some more"));
    // struct static_call_site: two distances each
    const auto site = [&](std::uint64_t entry, std::uint64_t place) {
      memory.write_value(Gpa{image + entry}, static_cast<std::int32_t>(place - entry));
      memory.write_value(Gpa{image + entry + 4}, 0);
    };
    site(0x4000, static_call);
    site(0x4008, next_page_call);
    memory.write_value(Gpa{image + 0x4010}, static_cast<std::int32_t>(lock - 0x4010));
    put(static_call, code({0x0f, 0x1f, 0x44, 0, 0}));
    put(next_page_call, code({0x0f, 0x1f, 0x44, 0, 0}));
    put(trampoline, code({0xc3, 0xcc, 0xcc, 0xcc, 0xcc}));
    put(lock, code({0xf0}));

    ProfileSource source;
    source.banner = "Linux version 1.2.3";
    const auto symbol = [&](std::string_view name, std::uint64_t value) {
      source.symbols.push_back({name, value, SymbolBase::image, 'T'});
    };
    symbol("_text", 0);
    symbol("_stext", text);
    symbol("function", 0x80);
    symbol("other_function", other_function);
    symbol("__SCT__call", trampoline);
    symbol("_etext", text_end);
    symbol("__start_rodata", rodata);
    symbol("__start_static_call_sites", 0x4000);
    symbol("__stop_static_call_sites", 0x4010);
    symbol("__smp_locks", 0x4010);
    symbol("__smp_locks_end", 0x4014);
    symbol("sys_call_table", 0x5000);
    symbol("__end_rodata", rodata_end);
    symbol("linux_banner", 0x7000);
    symbol("idt_table", idt);
    symbol("entry_SYSCALL_64", system_call_entry);
    symbol("cr4_pinned_bits", pinned);
    memory.write_value(Gpa{image + pinned}, std::uint64_t{3 << 20}); // SMEP, SMAP
    symbol("kprobe_table", probe_table);
    LayoutText types(R"(hlist_node: next ptr, pprev ptr
kprobe: hlist hlist_node, addr ptr, opcode u8
optimised_instruction: copied_insn u8[4]
optimized_kprobe: kp kprobe, optinsn optimised_instruction
)");
    const auto btf = types.btf();
    source.btf = btf;
    auto profile = Profile::build(source);
    kernel = std::make_unique<linux_guest::Kernel>(
        memory, linux_guest::KernelLocation{{tables.root(), 4}, base, Gpa{image}, image_size, "a test"},
        profile ? *profile : nullptr);
  }

  // Puts a probe into the kernel's table, whatever stands at its place; nothing: takes it out.
  void set_probe(std::optional<std::uint64_t> at, Bytes original = {}) {
    memory.write_value(Gpa{image + probe_table}, at ? (base + probe).value : 0);
    if (!at)
      return;
    memory.write_value(Gpa{image + probe}, std::uint64_t{0});
    memory.write_value(Gpa{image + probe + 16}, (base + *at).value);
    put(probe + 24, original.first(1));
    put(probe + 32, original.subspan(1, 4));
  }

  void put(std::uint64_t at, Bytes bytes) { memory.write(Gpa{image + at}, bytes); }
  [[nodiscard]] std::vector<std::byte> get(std::uint64_t at, std::size_t size) const {
    std::vector<std::byte> bytes(size);
    static_cast<void>(memory.peek(Gpa{image + at}, bytes));
    return bytes;
  }
  // A call or jump from one place of the image to another.
  static std::vector<std::byte> branch(unsigned opcode, std::uint64_t from, std::uint64_t to) {
    std::vector<std::byte> bytes = code({opcode, 0, 0, 0, 0});
    const auto distance = static_cast<std::int32_t>(to - (from + 5));
    std::memcpy(bytes.data() + 1, &distance, sizeof distance);
    return bytes;
  }

  FakeMemory memory;
  FakePageTables tables;
  std::unique_ptr<linux_guest::Kernel> kernel;
};

} // namespace lararium::test
