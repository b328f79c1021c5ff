#include "lararium/driver/qemu/monitor_text.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <fmt/format.h>
#include <utility>

namespace lararium::qemu {
namespace {

constexpr std::size_t max_blocks = 1 << 16;
constexpr std::size_t max_ranges = 1 << 18;
constexpr std::size_t max_vcpus = 1 << 13;
constexpr std::size_t max_disks = 1 << 12;
constexpr std::size_t max_devices = 1 << 10;

std::string_view next_line(std::string_view &text) {
  auto line = text.substr(0, text.find('\n'));
  text.remove_prefix(std::min(line.size() + 1, text.size()));
  if (line.ends_with('\r'))
    line.remove_suffix(1);
  return line;
}

std::vector<std::string_view> words_of(std::string_view line, std::size_t limit) {
  std::vector<std::string_view> words;
  while (words.size() < limit) {
    line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
    if (line.empty())
      break;
    words.push_back(line.substr(0, line.find_first_of(" \t")));
    line.remove_prefix(words.back().size());
  }
  return words;
}

std::optional<std::uint64_t> parse_hex(std::string_view text) {
  if (text.starts_with("0x"))
    text.remove_prefix(2);
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, 16);
  if (error != std::errc() || end != text.data() + text.size())
    return std::nullopt;
  return number;
}

std::optional<std::uint64_t> parse_decimal(std::string_view text) {
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size())
    return std::nullopt;
  return number;
}

// "4" "KiB" of `info ramblock`
std::optional<std::uint64_t> parse_page_size(std::string_view number, std::string_view unit) {
  const auto value = parse_decimal(number);
  if (!value || *value > 1024)
    return std::nullopt;
  if (unit == "B")
    return value;
  if (unit == "KiB")
    return *value << 10;
  if (unit == "MiB")
    return *value << 20;
  if (unit == "GiB")
    return *value << 30;
  return std::nullopt;
}

// "  0000000000000000-000000000009ffff (prio 0, ram): pc.ram @00000000000c0000 KVM"
std::optional<FlatRange> parse_flat_range(std::string_view line) {
  line.remove_prefix(std::min(line.find_first_not_of(' '), line.size()));
  const auto dash = line.find('-'), open = line.find(" (prio "), close = line.find("): ");
  if (dash == std::string_view::npos || open == std::string_view::npos || close == std::string_view::npos ||
      dash > open || open > close)
    return std::nullopt;
  const auto first = parse_hex(line.substr(0, dash)), last = parse_hex(line.substr(dash + 1, open - dash - 1));
  if (!first || !last || *last < *first || *last - *first == UINT64_MAX)
    return std::nullopt;
  FlatRange range{.base = Gpa{*first}, .size = *last - *first + 1, .region = {}};
  auto kind = line.substr(open, close - open);
  kind.remove_prefix(std::min(kind.find(", "), kind.size()));
  kind.remove_prefix(std::min<std::size_t>(2, kind.size()));
  if (kind.starts_with("nv-")) {
    range.nonvolatile = true;
    kind.remove_prefix(3);
  }
  // "ramd" is a device's memory that is passed through; "romd" is flash, which a device answers writes to.
  range.kind = kind == "ram" ? FlatRange::Kind::ram : kind == "rom" ? FlatRange::Kind::rom : FlatRange::Kind::other;
  auto name = line.substr(close + 3);
  for (const std::string_view accelerator : {" KVM", " HVF", " whpx", " xen"}) // who maps the range, from 4.1 on
    if (name.ends_with(accelerator))
      name.remove_suffix(accelerator.size());
  constexpr std::size_t offset_digits = 16;
  if (const auto at = name.rfind(" @"); at != std::string_view::npos && name.size() - at == 2 + offset_digits)
    if (const auto offset = parse_hex(name.substr(at + 2))) {
      range.offset = *offset;
      name = name.substr(0, at);
    }
  range.region = name;
  return range;
}

// The text after KEY= in a dump of registers, where KEY starts a word; QEMU pads short keys with a blank ("R8 =").
std::string_view field(std::string_view section, std::string_view key) {
  for (std::size_t at = section.find(key); at != std::string_view::npos; at = section.find(key, at + 1)) {
    if (at != 0 && section[at - 1] != ' ' && section[at - 1] != '\n')
      continue;
    auto rest = section.substr(at + key.size());
    if (rest.starts_with(' '))
      rest.remove_prefix(1);
    if (rest.starts_with('='))
      return rest.substr(1);
  }
  return {};
}

std::uint64_t number_at(std::string_view text) {
  std::uint64_t number = 0;
  std::from_chars(text.data(), text.data() + text.size(), number, 16);
  return number;
}

std::uint64_t register_of(std::string_view section, std::string_view long_name, std::string_view short_name) {
  const auto text = field(section, long_name);
  return number_at(text.empty() ? field(section, short_name) : text);
}

