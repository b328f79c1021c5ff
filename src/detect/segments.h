// What Linux puts into a CPU's table of segments (arch/x86/kernel/cpu/common.c, gdt_page, the same since 2.6.25 but for
// the accessed bits), and what no entry of it may be. A pure function on what was read.
#pragma once

#include <cstdint>
#include <string_view>

namespace lararium::detect {

inline constexpr unsigned segment_count = 16; // GDT_ENTRIES

// Empty: lawful, else why not.
[[nodiscard]] inline std::string_view what_is_wrong(unsigned index, std::uint64_t descriptor) {
  constexpr std::uint64_t accessed = std::uint64_t{1} << 40, present = std::uint64_t{1} << 47;
  const auto type = static_cast<unsigned>(descriptor >> 40 & 15),
             privilege = static_cast<unsigned>(descriptor >> 45 & 3);
  const bool is_system = (descriptor >> 44 & 1) == 0, is_code = !is_system && (type & 8) != 0,
             is_64_bit = (descriptor >> 53 & 1) != 0;
  const auto fixed = [&](std::uint64_t lawful) -> std::string_view {
    return (descriptor & ~accessed) == (lawful & ~accessed) ? "" : "is not what the kernel puts there";
  };
  switch (index) {
  case 1: return fixed(0x00cf9b000000ffff); // the kernel's code, 32 bits
  case 2: return fixed(0x00af9b000000ffff); // the kernel's code
  case 3: return fixed(0x00cf93000000ffff); // the kernel's data
  case 4: return fixed(0x00cffb000000ffff); // code of programs, 32 bits
  case 5: return fixed(0x00cff3000000ffff); // data of programs
  case 6: return fixed(0x00affb000000ffff); // code of programs
  case 9:
  case 11: return ""; // the upper halves of the two before: part of an address
  default: break;
  }
  if ((descriptor & present) == 0)
    return "";
  switch (index) {
  case 8: // the task's state: available or busy
    return is_system && (type == 9 || type == 11) && privilege == 0 ? "" : "is no task state of the kernel's";
  case 10: return is_system && type == 2 && privilege == 0 ? "" : "is no local table of segments"; // a program's LDT
  case 12:
  case 13:
  case 14: // a program's own (set_thread_area): data or 32-bit code of its own privilege
    if (is_system)
      return type == 12 ? "is a call gate: a way into the kernel" : "is a system descriptor among a program's own";
    return privilege != 3 || (is_code && is_64_bit) ? "is none that a program can set" : "";
  case 15: return !is_system && !is_code && privilege == 3 ? "" : "is not the CPU's number"; // read by getcpu()
  default: return is_system && type == 12 ? "is a call gate: a way into the kernel" : "stands where Linux has none";
  }
}

} // namespace lararium::detect
