// A folder of module files, such as /lib/modules/6.1.0-18-amd64, and in it the files that may be of a module.
#pragma once

#include "lararium/base/result.h"

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace lararium {

class ModuleFolder {
public:
  // All of NAME.ko, NAME.ko.xz, NAME.ko.zst and NAME.ko.gz in it and below. Links to folders are not followed.
  [[nodiscard]] static Result<ModuleFolder> open(const std::string &path);

  [[nodiscard]] const std::string &path() const { return path_; }
  [[nodiscard]] std::size_t size() const { return files_.size(); }
  // The files of that name, in which '-' and '_' are the same: a package may bring one that another replaces.
  [[nodiscard]] std::vector<std::string> files_of(std::string_view module) const;

private:
  std::string path_;
  std::multimap<std::string, std::string, std::less<>> files_; // by the module's name
};

// The module that a file is of, by its name, as the kernel writes it; empty where it is none.
[[nodiscard]] std::string module_of_file(std::string_view file_name);

} // namespace lararium
