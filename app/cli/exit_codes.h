// The program's exit codes; docs/exit_codes.md is their contract.
#pragma once

#include "lararium/base/result.h"

namespace lararium::cli {

inline constexpr int exit_success = 0;
inline constexpr int exit_findings = 20;          // `check` found something
inline constexpr int exit_reader_went_away = 141; // 128 + SIGPIPE, as a shell reports it

[[nodiscard]] constexpr int exit_code_of(ErrorCode code) {
  switch (code) {
  case ErrorCode::io: return 1;
  case ErrorCode::usage: return 2;
  case ErrorCode::not_found: return 3;
  case ErrorCode::ambiguous: return 4;
  case ErrorCode::permission_denied: return 5;
  case ErrorCode::gone: return 6;
  case ErrorCode::unsupported: return 7;
  case ErrorCode::unknown_os: return 8;
  case ErrorCode::no_types: return 9;
  case ErrorCode::corrupt: return 10;
  case ErrorCode::memory_fault: return 11;
  case ErrorCode::protocol: return 12;
  case ErrorCode::timeout: return 13;
  }
  return 1;
}

} // namespace lararium::cli
