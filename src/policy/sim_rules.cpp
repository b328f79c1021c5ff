#include "lararium/policy/sim_rules.h"

#include <algorithm>
#include <charconv>

namespace lararium::policy {
namespace {

using gate::HookEntry;
using gate::SimAction;
using gate::SimRule;

std::optional<std::uint32_t> number_of(std::string_view text) {
  std::uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() && !text.empty() ? std::optional(value)
                                                                                   : std::nullopt;
}

std::optional<SimRule::Range> range_of(std::string_view text) {
  const auto dash = text.find('-');
  const auto low = number_of(text.substr(0, dash)), high = dash == text.npos ? low : number_of(text.substr(dash + 1));
  return low && high ? std::optional(SimRule::Range{*low, *high}) : std::nullopt;
}

// Puts one value of a condition into a rule. False: more than it says fits then.
bool add(SimRule &rule, const Condition &condition, const std::string &value) {
  if (condition.name == "path" && !condition.negated) {
    const auto wild = value.find_first_of("*?");
    rule.path = value.substr(0, wild);
    rule.path_begins = wild != value.npos;
    return wild == value.npos || value.substr(wild) == "**";
  }
  if (condition.name == "uid" || (condition.name == "port" && !condition.negated)) {
    auto range = range_of(value);
    (condition.name == "uid" ? rule.uid : rule.port) = range;
    rule.uid_negated = rule.uid_negated || (range && condition.negated);
    return range.has_value();
  }
  if ((condition.name == "pid" || condition.name == "below") && !condition.negated) {
    auto number = number_of(value);
    (condition.name == "pid" ? rule.pid : rule.below) = number;
    return number.has_value();
  }
  if (condition.name == "container" && !condition.negated) {
    const auto wild = value.find_first_of("*?");
    const std::string_view rest = wild == value.npos ? std::string_view() : std::string_view(value).substr(wild);
    rule.contained = value == "?*" || value == "?**";
    if (rule.contained)
      return true;
    rule.container = value.substr(0, wild);
    rule.container_begins = wild != value.npos;
    return rest.empty() || rest == "*" || rest == "**";
  }
  return false;
}

struct Expanded {
  std::vector<SimRule> rules;
  bool is_exact = true;
};

// One for each choice of values: a condition with several holds if any of them fits.
Expanded expand(const Rule &rule) {
  Expanded result{.rules = {SimRule{}}};
  for (const Condition &condition : rule.conditions) {
    if (condition.negated && condition.values.size() != 1) { // none of several
      result.is_exact = false;
      continue;
    }
    std::vector<SimRule> next;
    for (const SimRule &base : result.rules)
      for (const std::string &value : condition.values) {
        next.push_back(base);
        result.is_exact &= add(next.back(), condition, value);
      }
    result.rules = std::move(next);
  }
  return result;
}

} // namespace

void add_sim_rules(gate::SimOptions &options, std::span<const Rule> rules,
                   const std::vector<const HookEntry *> &hooks) {
  for (std::uint32_t i = 0; i < rules.size(); ++i) {
    const Rule &rule = rules[i];
    std::vector<const HookEntry *> named;
    for (const HookEntry *hook : hooks)
      if (rule.hook == "*" || rule.hook == hook->name)
        named.push_back(hook);
    if (named.empty())
      continue;
    auto [expanded, is_exact] = expand(rule);
    if (rule.action == Action::only)
      for (const HookEntry *hook : named)
        if (std::ranges::find(options.only, hook) == options.only.end())
          options.only.push_back(hook);
    if (rule.action == Action::skip && !is_exact)
      continue;
    const bool is_verdict = rule.action == Action::allow || rule.action == Action::deny;
    for (SimRule &out : expanded) {
      out.hooks = named;
      out.number = i + 1;
      switch (rule.action) {
      case Action::allow: out.action = is_exact ? SimAction::allow : SimAction::ask; break;
      case Action::deny: out.action = is_exact ? SimAction::deny : SimAction::ask; break;
      case Action::only: out.action = SimAction::record; break;
      case Action::skip: out.action = SimAction::skip; break;
      }
      (is_verdict ? options.verdicts : options.records).push_back(std::move(out));
    }
  }
}

} // namespace lararium::policy
