#include "lararium/symbols/module_folder.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <fmt/format.h>

namespace lararium {
namespace {

constexpr std::size_t file_limit = 1 << 17; // a distribution's kernel has some 5,000 modules
constexpr std::size_t entry_limit = 1 << 20;

} // namespace

std::string module_of_file(std::string_view file_name) {
  constexpr std::array<std::string_view, 4> endings{".ko", ".ko.xz", ".ko.zst", ".ko.gz"};
  for (const std::string_view ending : endings)
    if (file_name.size() > ending.size() && file_name.ends_with(ending)) {
      std::string name(file_name.substr(0, file_name.size() - ending.size()));
      std::ranges::replace(name, '-', '_');
      return name;
    }
  return {};
}

Result<ModuleFolder> ModuleFolder::open(const std::string &path) {
  namespace fs = std::filesystem;
  ModuleFolder folder;
  folder.path_ = path;
  std::error_code error;
  fs::recursive_directory_iterator entry(path, fs::directory_options::skip_permission_denied, error);
  for (std::size_t seen = 0; !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
    if (++seen > entry_limit || folder.files_.size() >= file_limit)
      return fail(ErrorCode::usage, fmt::format("{} holds more files than a kernel has modules", path));
    std::string name = module_of_file(entry->path().filename().native());
    std::error_code unknown; // a link that leads nowhere is no file
    if (!name.empty() && entry->is_regular_file(unknown))
      folder.files_.emplace(std::move(name), entry->path().native());
  }
  if (error)
    return fail_errno(fmt::format("cannot read {}", path), error.value());
  return folder;
}

std::vector<std::string> ModuleFolder::files_of(std::string_view module) const {
  std::string name(module);
  std::ranges::replace(name, '-', '_');
  std::vector<std::string> paths;
  for (auto [file, end] = files_.equal_range(name); file != end; ++file)
    paths.push_back(file->second);
  return paths;
}

} // namespace lararium
