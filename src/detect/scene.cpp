#include "lararium/detect/check.h"
#include "lararium/os/linux.h"

#include <algorithm>
#include <fmt/format.h>
#include <span>

// The bounds of the section in which LARARIUM_CHECK puts its entries; the linker defines them.
extern "C" {
extern const lararium::detect::CheckEntry *const __start_lararium_checks[]; // NOLINT(*-reserved-identifier)
extern const lararium::detect::CheckEntry *const __stop_lararium_checks[];  // NOLINT(*-reserved-identifier)
}

namespace lararium::detect {

std::vector<const CheckEntry *> all_checks() {
  std::vector<const CheckEntry *> checks(__start_lararium_checks, __stop_lararium_checks);
  std::ranges::sort(checks, {}, [](const CheckEntry *check) { return std::string_view(check->name); });
  return checks;
}

Result<std::unique_ptr<Scene>> Scene::create(const Target &target, OperatingSystem &system) {
  const linux_guest::Kernel *kernel = linux_guest::kernel_of(system);
  if (kernel == nullptr)
    return fail(ErrorCode::unsupported, "only Linux guests can be checked so far");
  std::unique_ptr<Scene> scene(new Scene(system, *kernel));
  if (target.vcpus)
    if (auto registers = target.vcpus->registers())
      scene->vcpus_ = std::move(*registers);
  scene->code_ = CodeMap::read(*kernel);
  return scene;
}

const std::vector<Process> &Scene::processes() const {
  if (!processes_) {
    auto view = system_->processes({});
    processes_ = view ? std::move(view->items) : std::vector<Process>();
  }
  return *processes_;
}

Actor Scene::actor(const Process &process) const {
  return {process.tgid, process.ppid,         process.uid.effective, process.comm,
          process.exe,  process.container_id, process.start_time_ns};
}

std::string Scene::describe(Gva address) const {
  const CodeRange *range = code_.find(address);
  const auto symbol = system_->symbolize(address);
  std::string text;
  // Of memory that is nobody's, the nearest symbol below says nothing.
  constexpr std::uint64_t reach = 1 << 20;
  if (symbol && symbol->second < reach && (range != nullptr || kernel_->profile().nearest(0)))
    text = symbol->second == 0 ? symbol->first.name : fmt::format("{}+{:#x}", symbol->first.name, symbol->second);
  const bool in_image =
      address >= kernel_->location().base && address - kernel_->location().base < kernel_->location().size;
  if (range == nullptr && !in_image)
    return fmt::format("{:#x}", address.value);
  if (range != nullptr && !range->name.empty())
    return text.empty() ? fmt::format("{:#x} [{}]", address.value, range->name)
                        : fmt::format("{} [{}]", text, range->name);
  return text.empty() ? fmt::format("{:#x}", address.value) : text;
}

} // namespace lararium::detect
