#include "module_reference.h"

#include "lararium/os/linux/module_sections.h"
#include "lararium/symbols/elf_note.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <span>

namespace lararium::detect {
namespace {

using linux_guest::CodeSites;
using linux_guest::ExportedSymbols;
using linux_guest::Kernel;
using linux_guest::ModuleRegion;
using linux_guest::ModuleSections;

constexpr std::uint64_t most_of_all = 1 << 30; // of files, unpacked: a guest may list a module a thousand times
constexpr std::uint64_t elsewhere = 0xffffffffa0000000; // the room of the kernel's image: no module lies there
constexpr std::size_t most_named = 32;

// Read-only data that the kernel sorts (extables, places for tracers, ORC), makes agree with itself (the lengths of
// alternatives of one place, since 6.10), or does not keep in memory.
constexpr std::array not_as_in_file{"__ex_table",       "__mcount_loc", ".orc_unwind", ".orc_unwind_ip",
                                    ".altinstructions", ".modinfo",     "__versions"};

class Comparison {
public:
  Comparison(const ModuleFolder &folder, const Kernel &kernel, const std::vector<ModuleRegion> &regions,
             const CodeSites &now, const ReferenceText::Give &give)
      : folder_(folder), kernel_(kernel), regions_(regions), now_(now), give_(give) {}

  std::vector<std::string> run() {
    std::vector<Gva> modules;
    modules.reserve(regions_.size());
    for (const ModuleRegion &region : regions_)
      modules.push_back(region.module);
    std::ranges::sort(modules);
    modules.erase(std::ranges::unique(modules).begin(), modules.end());
    exported_ = ExportedSymbols::read(kernel_, modules);
    // In the order of the list, as regions are.
    for (auto first = regions_.begin(); first != regions_.end();) {
      const auto end = std::find_if(first, regions_.end(),
                                    [&](const ModuleRegion &region) { return region.module != first->module; });
      if (const auto compared = compare(std::span(first, end)); !compared && notes_.size() < most_named)
        notes_.push_back(fmt::format("module {}: {}", first->name, compared.error().message));
      first = end;
    }
    if (!without_file_.empty())
      notes_.push_back(fmt::format("{} of the guest's modules have no file in {}: {}", without_file_.size(),
                                   folder_.path(), named(without_file_)));
    if (unknown_ != 0)
      notes_.push_back(fmt::format("{} addresses in modules were not compared, as the kernel does not tell "
                                   "where what they lead to is",
                                   unknown_));
    return std::move(notes_);
  }

private:
  static std::string named(const std::vector<std::string> &names) {
    const std::size_t count = std::min(names.size(), most_named);
    return fmt::format("{}{}", fmt::join(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(count), ", "),
                       count == names.size() ? "" : ", ...");
  }

  Result<void> compare(std::span<const ModuleRegion> regions) {
    const std::string &name = regions.front().name;
    const auto paths = folder_.files_of(name);
    if (paths.empty()) {
      without_file_.push_back(name);
      return {};
    }
    TRY_ASSIGN(const ModuleSections sections, ModuleSections::read(kernel_, regions.front().module));
    if (!sections.is_live)
      return fail(ErrorCode::unsupported, "it is being loaded or given free");
    TRY_ASSIGN(const ModuleFile file, file_of(paths, sections, regions));
    TRY_ASSIGN(const RelocatedModule relocated,
               RelocatedModule::make(
                   file,
                   [&](std::string_view section) -> std::optional<std::uint64_t> {
                     const auto address = section == ".data..percpu" ? sections.per_cpu : sections.address_of(section);
                     return address ? std::optional(address->value) : std::nullopt;
                   },
                   [&](std::string_view symbol) -> std::optional<std::uint64_t> {
                     const auto address = exported_.find(symbol);
                     return address ? std::optional(address->value) : std::nullopt;
                   },
                   elsewhere));
    TRY_ASSIGN(auto ranges, ranges_of(relocated, regions));
    const auto is_compared = [&](const RelocatedModule::Place &place) {
      return std::ranges::any_of(ranges, [&](const auto &all) {
        return std::ranges::any_of(
            all, [&](const ReferenceText::Range &range) { return place.at >= range.begin && place.at < range.end; });
      });
    };
    unknown_ += static_cast<std::size_t>(std::ranges::count_if(relocated.unknown(), is_compared));
    TRY_ASSIGN(const ReferenceText reference,
               ReferenceText::of_module(relocated, std::move(ranges[0]), std::move(ranges[1]), kernel_));
    reference.look(kernel_, now_, give_);
    return {};
  }