struct Segment {
  std::uint16_t selector = 0;
  Gva base;
};

// "CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]"
Segment segment_of(std::string_view section, std::string_view name) {
  const auto words = words_of(field(section, name).substr(0, 64), 2);
  if (words.size() < 2)
    return {};
  return {static_cast<std::uint16_t>(number_at(words[0])), Gva{number_at(words[1])}};
}

// "GDT=     fffffe0000001000 0000007f"
std::pair<Gva, std::uint16_t> table_of(std::string_view section, std::string_view name) {
  const auto words = words_of(field(section, name).substr(0, 64), 2);
  if (words.size() < 2)
    return {};
  return {Gva{number_at(words[0])}, static_cast<std::uint16_t>(number_at(words[1]))};
}

VcpuRegisters parse_one_vcpu(std::string_view section) {
  VcpuRegisters result;
  // The order of the instruction encoding.
  constexpr auto names = std::to_array<std::pair<std::string_view, std::string_view>>({{"RAX", "EAX"},
                                                                                       {"RCX", "ECX"},
                                                                                       {"RDX", "EDX"},
                                                                                       {"RBX", "EBX"},
                                                                                       {"RSP", "ESP"},
                                                                                       {"RBP", "EBP"},
                                                                                       {"RSI", "ESI"},
                                                                                       {"RDI", "EDI"},
                                                                                       {"R8", ""},
                                                                                       {"R9", ""},
                                                                                       {"R10", ""},
                                                                                       {"R11", ""},
                                                                                       {"R12", ""},
                                                                                       {"R13", ""},
                                                                                       {"R14", ""},
                                                                                       {"R15", ""}});
  for (std::size_t i = 0; i < names.size(); i++)
    result.general[i] = names[i].second.empty() ? number_at(field(section, names[i].first))
                                                : register_of(section, names[i].first, names[i].second);
  result.rip = Gva{register_of(section, "RIP", "EIP")};
  result.rsp = Gva{result.general[4]};
  result.rflags = register_of(section, "RFL", "EFL");
  result.halted = number_at(field(section, "HLT")) != 0;
  result.cr0 = number_at(field(section, "CR0"));
  result.cr2 = number_at(field(section, "CR2"));
  result.cr3 = number_at(field(section, "CR3"));
  result.cr4 = number_at(field(section, "CR4"));
  result.efer = number_at(field(section, "EFER"));
  result.cs = segment_of(section, "CS").selector;
  result.ss = segment_of(section, "SS").selector;
  result.fs_base = segment_of(section, "FS").base;
  result.gs_base = segment_of(section, "GS").base;
  result.tr_base = segment_of(section, "TR").base;
  std::tie(result.gdt_base, result.gdt_limit) = table_of(section, "GDT");
  std::tie(result.idt_base, result.idt_limit) = table_of(section, "IDT");
  return result;
}

// Does a region of this name belong to the block? A block of an object or device has its path in front of the name.
bool names_block(std::string_view region, std::string_view block) {
  return block == region ||
         (block.size() > region.size() && block.ends_with(region) && block[block.size() - region.size() - 1] == '/');
}

// Is the block memory that was given to the guest as RAM? Blocks of devices have the device's path in front
// ("0000:00:02.0/vga.vram"); firmware images are known by name.
bool is_main_block(std::string_view name) {
  constexpr std::string_view objects = "/objects/";
  if (name.starts_with(objects))
    return true;
  if (name.find('/') != std::string_view::npos)
    return false;
  return name != "pc.bios" && name != "pc.rom" && name != "isa-bios" && !name.starts_with("system.flash") &&
         !name.ends_with(".rom") && !name.ends_with(".vram") && !name.starts_with("ivshmem");
}

} // namespace

Result<std::vector<RamBlock>> parse_ram_blocks(std::string_view text) {
  std::vector<RamBlock> result;
  while (!text.empty()) {
    // NAME PSIZE UNIT OFFSET USED TOTAL [HVA RO]
    const auto words = words_of(next_line(text), 9);
    if (words.size() != 6 && words.size() != 8)
      continue;
    const auto page = parse_page_size(words[1], words[2]);
    const auto used = parse_hex(words[4]);
    if (!page || !used)
      continue;
    RamBlock block{.name = std::string(words[0]), .page_size = *page, .used = *used, .host = {}};
    if (words.size() == 8)
      if (const auto host = parse_hex(words[6]))
        block.host = Hva{*host};
    if (result.size() == max_blocks)
      return fail(ErrorCode::corrupt, "QEMU lists too many RAM blocks");
    result.push_back(std::move(block));
  }
  if (result.empty())
    return fail(ErrorCode::protocol, "QEMU's list of RAM blocks is not understood");
  return result;
}

