#include "lararium/detect/runner.h"

#include <algorithm>
#include <fmt/format.h>
#include <thread>

namespace lararium::detect {
namespace {

void keep_those_in(std::vector<Finding> &findings, const std::vector<Finding> &others) {
  std::erase_if(findings, [&](const Finding &finding) {
    return std::ranges::none_of(others, [&](const Finding &other) { return other.subject == finding.subject; });
  });
}

} // namespace

Result<Runner> Runner::create(const Target &target, OperatingSystem &system, const Selection &selection) {
  const auto checks = all_checks();
  for (const auto *names : {&selection.only, &selection.skip})
    for (const std::string &name : *names)
      if (std::ranges::none_of(checks, [&](const CheckEntry *check) { return name == check->name; }))
        return fail(ErrorCode::usage, fmt::format("there is no check {}; `lararium check --list` lists them", name));
  const auto holds = [](const std::vector<std::string> &names, const CheckEntry *check) {
    return std::ranges::find(names, check->name) != names.end();
  };
  Runner runner(target, system);
  for (const CheckEntry *check : checks)
    if ((selection.only.empty() || holds(selection.only, check)) && !holds(selection.skip, check))
      runner.entries_.push_back({check, check->make()});
  return runner;
}

Result<std::vector<Outcome>> Runner::run() {
  using Clock = std::chrono::steady_clock;
  std::vector<Outcome> outcomes(entries_.size());
  std::vector<std::size_t> suspicious(entries_.size());
  for (std::size_t i = 0; i < entries_.size(); ++i)
    suspicious[i] = i;
  for (unsigned look = 0; look < looks && !suspicious.empty(); ++look) {
    if (look != 0)
      std::this_thread::sleep_for(pause);
    system_->refresh();
    TRY_ASSIGN(const auto scene, Scene::create(*target_, *system_));
    std::erase_if(suspicious, [&](std::size_t i) {
      Outcome &outcome = outcomes[i];
      outcome.check = entries_[i].check;
      ++outcome.looks;
      Findings findings;
      const auto begin = Clock::now();
      const auto result = entries_[i].instance->look(*scene, findings);
      outcome.took += Clock::now() - begin;
      if (!result) {
        outcome.error = result.error();
        outcome.findings.clear();
        return true;
      }
      for (Finding &finding : findings.items())
        finding.check = entries_[i].check->name;
      if (look == 0)
        outcome.findings = std::move(findings.items());
      else
        keep_those_in(outcome.findings, findings.items());
      outcome.left_out = findings.left_out();
      return outcome.findings.empty();
    });
  }
  return outcomes;
}

} // namespace lararium::detect
