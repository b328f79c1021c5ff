// A host with made-up VMs, whose guest's operating system gives canned views: what the output is tested with.
#pragma once

#include "session.h"

#include <string>
#include <vector>

namespace lararium::cli::test {

// What the tests can change before a command runs.
struct FakeWorld {
  FakeWorld();

  std::vector<VmListing> vms;
  std::vector<Process> processes;
  ViewStatus status;
  bool knows_system = true; // false: attaching fails with unknown_os
  bool has_run_control = true;
  unsigned pauses = 0, resumes = 0;
  unsigned attach_calls = 0;
  unsigned samples = 0; // of Statistics and of processes together advance time-like counters
};

[[nodiscard]] std::unique_ptr<Host> make_fake_host(FakeWorld &world);

} // namespace lararium::cli::test
