#include "lararium/base/result.h"

#include <cerrno>
#include <fmt/format.h>
#include <system_error>

namespace lararium {

std::string_view name_of(ErrorCode code) {
  switch (code) {
  case ErrorCode::memory_fault: return "memory_fault";
  case ErrorCode::corrupt: return "corrupt";
  case ErrorCode::not_found: return "not_found";
  case ErrorCode::ambiguous: return "ambiguous";
  case ErrorCode::permission_denied: return "permission_denied";
  case ErrorCode::gone: return "gone";
  case ErrorCode::unsupported: return "unsupported";
  case ErrorCode::unknown_os: return "unknown_os";
  case ErrorCode::no_types: return "no_types";
  case ErrorCode::protocol: return "protocol";
  case ErrorCode::io: return "io";
  case ErrorCode::timeout: return "timeout";
  case ErrorCode::usage: return "usage";
  }
  return "unknown";
}

std::string Error::describe() const {
  const std::string_view what = message.empty() ? std::string_view("not readable") : std::string_view(message);
  switch (space) {
  case Space::none: return std::string(message.empty() ? name_of(code) : std::string_view(message));
  case Space::guest_physical: return fmt::format("{} (guest-physical {:#x})", what, address);
  case Space::guest_virtual: return fmt::format("{} (guest-virtual {:#x})", what, address);
  case Space::host_virtual: return fmt::format("{} (host address {:#x})", what, address);
  case Space::file_offset: return fmt::format("{} (at file offset {:#x})", what, address);
  }
  return message;
}

std::unexpected<Error> fail_errno(std::string_view what, int error_number) {
  ErrorCode code = ErrorCode::io;
  if (error_number == EACCES || error_number == EPERM)
    code = ErrorCode::permission_denied;
  else if (error_number == ESRCH)
    code = ErrorCode::gone;
  else if (error_number == ENOENT)
    code = ErrorCode::not_found;
  return fail(code, fmt::format("{}: {}", what, std::generic_category().message(error_number)));
}

std::unexpected<Error> wrap(Error error, std::string_view context) {
  if (error.message.empty())
    error.message = fmt::format("{}: {}", context, error.space == Space::none ? name_of(error.code) : "not readable");
  else
    error.message = fmt::format("{}: {}", context, error.message);
  return std::unexpected(std::move(error));
}

} // namespace lararium
