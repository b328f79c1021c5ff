#include "lararium/detect/check.h"
#include "lararium/os/common/actor.h"
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

Result<std::unique_ptr<Scene>> Scene::create(const Target &target, OperatingSystem &system, References references) {
  const linux_guest::Kernel *kernel = linux_guest::kernel_of(system);
  if (kernel == nullptr)
    return fail(ErrorCode::unsupported, "only Linux guests can be checked so far");
  std::unique_ptr<Scene> scene(new Scene(target, system, *kernel));
  scene->references_ = references;
  if (target.vcpus)
    if (auto registers = target.vcpus->registers())
      scene->vcpus_ = std::move(*registers);
  scene->code_ = CodeMap::read(*kernel);
  if (auto regions = linux_guest::read_module_regions(*kernel))
    scene->module_regions_ = std::move(regions->items);
  std::ranges::sort(scene->module_regions_, {}, &linux_guest::ModuleRegion::base);
  return scene;
}

const Result<std::vector<VcpuRegisters>> &Scene::vcpus_with_msrs() const {
  if (!vcpus_with_msrs_) {
    if (target_->vcpus)
      vcpus_with_msrs_ = target_->vcpus->registers_with_msrs();
    else
      vcpus_with_msrs_ = fail(ErrorCode::unsupported, "there are no registers");
  }
  return *vcpus_with_msrs_;
}

const Result<View<linux_guest::TaskEntry>> &Scene::tasks() const {
  if (!tasks_) {
    View<linux_guest::TaskEntry> view;
    if (auto listed = linux_guest::list_tasks(*kernel_, true, view.status)) {
      view.items = std::move(*listed);
      tasks_ = std::move(view);
    } else {
      tasks_ = std::unexpected(std::move(listed).error());
    }
  }
  return *tasks_;
}

const std::vector<Process> &Scene::processes() const {
  if (!processes_) {
    auto view = system_->processes({});
    processes_ = view ? std::move(view->items) : std::vector<Process>();
  }
  return *processes_;
}

const Process *Scene::process(std::int32_t pid) const {
  const auto &all = processes();
  if (process_places_.empty())
    for (std::size_t i = 0; i < all.size(); ++i)
      process_places_.emplace(all[i].tgid, i);
  const auto found = process_places_.find(pid);
  return found == process_places_.end() ? nullptr : &all[found->second];
}

Result<std::span<const Socket>> Scene::sockets() const {
  if (!sockets_) {
    TRY_ASSIGN(auto view, system_->sockets());
    sockets_ = std::move(view.items);
  }
  return *sockets_;
}

std::string Scene::module_at(Gva address) const {
  auto after = std::ranges::upper_bound(module_regions_, address, {}, &linux_guest::ModuleRegion::base);
  if (after == module_regions_.begin())
    return {};
  --after;
  return address - after->base < after->size ? after->name : std::string();
}

std::string Scene::holder_of(Gva address) const {
  const auto &location = kernel_->location();
  return address >= location.base && address - location.base < location.size ? "kernel" : module_at(address);
}

bool Scene::is_foreign_module(std::string_view name) const {
  if (!foreign_modules_) {
    foreign_modules_.emplace();
    if (const auto view = system_->modules())
      for (const KernelModule &module : view->items)
        if (module.taint.find_first_of("OE") != module.taint.npos)
          foreign_modules_->insert(module.name);
  }
  return foreign_modules_->contains(name);
}

Actor Scene::actor(const Process &process) const { return actor_of(process); }

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
  const std::string owner = range != nullptr ? range->name : in_image ? std::string() : module_at(address);
  if (range == nullptr && !in_image && owner.empty())
    return fmt::format("{:#x}", address.value);
  if (!owner.empty())
    return text.empty() ? fmt::format("{:#x} [{}]", address.value, owner) : fmt::format("{} [{}]", text, owner);
  return text.empty() ? fmt::format("{:#x}", address.value) : text;
}

} // namespace lararium::detect
