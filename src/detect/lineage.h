// What a process may be, by what it was when its program started: the kernel writes the user and whether the program
// gained privileges into the auxiliary vector that it keeps with the process' memory, and from then on only some ways
// lead to more. Pure functions on what was read.
#pragma once

#include "lararium/base/address.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace lararium::detect {

struct CredentialSet {
  std::uint32_t uid = 0, euid = 0, suid = 0, fsuid = 0; // of the host's first user namespace
  std::uint64_t inheritable = 0, permitted = 0, effective = 0, ambient = 0;
  std::uint32_t secure_bits = 0;
  Gva user_namespace;

  [[nodiscard]] bool any_root() const { return uid == 0 || euid == 0 || suid == 0 || fsuid == 0; }
  bool operator==(const CredentialSet &) const = default;
};

// How a process' program was started.
struct Start {
  std::uint64_t uid = 0, euid = 0;
  bool gained = false; // AT_SECURE: by a setuid file or one with capabilities
  [[nodiscard]] bool ordinary() const { return uid != 0 && euid != 0 && !gained; }
};

// From mm_struct.saved_auxv: pairs of 8 bytes, of 4 for 32-bit programs. Nothing where it was not (yet) written.
[[nodiscard]] inline std::optional<Start> start_of(std::span<const std::uint64_t> vector) {
  constexpr std::uint64_t at_uid = 11, at_euid = 12, at_secure = 23, largest_key = 64;
  if (vector.empty() || vector[0] == 0)
    return std::nullopt;
  const bool narrow = vector[0] >= largest_key;
  std::optional<std::uint64_t> uid, euid, gained;
  const std::size_t pairs = narrow ? vector.size() : vector.size() / 2;
  for (std::size_t i = 0; i < pairs; ++i) {
    const std::uint64_t key = narrow ? vector[i] & UINT32_MAX : vector[2 * i];
    const std::uint64_t value = narrow ? vector[i] >> 32 : vector[2 * i + 1];
    if (key == 0)
      break;
    if (key == at_uid)
      uid = value;
    else if (key == at_euid)
      euid = value;
    else if (key == at_secure)
      gained = value;
  }
  if (!uid || !euid || !gained)
    return std::nullopt;
  return Start{*uid, *euid, *gained != 0};
}

enum class Breach : std::uint8_t {
  effective_beyond_permitted, // the kernel keeps one within the other
  root_without_start,         // user 0, though started as another without a setuid program
  capabilities_without_start, // capabilities, though started without
  all_capabilities,           // every capability of an ordinary user that nothing explains
};

// Of a task in the first user namespace. `all` are the capabilities that this kernel has.
[[nodiscard]] inline std::vector<Breach> breaches_of(const CredentialSet &now, const std::optional<Start> &start,
                                                     std::uint64_t all) {
  constexpr std::uint32_t no_root = 1 << 0, no_setuid_fixup = 1 << 2, keep_capabilities = 1 << 4;
  std::vector<Breach> found;
  if ((now.effective & ~now.permitted) != 0)
    found.push_back(Breach::effective_beyond_permitted);
  if (start && start->ordinary()) {
    // Ambient ones outlive the start of a program, and are inheritable too; CAP_SETUID among them leads to user 0.
    if (now.any_root() && now.inheritable == 0)
      found.push_back(Breach::root_without_start);
    else if (((now.effective | now.permitted) & ~(now.inheritable | now.ambient)) != 0 && !now.any_root())
      found.push_back(Breach::capabilities_without_start);
    return found;
  }
  // A daemon that becomes another user can keep capabilities. It keeps some: for all of them it would not need to.
  const bool kept = (now.secure_bits & (no_root | no_setuid_fixup | keep_capabilities)) != 0 ||
                    (all & ~(now.inheritable | now.ambient)) == 0 || (start && start->gained);
  if (start && all != 0 && (all & ~now.permitted) == 0 && !kept && now.uid != 0 && now.euid != 0 && now.suid != 0 &&
      now.fsuid != 0)
    found.push_back(Breach::all_capabilities);
  return found;
}

// What two looks at the same program of a process contradict: without starting another one permitted capabilities never
// grow within a user namespace, and who is not user 0 and may not set users never becomes it.
enum class Growth : std::uint8_t { none, capabilities, root };
[[nodiscard]] inline Growth growth_of(const CredentialSet &before, const CredentialSet &now) {
  constexpr std::uint64_t set_user = 1 << 7; // CAP_SETUID
  if (before.user_namespace != now.user_namespace)
    return Growth::none;
  if (!before.any_root() && now.any_root() && (before.permitted & set_user) == 0)
    return Growth::root;
  return (now.permitted & ~before.permitted) != 0 ? Growth::capabilities : Growth::none;
}

} // namespace lararium::detect
