// Rules that decide about hooked calls: "exec path=/tmp/**", "connect port=4444 uid=1000".
//
// A rule is the name of a hook, or * for all, and conditions, all of which must hold: NAME=VALUE, or NAME!=VALUE. A
// name is a field of the record (docs/records.md) or of its actor: pid, ppid, uid, comm, exe, container; or `below`:
// the pid of the process or of one that it descends from. Numbers compare as numbers, with ranges 1-5; yes and no as
// truths. Texts are patterns: * is any text without a slash, ** any text, ? one character. Values are separated by
// commas: any of them fits. A value with blanks stands in double quotes.
#pragma once

#include "lararium/base/result.h"
#include "lararium/record/record.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lararium::policy {

enum class Action : std::uint8_t {
  allow,
  deny,
  only, // of its hook, only what fits is recorded
  skip, // what fits is not recorded
};

struct Condition {
  std::string name;
  std::vector<std::string> values;
  bool negated = false;
};

struct Rule {
  std::string text; // as it was given
  std::string hook; // "*": all
  std::vector<Condition> conditions;
  Action action = Action::deny;
};

// `usage` says what is wrong with it.
[[nodiscard]] Result<Rule> parse_rule(std::string_view text, Action action);

// Whether all conditions hold. A field that the record does not have fits no value.
[[nodiscard]] bool matches(const Rule &rule, std::string_view hook, const Record &record);

// In order: the first that fits decides. Rules about verdicts and rules about records are asked for apart.
[[nodiscard]] const Rule *first_match(const std::vector<Rule> &rules, std::string_view hook, const Record &record);

// What `only` and `skip` say.
[[nodiscard]] bool is_recorded(const std::vector<Rule> &rules, std::string_view hook, const Record &record);

// `text` against a pattern as above; in time proportional to the product of their lengths at most.
[[nodiscard]] bool fits_pattern(std::string_view pattern, std::string_view text);

} // namespace lararium::policy
