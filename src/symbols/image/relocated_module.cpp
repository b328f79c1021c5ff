#include "lararium/symbols/relocated_module.h"

#include <algorithm>
#include <cstring>
#include <elf.h>
#include <limits>

namespace lararium {
namespace {

constexpr std::size_t relocation_limit = 1 << 22; // amdgpu has 600,000
constexpr std::size_t unknown_limit = 1 << 20;
constexpr std::uint64_t largest_module = 256 << 20;
constexpr std::uint64_t alignment = 4096;

// How many bytes a relocation fills in; 0: none. What the kernel does not know it does not load
// (arch/x86/kernel/module.c).
std::uint8_t width_of(std::uint32_t type) {
  switch (type) {
  case R_X86_64_32:
  case R_X86_64_32S:
  case R_X86_64_PC32:
  case R_X86_64_PLT32: return 4;
  case R_X86_64_64:
  case R_X86_64_PC64: return 8;
  default: return 0;
  }
}

bool is_relative(std::uint32_t type) {
  return type == R_X86_64_PC32 || type == R_X86_64_PLT32 || type == R_X86_64_PC64;
}

} // namespace

class RelocatedModule::Maker {
public:
  Maker(const ModuleFile &file, const Find &symbol) : file_(file), symbol_(symbol) {}

  Result<RelocatedModule> make(const Find &section, std::uint64_t elsewhere) {
    TRY(place(section, elsewhere));
    std::size_t room = relocation_limit;
    for (const ModuleFile::Relocations &table : file_.relocations()) {
      const std::size_t number = numbers_[table.section];
      if (number == none)
        continue;
      for (std::size_t i = 0; i < table.count(); ++i) {
        if (room-- == 0 || made_.unknown_.size() >= unknown_limit)
          return fail(ErrorCode::corrupt, "the module has more addresses to fill in than modules have");
        apply(number, table.at(i));
      }
    }
    for (std::size_t i = 0; i < file_.symbol_count(); ++i)
      if (const auto symbol = file_.symbol(i); symbol->name.starts_with("__SCT__"))
        if (const auto address = address_of(*symbol, true))
          made_.trampolines_.push_back(*address);
    std::ranges::sort(made_.unknown_, {}, &Place::at);
    return std::move(made_);
  }

private:
  static constexpr std::size_t none = std::numeric_limits<std::size_t>::max();

  Result<void> place(const Find &section, std::uint64_t elsewhere) {
    std::uint64_t total = 0;
    for (const ModuleFile::Section &each : file_.sections()) {
      numbers_.push_back(none);
      if (!each.is_loaded)
        continue;
      total += each.content.size();
      if (total > largest_module)
        return fail(ErrorCode::corrupt, "the module is larger than modules are");
      numbers_.back() = made_.sections_.size();
      const auto address = section(each.name);
      made_.placed_.push_back(address.has_value());
      made_.contents_.emplace_back(each.content.begin(), each.content.end());
      made_.sections_.push_back(
          {each.name, address.value_or(elsewhere), made_.contents_.back(), each.is_code, each.is_writable});
      if (!address)
        elsewhere += (each.content.size() + alignment) / alignment * alignment;
    }
    return {};
  }

  // `also_elsewhere`: a section that the guest does not have will do.
  [[nodiscard]] std::optional<std::uint64_t> address_of(const ModuleFile::Symbol &symbol, bool also_elsewhere) const {
    if (symbol.section == SHN_UNDEF)
      return symbol_(symbol.name);
    if (symbol.section == SHN_ABS)
      return symbol.value;
    if (symbol.section >= numbers_.size() || numbers_[symbol.section] == none)
      return std::nullopt;
    const std::size_t number = numbers_[symbol.section];
    if (!made_.placed_[number] && !also_elsewhere)
      return std::nullopt;
    return made_.sections_[number].address + symbol.value;
  }

  void apply(std::size_t number, const ModuleFile::Relocation &relocation) {
    std::vector<std::byte> &content = made_.contents_[number];
    if (relocation.type == R_X86_64_NONE || relocation.offset >= content.size())
      return;
    const std::uint64_t at = made_.sections_[number].address + relocation.offset;
    const std::uint8_t width = width_of(relocation.type);
    const auto symbol = file_.symbol(relocation.symbol);
    const auto target = symbol ? address_of(*symbol, !made_.placed_[number]) : std::nullopt;
    if (width == 0 || !target || width > content.size() - relocation.offset) {
      made_.unknown_.push_back({at, width == 0 ? std::uint8_t{8} : width});
      return;
    }
    std::uint64_t value = *target + static_cast<std::uint64_t>(relocation.addend);
    if (is_relative(relocation.type))
      value -= at;
    std::memcpy(content.data() + relocation.offset, &value, width);
  }

  const ModuleFile &file_;
  const Find &symbol_;
  RelocatedModule made_;
  std::vector<std::size_t> numbers_; // in made_.sections_, by the number in the file
};

Result<RelocatedModule> RelocatedModule::make(const ModuleFile &file, const Find &section, const Find &symbol,
                                              std::uint64_t elsewhere) {
  return Maker(file, symbol).make(section, elsewhere);
}

} // namespace lararium
