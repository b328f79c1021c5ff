// The neutral model: what `check` and `watch` have to tell, whatever found it and whoever reads it. Knows neither a
// guest's own structures nor any output format. Field names are part of the model: docs/records.md lists them.
#pragma once

#include "lararium/base/address.h"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace lararium {

// Changes when a reader of an older version would misunderstand a record; new fields do not change it.
inline constexpr int record_version = 1;

// For people first: what should be looked at now (critical), today (high), when there is time (medium), or only with
// other evidence (low).
enum class Severity : std::uint8_t { low, medium, high, critical };
[[nodiscard]] std::string_view name_of(Severity severity);

using FieldValue = std::variant<std::string, std::uint64_t, bool, Gva, std::vector<std::byte>>;

struct RecordField {
  std::string name; // lower-case words joined by underscores
  FieldValue value;
};

// A process as records name it: enough to find it again, and to know who it was when it is gone.
struct Actor {
  std::int32_t pid = 0, ppid = 0;
  std::uint32_t uid = 0;
  std::string comm, exe, container_id;        // empty: none
  std::optional<std::uint64_t> start_time_ns; // since 1970; with the pid this names one process for ever
};

// Something that should not be so.
struct Finding {
  std::string check{};   // which check found it: "system_calls"
  std::string subject{}; // what it is about, the same each time it is found: with `check` this names the finding
  Severity severity = Severity::high;
  std::string technique{}; // MITRE ATT&CK: "T1014"
  std::string sentence{};  // for a person, without a full stop
  std::vector<RecordField> evidence{};
  std::optional<Actor> process{};

  Finding &with(std::string name, FieldValue value) {
    evidence.push_back({std::move(name), std::move(value)});
    return *this;
  }
};

// Which VM a record is of.
struct RecordVm {
  std::string name, uuid; // uuid empty: none
  std::int32_t pid = 0;   // of the process that runs it
};

enum class RecordKind : std::uint8_t { event, finding };
[[nodiscard]] std::string_view name_of(RecordKind kind);

// Something that happened, or a finding that appeared or cleared.
struct Record {
  RecordKind kind = RecordKind::event;
  std::string type{}; // "process_started"; docs/records.md lists them
  RecordVm vm{};
  std::optional<std::uint64_t> guest_time_ns{}; // since 1970, by the guest's clock, of the look that saw it
  std::uint64_t host_time_ns = 0;               // the same moment by the host's clock
  std::string sentence{};                       // for a person, without a full stop
  std::optional<Actor> actor{};                 // who did it, where that can be seen
  std::vector<RecordField> fields{};
  std::optional<Finding> finding{};

  Record &with(std::string name, FieldValue value) {
    fields.push_back({std::move(name), std::move(value)});
    return *this;
  }
};

} // namespace lararium
