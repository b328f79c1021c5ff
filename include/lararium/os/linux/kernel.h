// One running (or dumped) Linux kernel: its address space, symbols, types and per-CPU areas. Views are built on this.
#pragma once

#include "lararium/base/result.h"
#include "lararium/os/common/views.h"
#include "lararium/os/linux/layout.h"
#include "lararium/space/address_space.h"
#include "lararium/symbols/profile.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <typeindex>
#include <unordered_map>
#include <vector>

namespace lararium::linux_guest {

// Where the kernel image lies. The image is contiguous in physical memory, whatever pages map it.
struct KernelLocation {
  x86_64::PageTableRoot root; // maps the kernel
  Gva base;                   // of `_text`
  Gpa physical_base;          // of `_text`
  std::uint64_t size = 0;     // bytes up to the last mapped page of the image
  std::string found_by;       // for people: "vCPU 0's CR3", "VMCOREINFO"
};

class Kernel {
public:
  Kernel(const PhysicalMemory &memory, KernelLocation location, std::shared_ptr<const Profile> profile);

  [[nodiscard]] const PhysicalMemory &memory() const { return *memory_; }
  [[nodiscard]] const AddressSpace &space() const { return space_; }
  [[nodiscard]] const KernelLocation &location() const { return location_; }
  [[nodiscard]] const Profile &profile() const { return *profile_; }
  [[nodiscard]] const std::shared_ptr<const Profile> &shared_profile() const { return profile_; }
  [[nodiscard]] const Types &types() const { return profile_->types(); }

  template <class T> [[nodiscard]] std::optional<T> read(Gva address) const { return space_.read<T>(address); }
  [[nodiscard]] std::optional<Gva> read_pointer(Gva address) const { return space_.read_pointer(address); }
  // A member of at most 8 bytes, zero-extended; bit fields are cut out. Nothing when it cannot be read.
  [[nodiscard]] std::optional<std::uint64_t> read_field(Gva object, const FieldLocation &field) const;
  [[nodiscard]] std::optional<Gva> read_pointer(Gva object, const FieldLocation &field) const {
    return read_pointer(object + field.offset);
  }

  // The address of a kernel symbol; nothing when the kernel has none of that name, or a per-CPU one.
  [[nodiscard]] std::optional<Gva> symbol(std::string_view name) const;
  // The address of a per-CPU variable's instance.
  [[nodiscard]] std::optional<Gva> per_cpu_symbol(std::string_view name, std::uint32_t cpu) const;
  // The instance of what a `__percpu` pointer points to.
  [[nodiscard]] std::optional<Gva> per_cpu_pointer(Gva pointer, std::uint32_t cpu) const;
  // Possible CPUs, by number; at most 8192.
  [[nodiscard]] std::uint32_t cpu_count() const;

  // A view's members, resolved at its first use and kept. Layout has `static Result<Layout> resolve(const Kernel &)`.
  template <class Layout> [[nodiscard]] Result<const Layout *> layout() const {
    std::shared_ptr<void> &kept = layouts_[std::type_index(typeid(Layout))];
    if (!kept) {
      TRY_ASSIGN(auto resolved, Layout::resolve(*this));
      kept = std::make_shared<Layout>(std::move(resolved));
    }
    return static_cast<const Layout *>(kept.get());
  }

  // Whether an address lies in the kernel half at all: a cheap test that rejects most lies.
  [[nodiscard]] bool is_kernel_address(Gva address) const { return address.value >> 63 != 0; }

private:
  const PhysicalMemory *memory_;
  KernelLocation location_;
  AddressSpace space_;
  std::shared_ptr<const Profile> profile_;
  mutable std::vector<std::optional<Gva>> per_cpu_offsets_; // nothing: no area of its own
  mutable std::unordered_map<std::type_index, std::shared_ptr<void>> layouts_;
  void load_per_cpu_offsets() const;
};

} // namespace lararium::linux_guest