Result<std::vector<FlatRange>> parse_flat_view(std::string_view text) {
  // A view starts with a line "FlatView #N", then come its address spaces, its root, and its ranges.
  std::vector<FlatRange> result;
  bool wanted = false, found = false;
  while (!text.empty()) {
    const auto line = next_line(text);
    if (line.starts_with("FlatView #")) {
      if (found)
        break;
      wanted = false;
    } else if (line.starts_with(" AS \"memory\", ")) {
      wanted = found = true;
    } else if (wanted && line.starts_with("  ")) {
      const auto range = parse_flat_range(line);
      if (!range)
        continue;
      if (result.size() == max_ranges)
        return fail(ErrorCode::corrupt, "QEMU lists too many memory ranges");
      result.push_back(*range);
    }
  }
  if (!found)
    return fail(ErrorCode::protocol, "QEMU's list of memory ranges is not understood");
  std::ranges::sort(result, {}, &FlatRange::base);
  for (std::size_t i = 0; i < result.size(); i++)
    if (result[i].base.value + (result[i].size - 1) < result[i].base.value ||
        (i > 0 && result[i].base - result[i - 1].base < result[i - 1].size))
      return fail(ErrorCode::corrupt, fmt::format("QEMU's memory ranges overlap at {:#x}", result[i].base.value));
  return result;
}

Result<HostAddress> parse_host_address(std::string_view text) {
  // "Host virtual address for 0x0 (pc.ram) is 0x7f6c5fe00000"
  const auto line = next_line(text);
  const auto open = line.find(" ("), close = line.rfind(") is 0x");
  if (!line.starts_with("Host virtual address for ") || open == std::string_view::npos ||
      close == std::string_view::npos || close < open + 2)
    return fail(ErrorCode::protocol, fmt::format("QEMU does not tell a host address: {}", line.substr(0, 120)));
  const auto host = parse_hex(line.substr(close + 5));
  if (!host)
    return fail(ErrorCode::protocol, "QEMU tells a malformed host address");
  return HostAddress{std::string(line.substr(open + 2, close - open - 2)), Hva{*host}};
}

Result<std::vector<VcpuRegisters>> parse_registers(std::string_view text) {
  constexpr std::string_view heading = "CPU#";
  constexpr std::size_t section_limit = 8192; // what is wanted comes before the FPU's registers
  std::vector<VcpuRegisters> result;
  std::size_t at = text.find(heading);
  while (at != std::string_view::npos && result.size() < max_vcpus) {
    const auto begin = at + heading.size();
    at = text.find(heading, begin);
    const auto section = text.substr(begin, std::min(at - begin, section_limit));
    auto number = section.substr(0, section.find_first_not_of("0123456789"));
    const auto index = parse_decimal(number);
    if (!index || *index >= max_vcpus || field(section, "CR3").empty())
      continue;
    auto registers = parse_one_vcpu(section);
    registers.index = static_cast<std::uint32_t>(*index);
    result.push_back(registers);
  }
  if (result.empty())
    return fail(ErrorCode::protocol, "QEMU's registers are not understood (is this an x86 guest?)");
  return result;
}

std::vector<BlockCounters> parse_block_counters(std::string_view text) {
  std::vector<BlockCounters> result;
  while (!text.empty() && result.size() < max_disks) {
    // "virtio0: rd_bytes=0 wr_bytes=0 rd_operations=0 wr_operations=0 ..."; a node's name may stand in parentheses
    const auto line = next_line(text);
    const auto colon = line.find(": ");
    if (colon == std::string_view::npos || colon == 0)
      continue;
    BlockCounters counters;
    const auto name = words_of(line.substr(0, colon), 1);
    if (name.empty() || field(line, "rd_bytes").empty())
      continue;
    counters.device = name[0];
    const auto value = [&](std::string_view key) {
      const auto word = words_of(field(line, key), 1);
      return word.empty() ? 0 : parse_decimal(word[0]).value_or(0);
    };
    counters.read_bytes = value("rd_bytes");
    counters.written_bytes = value("wr_bytes");
    counters.read_operations = value("rd_operations");
    counters.write_operations = value("wr_operations");
    result.push_back(std::move(counters));
  }
  return result;
}

