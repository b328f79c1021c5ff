#include "lararium/record/record.h"

namespace lararium {

std::string_view name_of(Severity severity) {
  switch (severity) {
  case Severity::low: return "low";
  case Severity::medium: return "medium";
  case Severity::high: return "high";
  case Severity::critical: return "critical";
  }
  return "unknown";
}

std::string_view name_of(RecordKind kind) { return kind == RecordKind::finding ? "finding" : "event"; }

} // namespace lararium
