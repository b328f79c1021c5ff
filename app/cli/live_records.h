// Records on their way from a thread that serves a guest to the one that prints them.
#pragma once

#include "output.h"

#include "lararium/record/record.h"
#include "lararium/vm/target.h"

#include <chrono>
#include <cstdint>
#include <deque>
#include <mutex>
#include <vector>

namespace lararium::cli {

// Bounded: a reader that does not read must not grow us, and who serves the guest never waits for it.
class Outbox {
public:
  void put(std::vector<Record> &records);
  [[nodiscard]] std::deque<Record> take();
  [[nodiscard]] std::uint64_t left_out() const;

private:
  static constexpr std::size_t limit = 4096;
  mutable std::mutex mutex_;
  std::deque<Record> queue_;
  std::uint64_t left_out_ = 0;
};

// Of which VM it is, and when, where nothing says so yet.
void name_record(Record &record, const TargetIdentity &identity);
// One line of JSON; or one for people, and for a finding what was found, by the names of its fields.
void print_record(Output &out, const Record &record, bool json);

// A stopped monitor would let vCPUs wait for as long as it is stopped: the terminal cannot do that. SIGSTOP can.
void block_terminal_stops();
// Whether somebody wants the program to end; waits for it, at most that long. Under a SignalGuard.
[[nodiscard]] bool interrupted_within(std::chrono::milliseconds time);

} // namespace lararium::cli
