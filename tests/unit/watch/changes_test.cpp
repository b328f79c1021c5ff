#include "lararium/watch/changes.h"

#include <algorithm>
#include <gtest/gtest.h>

namespace lararium::watch {
namespace {

Process process(std::int32_t pid, std::uint64_t start, std::string comm) {
  Process result;
  result.pid = result.tgid = pid;
  result.ppid = 1;
  result.start_since_boot_ns = start;
  result.comm = std::move(comm);
  result.exe = "/bin/" + result.comm;
  result.arguments = {result.comm};
  result.state = 'S';
  return result;
}

std::vector<std::string> types_of(Records &records) {
  std::vector<std::string> types;
  for (const Record &record : records.items())
    types.push_back(record.type);
  return types;
}

// A kernel whose table of pids cannot be looked into.
Result<std::optional<std::uint64_t>> no_table(std::int32_t) { return fail(ErrorCode::unsupported, "no table"); }

std::vector<std::string> update(ProcessChanges &changes, std::vector<Process> now, ViewStatus status = {},
                                const ProcessChanges::StartOfPid &start_of = no_table) {
  Records records;
  changes.update({std::move(now), std::move(status)}, start_of, records);
  return types_of(records);
}

using Types = std::vector<std::string>;

TEST(ProcessChanges, FirstLookIsNoNews) {
  ProcessChanges changes;
  EXPECT_EQ(update(changes, {process(1, 0, "init"), process(2, 5, "a")}), Types{});
  EXPECT_EQ(update(changes, {process(1, 0, "init"), process(2, 5, "a")}), Types{});
}

TEST(ProcessChanges, TellsStartAndEnd) {
  ProcessChanges changes;
  update(changes, {process(1, 0, "init")});
  EXPECT_EQ(update(changes, {process(1, 0, "init"), process(7, 9, "a")}), Types{"process_started"});
  EXPECT_EQ(changes.actor(7)->comm, "a");
  EXPECT_EQ(update(changes, {process(1, 0, "init")}), Types{"process_ended"});
}

TEST(ProcessChanges, AnotherStartTimeIsAnotherProcess) {
  ProcessChanges changes;
  update(changes, {process(1, 0, "init"), process(7, 9, "a")});
  auto types = update(changes, {process(1, 0, "init"), process(7, 20, "b")});
  std::ranges::sort(types);
  EXPECT_EQ(types, (Types{"process_ended", "process_started"}));
}

TEST(ProcessChanges, RacedLookMustMissTwice) {
  ProcessChanges changes;
  ViewStatus raced;
  raced.raced = true;
  update(changes, {process(1, 0, "init"), process(7, 9, "a")});
  EXPECT_EQ(update(changes, {process(1, 0, "init")}, raced), Types{});
  EXPECT_EQ(update(changes, {process(1, 0, "init"), process(7, 9, "a")}), Types{});
  EXPECT_EQ(update(changes, {process(1, 0, "init")}, raced), Types{});
  EXPECT_EQ(update(changes, {process(1, 0, "init")}, raced), Types{"process_ended"});
}

TEST(ProcessChanges, WhoIsInTheTableOfPidsHasNotEnded) {
  ProcessChanges changes;
  std::map<std::int32_t, std::uint64_t> table{{1, 0}, {7, 9}};
  const auto start_of = [&](std::int32_t pid) -> Result<std::optional<std::uint64_t>> {
    return table.contains(pid) ? std::optional(table[pid]) : std::nullopt;
  };
  ViewStatus raced;
  raced.raced = true;
  update(changes, {process(1, 0, "init"), process(7, 9, "a")});
  for (int i = 0; i < 3; ++i) { // taken out of the list, or behind where it is broken
    EXPECT_EQ(update(changes, {process(1, 0, "init")}, {}, start_of), Types{});
    EXPECT_EQ(update(changes, {process(1, 0, "init")}, raced, start_of), Types{});
  }
  EXPECT_EQ(update(changes, {process(1, 0, "init"), process(7, 9, "a")}, {}, start_of), Types{});
  table[7] = 20; // another one
  EXPECT_EQ(update(changes, {process(1, 0, "init")}, raced, start_of), Types{"process_ended"});
  EXPECT_EQ(update(changes, {process(1, 0, "init"), process(7, 20, "b")}, raced, start_of), Types{"process_started"});
  table.erase(7);
  EXPECT_EQ(update(changes, {process(1, 0, "init")}, raced, start_of), Types{"process_ended"});
}

TEST(ProcessChanges, WhatCannotBeReadIsNoOtherProcess) {
  ProcessChanges changes;
  ViewStatus raced;
  raced.raced = true;
  update(changes, {process(1, 5, "init"), process(7, 9, "a")});
  EXPECT_EQ(update(changes, {process(1, 5, "init"), process(7, 0, "a")}, raced), Types{});
}

TEST(ProcessChanges, TellsCredentials) {
  ProcessChanges changes;
  update(changes, {process(7, 9, "a")});
  Process now = process(7, 9, "a");
  now.uid = {1, 1, 1, 1};
  EXPECT_EQ(update(changes, {now}), Types{"credentials_changed"});
}

TEST(ModuleChanges, TellsLoadAndUnload) {
  ModuleChanges changes;
  KernelModule module;
  module.name = "dummy";
  module.module = Gva{0xffffffffc0000000};
  module.state = "live";
  Records first, second, third;
  changes.update({}, first);
  changes.update({{module}, {}}, second);
  changes.update({}, third);
  EXPECT_EQ(types_of(first), Types{});
  EXPECT_EQ(types_of(second), Types{"module_loaded"});
  EXPECT_EQ(types_of(third), Types{"module_unloaded"});
}

TEST(FindingChanges, StandsUntilARoundIsMadeWithoutIt) {
  FindingChanges changes;
  Finding finding;
  finding.check = "modules";
  finding.subject = "x";
  Records first, second, third;
  changes.update({{"modules", true, {finding}}}, first);
  changes.update({{"modules", false, {}}}, second); // could not be made: nothing is known
  changes.update({{"modules", true, {}}}, third);
  EXPECT_EQ(types_of(first), Types{"finding_appeared"});
  EXPECT_EQ(types_of(second), Types{});
  EXPECT_EQ(types_of(third), Types{"finding_cleared"});
}

TEST(UnseenProcesses, CountsWhatWasGivenOutAndNotSeen) {
  using Range = UnseenProcesses::Range;
  EXPECT_EQ(UnseenProcesses::count({Range{10, 15}}, {11}, {12}), 3U);
  EXPECT_EQ(UnseenProcesses::count({}, {}, {}), 0U);
}

TEST(Records, AreBounded) {
  Records records;
  for (std::size_t i = 0; i < Records::limit + 5; ++i)
    records.add("process_started", "x");
  EXPECT_EQ(records.items().size(), Records::limit);
  EXPECT_EQ(records.left_out(), 5U);
}

} // namespace
} // namespace lararium::watch