std::vector<NetworkDevice> parse_network_devices(std::string_view text) {
  std::vector<NetworkDevice> result;
  bool is_device = false;
  while (!text.empty() && result.size() < max_devices) {
    // "net0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56", and under it " \\ tap0:
    // index=0,type=tap,..."
    const auto line = next_line(text);
    const auto colon = line.find(": ");
    if (colon == std::string_view::npos)
      continue;
    const auto words = words_of(line.substr(0, colon), 2);
    const auto facts = line.substr(colon + 2);
    const auto fact = [&](std::string_view key) {
      for (std::size_t at = 0; at < facts.size();) {
        const auto end = std::min(facts.find(',', at), facts.size());
        if (const auto each = facts.substr(at, end - at); each.starts_with(key))
          return std::string(each.substr(key.size()));
        at = end + 1;
      }
      return std::string();
    };
    if (words.size() == 2 && words[0] == "\\") {
      if (is_device && result.back().peer.empty())
        result.back().peer = words[1];
      continue;
    }
    is_device = words.size() == 1 && fact("type=") == "nic";
    if (!is_device)
      continue;
    NetworkDevice device{std::string(words[0]), fact("model="), fact("macaddr="), {}};
    // One with several queues is listed once for each.
    const auto known = std::ranges::find(result, device.name, &NetworkDevice::name);
    if (known == result.end())
      result.push_back(std::move(device));
    else
      std::rotate(known, known + 1, result.end()); // whose peer comes next
  }
  return result;
}

std::vector<ConfiguredMac> parse_configured_macs(std::string_view text) {
  std::vector<ConfiguredMac> result;
  std::string mac, peer;
  const auto finish = [&] {
    if (!mac.empty() && !peer.empty() && result.size() < max_devices)
      result.push_back({std::exchange(peer, {}), std::exchange(mac, {})});
    mac.clear();
    peer.clear();
  };
  while (!text.empty()) {
    // "dev: virtio-net-device, id \"\"", and indented under it "mac = \"52:54:00:12:34:56\"", "netdev = \"net0\""
    const auto line = next_line(text);
    const auto words = words_of(line, 3);
    if (!words.empty() && (words[0] == "dev:" || words[0] == "bus:")) {
      finish();
      continue;
    }
    if (words.size() != 3 || words[1] != "=" || words[2].size() < 2 || !words[2].starts_with('"') ||
        !words[2].ends_with('"'))
      continue;
    const auto value = words[2].substr(1, words[2].size() - 2);
    if (words[0] == "mac")
      mac = value;
    else if (words[0] == "netdev")
      peer = value;
  }
  finish();
  return result;
}

RunState run_state_of(std::string_view name) {
  if (name == "running")
    return RunState::running;
  if (name == "shutdown")
    return RunState::shut_down;
  if (name == "inmigrate" || name == "postmigrate" || name == "finish-migrate")
    return RunState::migrating;
  if (name == "guest-panicked" || name == "internal-error")
    return RunState::crashed;
  for (const std::string_view stopped :
       {"paused", "prelaunch", "suspended", "io-error", "watchdog", "debug", "save-vm", "restore-vm", "colo"})
    if (name == stopped)
      return RunState::paused;
  return RunState::unknown;
}

Result<RunState> parse_run_state(std::string_view text) {
  auto line = next_line(text);
  constexpr std::string_view prefix = "VM status: ";
  if (!line.starts_with(prefix))
    return fail(ErrorCode::protocol, fmt::format("QEMU does not tell its state: {}", line.substr(0, 120)));
  line.remove_prefix(prefix.size());
  // The reason, where it tells more than "paused", stands in parentheses.
  if (const auto open = line.find('('), close = line.rfind(')');
      open != std::string_view::npos && close != std::string_view::npos && close > open)
    if (const auto reason = run_state_of(line.substr(open + 1, close - open - 1)); reason != RunState::unknown)
      return reason;
  return run_state_of(line.substr(0, line.find(' ')));
}

Result<std::vector<BlockRange>> main_memory(const std::vector<RamBlock> &blocks, const std::vector<FlatRange> &ranges,
                                            std::span<const std::string> shared) {
  const auto is_wanted = [&](const std::string &block) {
    return is_main_block(block) || std::ranges::any_of(shared, [&](const std::string &name) {
             return block.size() > name.size() && names_block(name, block);
           });
  };
  std::vector<BlockRange> result;
  for (const auto &range : ranges) {
    if (range.kind == FlatRange::Kind::other || range.nonvolatile)
      continue;
    std::size_t best = blocks.size();
    for (std::size_t i = 0; i < blocks.size(); i++)
      if (blocks[i].name == range.region || (best == blocks.size() && names_block(range.region, blocks[i].name)))
        best = i;
    if (best == blocks.size() || !is_wanted(blocks[best].name))
      continue;
    if (range.offset > blocks[best].used || range.size > blocks[best].used - range.offset)
      return fail(ErrorCode::corrupt, fmt::format("QEMU's memory range at {:#x} is larger than its block {}",
                                                  range.base.value, blocks[best].name));
    if (!result.empty()) {
      auto &last = result.back();
      if (last.block == best && last.base + last.size == range.base && last.offset + last.size == range.offset) {
        last.size += range.size;
        continue;
      }
    }
    result.push_back({range.base, range.size, best, range.offset});
  }
  if (result.empty())
    return fail(ErrorCode::protocol, "no RAM is found in QEMU's memory map");
  return result;
}

} // namespace lararium::qemu