  // The file of the same build as what the guest runs.
  Result<ModuleFile> file_of(const std::vector<std::string> &paths, const ModuleSections &sections,
                             std::span<const ModuleRegion> regions) {
    const BuildId build = build_of(sections, regions);
    std::string others;
    for (const std::string &path : paths) {
      auto file = ModuleFile::open(path);
      if (!file) {
        others += fmt::format("; {}: {}", path, file.error().message);
        continue;
      }
      for (const ModuleFile::Section &section : file->sections())
        read_ += section.content.size();
      if (read_ > most_of_all)
        return fail(ErrorCode::corrupt, "the guest has more modules than can be compared");
      const bool has_build = build.size != 0 && file->build_id().size != 0;
      if (has_build ? file->build_id() == build
                    : !sections.source_version.empty() && file->source_version() == sections.source_version)
        return file;
      others += has_build ? fmt::format("; {} is of the build {}", path, file->build_id().hex())
                          : fmt::format("; {} is of the version {}", path, file->source_version());
    }
    return fail(ErrorCode::not_found,
                fmt::format("it was not compared: it is of the build {}, and no file is{}",
                            build.size == 0 ? "(none), version " + sections.source_version : build.hex(), others));
  }

  [[nodiscard]] BuildId build_of(const ModuleSections &sections, std::span<const ModuleRegion> regions) const {
    constexpr std::size_t note_bytes = 16 + 32;
    const auto note = sections.address_of(".note.gnu.build-id");
    std::array<std::byte, note_bytes> bytes{};
    if (!note || !holds(regions, {note->value, note->value + 1}, false))
      return {};
    const std::size_t read = kernel_.space().read_prefix(*note, bytes);
    const auto ids = find_build_ids(Bytes(bytes).first(read), 1);
    return ids.empty() ? BuildId() : ids.front().id;
  }

  static bool holds(std::span<const ModuleRegion> regions, ReferenceText::Range range, bool is_code) {
    return std::ranges::any_of(regions, [&](const ModuleRegion &region) {
      return (is_code ? region.kind == ModuleRegion::Kind::text
                      : region.kind == ModuleRegion::Kind::text || region.kind == ModuleRegion::Kind::data) &&
             range.begin >= region.base.value && range.end >= range.begin &&
             range.begin - region.base.value <= region.size && range.end - region.base.value <= region.size;
    });
  }

  // Code, and read-only data. Where the guest says that code lies elsewhere than in the module's memory for code, or
  // twice at one place, what it says is worth nothing.
  static Result<std::array<std::vector<ReferenceText::Range>, 2>> ranges_of(const RelocatedModule &module,
                                                                            std::span<const ModuleRegion> regions) {
    std::array<std::vector<ReferenceText::Range>, 2> ranges;
    for (std::size_t i = 0; i < module.sections().size(); ++i) {
      const LinkedSection &section = module.sections()[i];
      if (section.content.empty() || section.name.starts_with(".init") || (section.is_writable && !section.is_code) ||
          std::ranges::find(not_as_in_file, section.name) != not_as_in_file.end())
        continue;
      const ReferenceText::Range range{section.address, section.address + section.content.size()};
      const bool is_there = module.is_placed(i) && holds(regions, range, section.is_code);
      if (is_there)
        ranges[section.is_code ? 0 : 1].push_back(range);
      else if (section.is_code)
        return fail(ErrorCode::corrupt, fmt::format("it was not compared: its section {} is not said to be in its "
                                                    "memory for code",
                                                    section.name));
    }
    for (auto &each : ranges) {
      std::ranges::sort(each, {}, &ReferenceText::Range::begin);
      for (std::size_t i = 1; i < each.size(); ++i)
        if (each[i].begin < each[i - 1].end)
          return fail(ErrorCode::corrupt, "it was not compared: two of its sections are said to lie at one place");
    }
    return ranges;
  }

  const ModuleFolder &folder_;
  const Kernel &kernel_;
  const std::vector<ModuleRegion> &regions_;
  const CodeSites &now_;
  const ReferenceText::Give &give_;
  ExportedSymbols exported_;
  std::uint64_t read_ = 0;
  std::size_t unknown_ = 0;
  std::vector<std::string> without_file_, notes_;
};

} // namespace

std::vector<std::string> compare_modules(const ModuleFolder &folder, const Kernel &kernel,
                                         const std::vector<ModuleRegion> &regions, const CodeSites &now,
                                         const ReferenceText::Give &give) {
  return Comparison(folder, kernel, regions, now, give).run();
}

} // namespace lararium::detect
