// What the code of a kernel and of its modules, and its read-only data, were at the first look.
#pragma once

#include "code_sites.h"
#include "first_look.h"
#include "lararium/detect/check.h"
#include "lararium/os/linux/modules.h"

#include <functional>
#include <map>
#include <optional>
#include <span>
#include <vector>

namespace lararium::detect {

class TextMemory {
public:
  using Give = std::function<void(Gva line, Bytes found, bool is_code)>;

  TextMemory();
  // `trampolines` are those of static calls in modules. Nothing is remembered before the kernel has sealed its text.
  // How all code together is; `untouched`: also the places that the kernel changes.
  FirstLook::Sameness look(const Scene &scene, const CodeSites &sites,
                           std::span<const linux_guest::ModuleRegion> regions, std::span<const Gva> trampolines,
                           const Give &give);

private:
  // A module that is loaded anew at the same place is another one.
  struct Identity {
    Gva begin;
    std::uint64_t size = 0, load = 0;
    auto operator<=>(const Identity &) const = default;
  };
  void learn_image(const linux_guest::Kernel &kernel);
  [[nodiscard]] std::vector<Mask> masks(const linux_guest::Kernel &kernel, const CodeSites &sites,
                                        std::span<const linux_guest::ModuleRegion> regions,
                                        std::span<const Gva> trampolines) const;

  std::uint64_t key_;
  std::optional<Gva> base_;    // of the image that is remembered
  std::vector<Gva> patchable_; // places of the image that are in no table
  std::optional<std::uint8_t> lock_prefixes_;
  std::map<Identity, FirstLook> remembered_;
};

} // namespace lararium::detect
