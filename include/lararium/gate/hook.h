// What a hook is: which calls inside the guest's kernel are watched, and what one of them means. A hook is one entry in
// a file of src/gate/hooks/, registered with LARARIUM_HOOK; nothing else lists it.
//
// Hooked are functions of the kernel that it calls directly and that may refuse: those of its security interface, which
// give 0 or an error. So a denial is what a security module's would be, and nothing else changes.
#pragma once

#include "lararium/base/result.h"
#include "lararium/os/linux/kernel.h"
#include "lararium/os/linux/paths.h"
#include "lararium/record/record.h"

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lararium::gate {

// Which calls of a function are events: those whose argument, masked, is one of two values. Decided in the guest.
struct ArgumentFilter {
  std::uint8_t argument = 0; // 1 to 6; 0: every call is one
  std::uint64_t mask = ~std::uint64_t{0};
  std::uint64_t value = 0, other_value = 0; // equal where there is one only
};

// What of a call's surroundings is read to tell what it means. The code in the guest (SIM) keeps just that, in the
// moment of the call. An argument, from which members are followed: each but the last is a pointer.
enum class KeepKind : std::uint8_t {
  member,         // a number, or a pointer
  bytes,          // `length` of them
  counted,        // as many as argument `second` says, `length` at most
  text,           // up to its NUL
  path,           // of a struct path
  path_below,     // of argument `second`, a dentry in the mount of a struct path
  user_arguments, // of a struct linux_binprm
};
enum class KeepRole : std::uint8_t { none, path, socket_address, port }; // what rules in the guest ask for
struct Member {
  std::string type, name;
};
struct Keep {
  KeepKind kind = KeepKind::member;
  std::uint8_t argument = 1;
  std::vector<Member> members{};
  KeepRole role = KeepRole::none;
  std::uint8_t second = 0;
  std::uint16_t length = 0;
};

struct HookPoint {
  std::string function;
  ArgumentFilter filter{};
  std::vector<Keep> keeps{};
};

// A call that was made, by its registers and in its moment.
struct HookedCall {
  std::string_view function;
  std::array<std::uint64_t, 6> arguments{};
  [[nodiscard]] Gva pointer(unsigned number) const { return Gva{arguments[number - 1]}; } // 1 to 6
};

// What was kept of a call.
struct Kept {
  KeepKind kind = KeepKind::bytes;
  Gva key; // where it lay; of a path: the struct path, or the dentry
  std::vector<std::byte> bytes;
};

// Reads what the arguments of a call point to. All bounded; what cannot be read is empty.
class CallReader {
public:
  [[nodiscard]] static Result<CallReader> create(const linux_guest::Kernel &kernel);

  // One that reads what was kept of a call that is over, and nothing else. `kept` must outlive it.
  [[nodiscard]] CallReader of_kept(std::span<const Kept> kept) const;

  [[nodiscard]] const linux_guest::Kernel &kernel() const { return *kernel_; }
  // A member by its path; nothing where this kernel has none.
  [[nodiscard]] std::optional<std::uint64_t> number(Gva object, std::string_view type, std::string_view member) const;
  [[nodiscard]] std::optional<Gva> pointer(Gva object, std::string_view type, std::string_view member) const;
  [[nodiscard]] bool bytes(Gva address, std::span<std::byte> out) const;
  [[nodiscard]] std::string text(Gva address) const;                          // up to 4096 bytes
  [[nodiscard]] std::string path(Gva path) const;                             // of a struct path
  [[nodiscard]] std::string path_of_file(Gva file) const;                     // of a struct file
  [[nodiscard]] std::string path_below(Gva directory_path, Gva dentry) const; // of a struct path and a name in it
  [[nodiscard]] std::optional<std::int64_t> enumerator(std::string_view) const;
  // Strings one after the other in a process' memory, separated by NULs: at most 64 and 8 KiB.
  [[nodiscard]] std::vector<std::string> user_strings(Gva mm, Gva begin, std::uint64_t count) const;

private:
  CallReader(const linux_guest::Kernel &kernel, linux_guest::PathResolver paths) : kernel_(&kernel), paths_(paths) {}
  [[nodiscard]] const Kept *kept(KeepKind kind, Gva key) const;

  const linux_guest::Kernel *kernel_;
  linux_guest::PathResolver paths_;
  std::optional<std::span<const Kept>> kept_;
};

// What a call means, in words ("executes /bin/sh") and fields.
struct Meaning {
  std::string sentence;
  std::vector<RecordField> fields{};
  Meaning &with(std::string name, FieldValue value) {
    fields.push_back({std::move(name), std::move(value)});
    return *this;
  }
};

struct HookEntry {
  const char *name;      // "exec"
  const char *summary;   // one line for `guard --list-hooks`
  const char *explained; // what is seen, what is not
  bool may_deny;
  // The functions of this kernel that make the hook. An error says what it lacks.
  Result<std::vector<HookPoint>> (*points)(const linux_guest::Kernel &kernel);
  Meaning (*tell)(const CallReader &reader, const HookedCall &call);
};

// All registered hooks, by name.
[[nodiscard]] std::vector<const HookEntry *> all_hooks();

// ---- for hooks

// Points of those of `functions` that the kernel has; an error where it has none of them.
[[nodiscard]] Result<std::vector<HookPoint>> points_at(const linux_guest::Kernel &kernel,
                                                       std::vector<HookPoint> functions);
[[nodiscard]] inline Keep keep_member(std::uint8_t argument, std::vector<Member> members,
                                      KeepRole role = KeepRole::none) {
  return {KeepKind::member, argument, std::move(members), role};
}
[[nodiscard]] inline Keep keep_path_of_file(std::uint8_t argument, std::vector<Member> members = {}) {
  members.push_back({"file", "f_path"});
  return {KeepKind::path, argument, std::move(members), KeepRole::path};
}

} // namespace lararium::gate

// The linker gathers the entries in a section of their own: no list to edit, and no code that runs before main().
#define LARARIUM_HOOK(identifier, ...)                                                                                 \
  namespace {                                                                                                          \
  constexpr ::lararium::gate::HookEntry identifier##_entry = {__VA_ARGS__};                                            \
  [[gnu::section("lararium_hooks"),                                                                                    \
    gnu::used]] constexpr const ::lararium::gate::HookEntry *const identifier##_registration = &identifier##_entry;    \
  }
