#include "lararium/watch/guest_watcher.h"

#include "../os/silent_system.h"

#include <algorithm>
#include <functional>
#include <gtest/gtest.h>
#include <map>
#include <set>

namespace lararium::watch {
namespace {

using namespace std::chrono_literals;

// A guest whose processes the test moves, and that counts how it is asked for them.
class Guest final : public test::SilentSystem {
public:
  std::map<std::int32_t, Process> now;
  std::set<std::int32_t> unlisted;       // in the table of pids alone
  bool raced = false;                    // the next list
  std::function<void()> between = [] {}; // a list and the look at who is new in it
  std::vector<std::int32_t> asked_for;   // by the last look at processes
  std::size_t looks = 0;

  Guest() {
    put(1, 1000, "init");
    put(7, 2000, "daemon");
  }
  Process &put(std::int32_t pid, std::uint64_t start, std::string comm) {
    Process &process = now[pid];
    process = {};
    process.pid = process.tgid = pid;
    process.ppid = 1;
    process.start_since_boot_ns = start;
    process.exe = "/bin/" + comm;
    process.comm = std::move(comm);
    process.memory = Gva{start << 12};
    process.state = 'S';
    return process;
  }

  Result<SystemInfo> info() override { return SystemInfo{}; }
  Result<Pulse> pulse() override { // the clock moves on
    Pulse pulse;
    pulse.time_ns = pulse.uptime_ns = ++ticks_ * 1'000'000;
    return pulse;
  }
  Result<std::optional<std::uint64_t>> start_of_pid(std::int32_t pid) override {
    const auto found = now.find(pid);
    return found == now.end() ? std::nullopt : std::optional(found->second.start_since_boot_ns);
  }
  Result<View<ProcessMark>> process_marks() override {
    View<ProcessMark> view;
    view.status.raced = std::exchange(raced, false);
    for (const auto &[pid, process] : now)
      if (!unlisted.contains(pid))
        view.items.push_back({pid, std::hash<std::string>()(process.comm + std::to_string(process.uid.effective)) ^
                                       process.start_since_boot_ns});
    return view;
  }
  Result<View<Process>> processes(const ProcessQuery &query) override {
    between();
    ++looks;
    asked_for = query.only_pids;
    View<Process> view;
    for (const std::int32_t pid : query.only_pids)
      if (now.contains(pid))
        view.items.push_back(now[pid]);
    if (view.items.empty())
      return none();
    return view;
  }

private:
  std::uint64_t ticks_ = 0;
};

struct Watched {
  Guest guest;
  GuestWatcher watcher{guest, {.modules = 0ms, .sockets = 0ms, .mounts = 0ms, .interfaces = 0ms, .bpf = 0ms}};
  Clock::time_point time{};

  Watched() { EXPECT_TRUE(watcher.start(time)); }
  std::vector<std::string> poll() {
    Records records;
    EXPECT_TRUE(watcher.poll(time += 100ms, records));
    std::vector<std::string> types;
    for (const Record &record : records.items())
      types.push_back(record.type);
    return types;
  }
};

using Types = std::vector<std::string>;
using Pids = std::vector<std::int32_t>;

TEST(GuestWatcher, ReadsOnlyWhatChanged) {
  Watched watched;
  const auto looks = watched.guest.looks;
  EXPECT_EQ(watched.poll(), Types{});
  EXPECT_EQ(watched.guest.looks, looks);

  watched.guest.put(9, 3000, "shell");
  EXPECT_EQ(watched.poll(), Types{"process_started"});
  EXPECT_EQ(watched.guest.asked_for, Pids{9});

  watched.guest.now[7].uid.effective = 33;
  EXPECT_EQ(watched.poll(), Types{"credentials_changed"});
  EXPECT_EQ(watched.guest.asked_for, Pids{7});

  const auto before_the_end = watched.guest.looks;
  watched.guest.now.erase(9);
  EXPECT_EQ(watched.poll(), Types{"process_ended"});
  EXPECT_EQ(watched.guest.looks, before_the_end);
}

TEST(GuestWatcher, WhatIsKnownOfAProcessOutlastsTheLooksThatDoNotReadIt) {
  Watched watched;
  watched.guest.put(9, 3000, "shell");
  EXPECT_EQ(watched.poll(), Types{"process_started"});
  watched.guest.put(10, 3001, "other");
  EXPECT_EQ(watched.poll(), Types{"process_started"});
  watched.guest.now.erase(9);
  Records records;
  ASSERT_TRUE(watched.watcher.poll(watched.time + 100ms, records));
  ASSERT_EQ(records.items().size(), 1U);
  ASSERT_TRUE(records.items()[0].actor);
  EXPECT_EQ(records.items()[0].actor->exe, "/bin/shell");
}

TEST(GuestWatcher, APidThatWasUsedAgainIsAnotherProcess) {
  Watched watched;
  watched.guest.put(7, 4000, "daemon");
  auto types = watched.poll();
  std::ranges::sort(types);
  EXPECT_EQ(types, (Types{"process_ended", "process_started"}));
}

TEST(GuestWatcher, WhoChangedAndEndedInTheMiddleOfALookEndsAtTheNext) {
  Watched watched;
  watched.guest.put(9, 3000, "short");
  watched.guest.now[7].comm = "other";
  watched.guest.between = [&] {
    watched.guest.now.erase(7);
    watched.guest.now.erase(9);
  };
  EXPECT_EQ(watched.poll(), Types{});
  watched.guest.between = [] {};
  EXPECT_EQ(watched.poll(), Types{"process_ended"});
  EXPECT_EQ(watched.poll(), Types{});
}

TEST(GuestWatcher, AfterARacedLookAllAreReadAgain) {
  Watched watched;
  watched.guest.raced = true;
  EXPECT_EQ(watched.poll(), Types{});
  const auto looks = watched.guest.looks;
  EXPECT_EQ(watched.poll(), Types{});
  EXPECT_EQ(watched.guest.looks, looks + 1);
  EXPECT_EQ(watched.guest.asked_for, (Pids{1, 7}));
}

// Somebody takes a process out of the list, which is no end; its end later leaves the list as it was.
TEST(GuestWatcher, TheEndOfAHiddenProcessIsTold) {
  Watched watched;
  watched.guest.unlisted.insert(7);
  EXPECT_EQ(watched.poll(), Types{});
  EXPECT_EQ(watched.poll(), Types{});
  watched.guest.now.erase(7);
  EXPECT_EQ(watched.poll(), Types{"process_ended"});
}

TEST(GuestWatcher, AnotherFirstProcessIsAnotherBoot) {
  Watched watched;
  watched.guest.put(1, 1234, "init");
  Records records;
  EXPECT_FALSE(watched.watcher.poll(watched.time + 100ms, records));
}

} // namespace
} // namespace lararium::watch
