// Libraries that are put into programs before their own: LD_PRELOAD and LD_AUDIT in environments, and
// /etc/ld.so.preload. This is how rootkits of user space hide from ps, ls and netstat.

#include "lararium/detect/check.h"
#include "lararium/os/linux/cached_text.h"
#include "lararium/os/linux/tasks.h"
#include "preload_places.h"
#include "process_finding.h"

#include <algorithm>
#include <array>
#include <fmt/format.h>
#include <map>
#include <set>

namespace lararium::detect {
namespace {

using linux_guest::Kernel;

constexpr std::size_t environment_limit = 256 << 10;   // of one process
constexpr std::uint64_t environments_limit = 64 << 20; // of all
constexpr std::size_t value_limit = 1024, tree_limit = 64, shown_limit = 16;
constexpr const char *preload_file = "/etc/ld.so.preload";

class Preload final : public Check {
public:
  Result<void> look(const Scene &scene, Findings &findings) override {
    TRY(look_at_environments(scene, findings));
    look_at_files(scene, findings);
    return {};
  }

private:
  struct Users {
    const Process *first = nullptr;
    std::uint64_t count = 0;
    std::string pids;
  };

  static Result<void> look_at_environments(const Scene &scene, Findings &findings) {
    const Kernel &kernel = scene.kernel();
    linux_guest::LayoutResolver layout(kernel.types());
    const auto begin_member = layout.require("mm_struct", "env_start"),
               end_member = layout.require("mm_struct", "env_end");
    TRY(layout.check());
    std::map<std::string, Users> settings; // "LD_PRELOAD=x"
    std::vector<std::byte> bytes;
    std::uint64_t left = environments_limit;
    for (const Process &process : scene.processes()) {
      if (!process.memory || process.kernel_thread)
        continue;
      const auto root = linux_guest::user_page_table(kernel, process.task);
      const auto begin = kernel.read_pointer(process.memory, begin_member),
                 end = kernel.read_pointer(process.memory, end_member);
      if (!root || !begin || !end || *end <= *begin)
        continue;
      bytes.resize(std::min<std::uint64_t>({*end - *begin, environment_limit, left}));
      left -= bytes.size();
      const std::size_t got = read_uncached(kernel.memory(), *root, *begin, bytes);
      const std::string_view text(reinterpret_cast<const char *>(bytes.data()), got);
      for (const PreloadSetting &setting : preload_settings(text)) {
        Users &users = settings[fmt::format("{}={}", setting.variable, setting.value.substr(0, value_limit))];
        if (users.count++ == 0)
          users.first = &process;
        if (users.count <= shown_limit)
          users.pids += (users.pids.empty() ? "" : ", ") + std::to_string(process.tgid);
      }
    }
    for (const auto &[setting, users] : settings) {
      const std::string others = users.count > 1 ? fmt::format(" and {} others have", users.count - 1) : " has";
      Finding &finding =
          findings.add({.subject = setting,
                        .severity = preload_severity(std::string_view(setting).substr(setting.find('=') + 1)),
                        .technique = "T1574.006",
                        .sentence = fmt::format("process {} ({}){} {} in the environment", users.first->tgid,
                                                users.first->comm, others, setting)});
      finding.with("found", setting).with("processes", users.count).with("pids", users.pids);
      finding.process = scene.actor(*users.first);
    }
    return {};
  }

  // In each tree of files: containers have their own.
  static void look_at_files(const Scene &scene, Findings &findings) {
    std::set<std::uint32_t> trees;
    for (const Process &process : scene.processes()) {
      if (process.kernel_thread || process.namespaces.mnt == 0 || trees.size() >= tree_limit ||
          !trees.insert(process.namespaces.mnt).second)
        continue;
      const auto file = linux_guest::read_cached_text(scene.kernel(), process.task, preload_file, value_limit);
      if (!file || file->size == 0)
        continue;
      std::string text = file->text.value_or("");
      while (!text.empty() && (text.back() == '\n' || text.back() == ' '))
        text.pop_back();
      if (file->text && text.empty())
        continue;
      Finding &finding =
          findings.add({.subject = fmt::format("{} in mount namespace {}", preload_file, process.namespaces.mnt),
                        .severity = Severity::high,
                        .technique = "T1574.006",
                        .sentence = fmt::format("{}{} puts {} into every program that starts", preload_file,
                                                process.container_id.empty() ? "" : " of a container",
                                                text.empty() ? "a library" : text)});
      finding.with("found", text)
          .with("size", file->size)
          .with("mount_namespace", std::uint64_t{process.namespaces.mnt})
          .with("container", process.container_id);
    }
  }
};

LARARIUM_CHECK(
    Preload, "preload", "T1574.006", "libraries that are put into programs before their own",
    "Reads LD_PRELOAD and LD_AUDIT in the environment that every process was started with: each value is one finding, "
    "high for libraries in places that anybody may write to, low for those in the system's own, medium for others. "
    "/etc/ld.so.preload is read from the page cache, once for each mount namespace. A process that overwrote its "
    "environment, or a file that the guest has not looked for since it was forgotten, is not seen; every program start "
    "looks for that file.")

} // namespace
} // namespace lararium::detect
