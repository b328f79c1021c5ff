#include "lararium/policy/rules.h"

#include <algorithm>
#include <charconv>
#include <fmt/format.h>

namespace lararium::policy {
namespace {

constexpr std::size_t longest_rule = 4096;

// Words, with what stands in double quotes kept together.
Result<std::vector<std::string>> words_of(std::string_view text) {
  std::vector<std::string> words;
  std::string word;
  bool quoted = false, begun = false;
  for (const char c : text) {
    if (c == '"') {
      quoted = !quoted;
      begun = true;
    } else if (!quoted && (c == ' ' || c == '\t')) {
      if (begun)
        words.push_back(std::exchange(word, {}));
      begun = false;
    } else {
      word += c;
      begun = true;
    }
  }
  if (quoted)
    return fail(ErrorCode::usage, fmt::format("a quotation mark is missing in the rule: {}", text));
  if (begun)
    words.push_back(std::move(word));
  return words;
}

std::vector<std::string> split(std::string_view text, char separator) {
  std::vector<std::string> parts;
  while (true) {
    const auto at = std::min(text.find(separator), text.size());
    parts.emplace_back(text.substr(0, at));
    if (at == text.size())
      return parts;
    text.remove_prefix(at + 1);
  }
}

std::optional<std::uint64_t> number_of(std::string_view text) {
  int base = 10;
  if (text.starts_with("0x")) {
    text.remove_prefix(2);
    base = 16;
  }
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  return error == std::errc() && end == text.data() + text.size() ? std::optional(value) : std::nullopt;
}

struct Fits {
  std::string_view wanted;
  bool operator()(const std::string &text) const { return fits_pattern(wanted, text); }
  bool operator()(std::uint64_t number) const {
    if (const auto dash = wanted.find('-'); dash != wanted.npos && dash != 0) {
      const auto low = number_of(wanted.substr(0, dash)), high = number_of(wanted.substr(dash + 1));
      return low && high && number >= *low && number <= *high;
    }
    return number_of(wanted) == number;
  }
  bool operator()(bool truth) const { return wanted == (truth ? "yes" : "no"); }
  bool operator()(Gva address) const { return number_of(wanted) == address.value; }
  bool operator()(const std::vector<std::byte> &) const { return false; }
};

std::optional<FieldValue> value_of(const Record &record, std::string_view name) {
  for (const RecordField &field : record.fields)
    if (field.name == name)
      return field.value;
  if (!record.actor)
    return std::nullopt;
  const Actor &actor = *record.actor;
  if (name == "pid")
    return static_cast<std::uint64_t>(actor.pid);
  if (name == "ppid")
    return static_cast<std::uint64_t>(actor.ppid);
  if (name == "uid")
    return std::uint64_t{actor.uid};
  if (name == "comm")
    return actor.comm;
  if (name == "exe")
    return actor.exe;
  if (name == "container")
    return actor.container_id;
  return std::nullopt;
}

// "sshd (212), init (1)" are its ancestors.
bool is_below(const Record &record, std::string_view pid) {
  if (record.actor && fmt::format("{}", record.actor->pid) == pid)
    return true;
  const auto parents = std::ranges::find(record.fields, "parents", &RecordField::name);
  const auto *text = parents == record.fields.end() ? nullptr : std::get_if<std::string>(&parents->value);
  return text != nullptr && text->find(fmt::format("({})", pid)) != std::string::npos;
}

} // namespace

bool fits_pattern(std::string_view pattern, std::string_view text) {
  // The usual walk with one place to come back to: behind the last star that may still grow. "**" grows over slashes.
  std::size_t p = 0, t = 0;
  struct Star {
    std::size_t pattern = 0, text = 0;
    bool any = false;
  };
  std::optional<Star> star, deep; // the last of each kind
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      const bool any = pattern.substr(p, 2) == "**";
      p += any ? 2 : 1;
      star = Star{p, t, any};
      if (any) {
        deep = star;
        star.reset();
      }
      continue;
    }
    if (p < pattern.size() && (pattern[p] == '?' ? text[t] != '/' : pattern[p] == text[t])) {
      ++p;
      ++t;
      continue;
    }
    if (star && text[star->text] != '/') {
      t = ++star->text;
      p = star->pattern;
    } else if (deep) {
      star.reset();
      t = ++deep->text;
      p = deep->pattern;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*')
    ++p;
  return p == pattern.size();
}

Result<Rule> parse_rule(std::string_view text, Action action) {
  if (text.size() > longest_rule)
    return fail(ErrorCode::usage, "a rule is longer than 4096 characters");
  TRY_ASSIGN(const auto words, words_of(text));
  if (words.empty())
    return fail(ErrorCode::usage, "a rule is empty: it begins with a hook, such as exec");
  Rule rule{.text = std::string(text), .hook = words.front(), .conditions = {}, .action = action};
  for (std::size_t i = 1; i < words.size(); ++i) {
    const std::string &word = words[i];
    const auto equals = word.find('=');
    if (equals == std::string::npos || equals == 0 || (equals == 1 && word[0] == '!'))
      return fail(ErrorCode::usage, fmt::format("no condition NAME=VALUE in the rule \"{}\": {}", text, word));
    const bool negated = word[equals - 1] == '!';
    rule.conditions.push_back(
        {word.substr(0, negated ? equals - 1 : equals), split(word.substr(equals + 1), ','), negated});
  }
  return rule;
}

bool matches(const Rule &rule, std::string_view hook, const Record &record) {
  if (rule.hook != "*" && rule.hook != hook)
    return false;
  return std::ranges::all_of(rule.conditions, [&](const Condition &condition) {
    if (condition.name == "below")
      return std::ranges::any_of(condition.values, [&](const std::string &pid) { return is_below(record, pid); }) !=
             condition.negated;
    const auto value = value_of(record, condition.name);
    const bool fits = value && std::ranges::any_of(condition.values, [&](const std::string &wanted) {
                        return std::visit(Fits{wanted}, *value);
                      });
    return fits != condition.negated;
  });
}

bool is_recorded(const std::vector<Rule> &rules, std::string_view hook, const Record &record) {
  bool is_chosen = true;
  for (const Rule &rule : rules) {
    if (rule.action == Action::skip && matches(rule, hook, record))
      return false;
    is_chosen = is_chosen && !(rule.action == Action::only && (rule.hook == "*" || rule.hook == hook));
  }
  return is_chosen || std::ranges::any_of(rules, [&](const Rule &rule) {
           return rule.action == Action::only && matches(rule, hook, record);
         });
}

const Rule *first_match(const std::vector<Rule> &rules, std::string_view hook, const Record &record) {
  const auto found = std::ranges::find_if(rules, [&](const Rule &rule) { return matches(rule, hook, record); });
  return found == rules.end() ? nullptr : &*found;
}

} // namespace lararium::policy
