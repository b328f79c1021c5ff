// Result<T>: what every call that can fail returns. Libraries do not throw, print, abort or exit.
#pragma once

#include "lararium/base/address.h"

#include <cstdint>
#include <expected>
#include <string>
#include <string_view>
#include <utility>

namespace lararium {

// What kind of thing went wrong. The command line maps these to exit codes (docs/exit_codes.md).
enum class ErrorCode : std::uint8_t {
  memory_fault,      // an address is not mapped, or lies outside the guest's memory
  corrupt,           // guest bytes, a dump or a file contradict their format, or exceed a limit
  not_found,         // a symbol, type, process, VM or file that was asked for is not there
  ambiguous,         // a name fits several VMs
  permission_denied, // the host's kernel refused
  gone,              // the VM ended while it was read
  unsupported,       // known, and not possible here (SEV, a foreign architecture, an old format)
  unknown_os,        // no operating system that Lararium knows was found
  no_types,          // the kernel is known, its type information is not (no BTF): a profile file is needed
  protocol,          // QEMU or libvirt answered what was not expected
  io,                // a system call on the host failed
  timeout,           // a limit of time was reached
  usage,             // the call contradicts itself or its arguments
};

[[nodiscard]] std::string_view name_of(ErrorCode code);

enum class Space : std::uint8_t { none, guest_physical, guest_virtual, host_virtual, file_offset };

struct Error {
  ErrorCode code = ErrorCode::io;
  Space space = Space::none; // what `address` is an address in; none: there is no address
  std::uint64_t address = 0;
  std::string message; // one clear sentence without a full stop; may be empty for memory faults

  // The sentence a person reads: the message, then the address with its space where there is one.
  [[nodiscard]] std::string describe() const;
};

template <class T> using Result = std::expected<T, Error>;

[[nodiscard]] inline std::unexpected<Error> fail(ErrorCode code, std::string message) {
  return std::unexpected(Error{code, Space::none, 0, std::move(message)});
}
[[nodiscard]] inline std::unexpected<Error> fault(Gva address) {
  return std::unexpected(Error{ErrorCode::memory_fault, Space::guest_virtual, address.value, {}});
}
[[nodiscard]] inline std::unexpected<Error> fault(Gpa address) {
  return std::unexpected(Error{ErrorCode::memory_fault, Space::guest_physical, address.value, {}});
}
// A failed system call: `what` says what was attempted; the errno's text is added, EACCES and EPERM become
// permission_denied, ESRCH becomes gone.
[[nodiscard]] std::unexpected<Error> fail_errno(std::string_view what, int error_number);
// The same error with context in front of its message ("VM demo: ...").
[[nodiscard]] std::unexpected<Error> wrap(Error error, std::string_view context);

} // namespace lararium

// std::expected has no monadic members in GCC 12. TRY_ASSIGN(auto x, f()) unwraps or returns the error; TRY(f())
// returns it.
#define LARARIUM_CONCAT_INNER(a, b) a##b
#define LARARIUM_CONCAT(a, b) LARARIUM_CONCAT_INNER(a, b)
#define TRY_ASSIGN(target, ...)                                                                                        \
  auto LARARIUM_CONCAT(try_result_, __LINE__) = (__VA_ARGS__);                                                         \
  if (!LARARIUM_CONCAT(try_result_, __LINE__))                                                                         \
    return std::unexpected(std::move(LARARIUM_CONCAT(try_result_, __LINE__)).error());                                 \
  target = *std::move(LARARIUM_CONCAT(try_result_, __LINE__))
#define TRY(...)                                                                                                       \
  do {                                                                                                                 \
    if (auto try_result = (__VA_ARGS__); !try_result)                                                                  \
      return std::unexpected(std::move(try_result).error());                                                           \
  } while (false)
