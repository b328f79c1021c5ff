// Lares' security tool as a process of its own: another user, no rights, a filter on its system calls. It decides about
// hooked calls over a socket; docs/tool_protocol.md describes what is said there.
#pragma once

#include "lararium/base/unique_fd.h"
#include "lararium/gate/security_driver.h"
#include "lararium/os/common/operating_system.h"
#include "lararium/vm/physical_memory.h"
#include "lararium/vm/run_control.h"

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <sys/types.h>
#include <vector>

namespace lararium::policy {

struct ToolOptions {
  std::vector<std::string> command;                   // a program, by its path, and its arguments
  std::string user = "nobody";                        // whom it runs as
  std::chrono::milliseconds limit{100};               // for each verdict
  int default_verdict = 0;                            // an errno, or 0: when it gives none in that time
  std::function<std::string(const Record &)> to_json; // a record as one JSON object
};

struct ToolCounts {
  std::uint64_t asked = 0, late = 0, starts = 0;
};

// What the tool may ask of the guest.
struct ToolAccess {
  OperatingSystem *system = nullptr;
  const PhysicalMemory *memory = nullptr;
};

// Not thread-safe. A tool that dies, hangs or talks nonsense is ended and started again, at most once a second; until
// it is back, the default verdict applies.
class ToolProcess final : public gate::SecurityTool {
public:
  // Starts it, and waits until it said that it is ready.
  [[nodiscard]] static Result<std::unique_ptr<ToolProcess>> start(ToolOptions options);
  ToolProcess(const ToolProcess &) = delete;
  ToolProcess &operator=(const ToolProcess &) = delete;
  ~ToolProcess() override;

  // Of the guest that runs now; its descriptors are handed to the tool. Again after each reboot.
  void attach(ToolAccess access, const RecordVm &vm);
  [[nodiscard]] gate::Verdict decide(const gate::HookEntry &hook, const Record &record) override;

  [[nodiscard]] const ToolCounts &counts() const { return counts_; }
  // What happened to it since the last call, as sentences.
  [[nodiscard]] std::vector<std::string> take_news();
  [[nodiscard]] pid_t pid() const { return pid_; }

private:
  explicit ToolProcess(ToolOptions options) : options_(std::move(options)) {}
  [[nodiscard]] Result<void> spawn();
  [[nodiscard]] Result<void> greet();
  void end(std::string why);
  [[nodiscard]] bool send(const std::string &text, const std::vector<int> &descriptors = {});
  enum class Heard : std::uint8_t { message, nothing, gone };
  [[nodiscard]] Heard receive(std::string &text, std::chrono::steady_clock::time_point deadline);
  // Answers what is no verdict; false: it is nonsense.
  [[nodiscard]] bool serve(const std::string &text);

  ToolOptions options_;
  ToolAccess access_;
  RecordVm vm_;
  ToolCounts counts_;
  UniqueFd socket_;
  pid_t pid_ = -1;
  std::uint64_t next_id_ = 1;
  std::chrono::steady_clock::time_point next_start_;
  std::vector<std::string> news_;
};

} // namespace lararium::policy
