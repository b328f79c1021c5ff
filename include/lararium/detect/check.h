// What a check is. A check is one file in src/detect/: it defines a class and registers it with LARARIUM_CHECK; nothing
// else lists it.
//
// A check looks at a guest that runs on and may lie. It reports what it saw; whether that was a race is decided by
// looking again (runner.h). It never pauses, never writes, bounds every loop, and treats what cannot be read as
// nothing seen, unless that itself is wrong.
#pragma once

#include "lararium/base/result.h"
#include "lararium/detect/code_map.h"
#include "lararium/os/common/operating_system.h"
#include "lararium/os/linux/kernel.h"
#include "lararium/os/linux/modules.h"
#include "lararium/os/linux/tasks.h"
#include "lararium/record/record.h"
#include "lararium/symbols/kernel_file.h"
#include "lararium/symbols/module_folder.h"
#include "lararium/vm/target.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace lararium::detect {

// Files that the operator knows to be good; null: there is none.
struct References {
  const KernelFile *kernel = nullptr;    // that the guest's kernel was booted from
  const ModuleFolder *modules = nullptr; // in which its modules' files are
};

// One look at one guest: what all checks of that look share, read at its first use.
class Scene {
public:
  // `system` must be of Linux: create() says so otherwise. All must outlive the scene, and so must what
  // `references` names.
  [[nodiscard]] static Result<std::unique_ptr<Scene>> create(const Target &target, OperatingSystem &system,
                                                             References references = {});

  [[nodiscard]] OperatingSystem &system() const { return *system_; }
  [[nodiscard]] const linux_guest::Kernel &kernel() const { return *kernel_; }
  [[nodiscard]] std::span<const VcpuRegisters> vcpus() const { return vcpus_; } // empty: they cannot be had
  // The same with `msrs`, asked for at first use; an error says why they cannot be had.
  [[nodiscard]] const Result<std::vector<VcpuRegisters>> &vcpus_with_msrs() const;
  [[nodiscard]] const CodeMap &code() const { return code_; }
  [[nodiscard]] const References &references() const { return references_; }
  // All threads, walked once in this look. Who compares the list with other records walks it anew.
  [[nodiscard]] const Result<View<linux_guest::TaskEntry>> &tasks() const;
  [[nodiscard]] const std::vector<Process> &processes() const;  // with arguments and paths
  [[nodiscard]] const Process *process(std::int32_t pid) const; // null: there is none
  [[nodiscard]] Result<std::span<const Socket>> sockets() const;
  [[nodiscard]] Actor actor(const Process &process) const;

  // The listed module in whose memory the address lies; empty: none.
  [[nodiscard]] std::string module_at(Gva address) const;
  // Whether a module comes from outside the kernel's tree, or is not signed (taint O or E).
  [[nodiscard]] bool is_foreign_module(std::string_view name) const;
  // The module, or "kernel" for its image; empty for memory of any other kind.
  [[nodiscard]] std::string holder_of(Gva address) const;

  // "do_one_initcall+0x12 [module]", for people; the bare address where nothing is known of it.
  [[nodiscard]] std::string describe(Gva address) const;

private:
  Scene(const Target &target, OperatingSystem &system, const linux_guest::Kernel &kernel)
      : target_(&target), system_(&system), kernel_(&kernel) {}
  const Target *target_;
  OperatingSystem *system_;
  const linux_guest::Kernel *kernel_;
  References references_;
  std::vector<VcpuRegisters> vcpus_;
  mutable std::optional<Result<std::vector<VcpuRegisters>>> vcpus_with_msrs_;
  CodeMap code_;
  std::vector<linux_guest::ModuleRegion> module_regions_; // by base
  mutable std::optional<Result<View<linux_guest::TaskEntry>>> tasks_;
  mutable std::optional<std::vector<Process>> processes_;
  mutable std::unordered_map<std::int32_t, std::size_t> process_places_; // in processes_, by pid
  mutable std::optional<std::vector<Socket>> sockets_;
  mutable std::optional<std::set<std::string, std::less<>>> foreign_modules_;
};

// Takes findings, and no more of them than somebody could read.
class Findings {
public:
  static constexpr std::size_t limit = 256;
  Finding &add(Finding finding) {
    if (items_.size() < limit) {
      items_.push_back(std::move(finding));
      return items_.back();
    }
    ++left_out_;
    overflow_ = std::move(finding);
    return overflow_;
  }
  // Once there are as many, more are only counted: what would be put into words at some cost need not be.
  [[nodiscard]] bool is_full() const { return items_.size() >= limit; }
  void leave_out() { ++left_out_; }
  [[nodiscard]] const std::vector<Finding> &items() const { return items_; }
  [[nodiscard]] std::vector<Finding> &items() { return items_; }
  [[nodiscard]] std::size_t left_out() const { return left_out_; }
  // What the check could not look at, and why: a sentence. Nothing found there means nothing.
  void could_not_see(std::string what) { unseen_.push_back(std::move(what)); }
  [[nodiscard]] std::vector<std::string> &unseen() { return unseen_; }

private:
  std::vector<Finding> items_;
  std::vector<std::string> unseen_;
  Finding overflow_;
  std::size_t left_out_ = 0;
};

// An object lives as long as its target is watched, so that it can remember what it saw at its first look.
class Check {
public:
  Check() = default;
  Check(const Check &) = delete;
  Check &operator=(const Check &) = delete;
  virtual ~Check() = default;
  // An error: the check could not be made at all, and why. Called again for each look.
  [[nodiscard]] virtual Result<void> look(const Scene &scene, Findings &findings) = 0;
};

struct CheckEntry {
  const char *name;       // "syscalls"
  const char *techniques; // MITRE ATT&CK, space-separated
  const char *summary;    // one line for `check --list`
  const char *explained;  // what is compared with what, what it cannot see
  std::unique_ptr<Check> (*make)();
};

// All registered checks, by name.
[[nodiscard]] std::vector<const CheckEntry *> all_checks();

} // namespace lararium::detect

// The linker gathers the entries in a section of their own: no list to edit, and no code that runs before main().
#define LARARIUM_CHECK(class_name, name, techniques, summary, explained)                                               \
  namespace {                                                                                                          \
  constexpr ::lararium::detect::CheckEntry class_name##_entry = {                                                      \
      name, techniques, summary, explained,                                                                            \
      []() -> std::unique_ptr<::lararium::detect::Check> { return std::make_unique<class_name>(); }};                  \
  [[gnu::section("lararium_checks"),                                                                                   \
    gnu::used]] constexpr const ::lararium::detect::CheckEntry *const class_name##_registration = &class_name##_entry; \
  }
