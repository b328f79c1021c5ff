#include "lararium/detect/runner.h"

#include <algorithm>
#include <fmt/format.h>
#include <thread>

namespace lararium::detect {
namespace {

using Clock = std::chrono::steady_clock;

// A kernel that has no such thing will not have it at the next look.
bool may_pass(const Error &error) {
  return error.code != ErrorCode::not_found && error.code != ErrorCode::unsupported &&
         error.code != ErrorCode::no_types && error.code != ErrorCode::gone;
}

} // namespace

bool Agreement::take(const Result<void> &result, std::vector<Finding> findings) {
  ++taken_;
  if (!result) {
    findings_.clear();
    agreed_ = 0;
    return looks_ == 1 || !may_pass(result.error()) || ++failed_ >= most_failures;
  }
  if (agreed_ == 0)
    findings_ = std::move(findings);
  else
    std::erase_if(findings_, [&](const Finding &finding) {
      return std::ranges::none_of(findings, [&](const Finding &other) { return other.subject == finding.subject; });
    });
  ++agreed_;
  return findings_.empty() || agreed_ >= looks_;
}

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
      runner.entries_.push_back({check, check->make(), std::nullopt, {}});
  return runner;
}

std::optional<Outcome> Runner::look(std::size_t index, const Scene &scene) {
  Entry &entry = entries_[index];
  if (!entry.agreement) {
    entry.agreement.emplace(looks);
    entry.took = {};
  }
  Findings findings;
  const auto begin = Clock::now();
  const auto result = entry.instance->look(scene, findings);
  entry.took += Clock::now() - begin;
  for (Finding &finding : findings.items())
    finding.check = entry.check->name;
  if (!entry.agreement->take(result, std::move(findings.items())))
    return std::nullopt;
  Outcome outcome{.check = entry.check,
                  .findings = std::move(entry.agreement->findings()),
                  .left_out = findings.left_out(),
                  .unseen = std::move(findings.unseen()),
                  .error = result ? std::nullopt : std::optional(result.error()),
                  .took = entry.took,
                  .looks = entry.agreement->taken()};
  entry.agreement.reset();
  return outcome;
}

std::chrono::milliseconds Runner::again_after(std::size_t index) const {
  // Most races are over in a moment. Some need a grace period of RCU and a worker (the initialisation of a module is
  // given free by one), which a guest that is short of processors takes its time for.
  const auto &agreement = entries_[index].agreement;
  const unsigned taken = agreement ? agreement->taken() : 0;
  return std::chrono::milliseconds(taken <= 1 ? 20 : taken == 2 ? 80 : 320);
}

Result<std::vector<Outcome>> Runner::run() {
  std::vector<Outcome> outcomes(entries_.size());
  std::vector<std::size_t> open(entries_.size());
  for (std::size_t i = 0; i < entries_.size(); ++i)
    open[i] = i;
  while (!open.empty()) {
    system_->refresh();
    TRY_ASSIGN(const auto scene, Scene::create(*target_, *system_, references));
    std::erase_if(open, [&](std::size_t i) {
      auto outcome = look(i, *scene);
      if (!outcome)
        return false;
      outcomes[i] = std::move(*outcome);
      return true;
    });
    if (!open.empty()) // all of them took as many looks
      std::this_thread::sleep_for(again_after(open.front()));
  }
  return outcomes;
}

} // namespace lararium::detect
