// The lie detector: what the guest's own tools say of it, compared with what is there. As Livewire's: who hides from
// ps, lsmod and ss must make them lie, and the outside view does not ask them.
//
// The guest answers by a shell script, run in it by whoever may. Its answer is foreign text.
#pragma once

#include "lararium/detect/check.h"

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lararium::detect {

// What a guest's administrator runs, as root, outside of containers: `sh -s <script`. It reads, prints, and changes
// nothing.
[[nodiscard]] std::string_view answer_script();

inline constexpr std::size_t answer_limit = 32 << 20; // bytes

struct ToldProcess {
  std::int32_t pid = 0;
  std::optional<std::uint32_t> uid;         // real
  std::optional<std::uint64_t> start_ticks; // hundredths of a second since boot
  std::string name;
};

struct ToldModule {
  std::string name;
  std::uint64_t inode = 0; // of its folder in sysfs; 0: not told
};

struct ToldSocket {
  std::uint64_t inode = 0;
  std::uint16_t local_port = 0, remote_port = 0;
};

struct GuestAnswer {
  std::uint64_t begin_ns = 0, end_ns = 0; // since boot, by the guest's word
  std::uint32_t uid = 0;                  // of who asked
  std::uint64_t pid_namespace = 0, net_namespace = 0;
  std::vector<ToldProcess> processes;         // a listing of /proc
  std::optional<std::vector<ToldProcess>> ps; // nothing: the guest has no such program
  std::vector<ToldModule> modules;            // /proc/modules
  std::optional<std::vector<ToldModule>> lsmod;
  std::map<std::string, std::vector<ToldSocket>> sockets; // of each table in /proc/net: "tcp6"
  std::optional<std::vector<ToldSocket>> ss;              // by inode alone
};

// Whether the text holds an answer from begin to end.
[[nodiscard]] bool is_whole_answer(std::string_view text);

// What stands before and after it, as a console prints, is left out. Errors: `protocol` for what is no whole answer.
[[nodiscard]] Result<GuestAnswer> parse_answer(std::string_view text);

// What is there, by one look from outside.
struct OutsideProcess {
  Gva task;
  std::int32_t pid = 0;
  std::uint64_t start_ns = 0; // since boot
  std::optional<std::uint32_t> uid;
  std::string comm;
  bool kernel_thread = false;
  std::optional<Actor> actor;
};
struct OutsideModule {
  Gva module;
  std::string name;
  std::uint64_t instance = 0; // of its folder in sysfs: another number each time it is loaded; 0: it has none
};
struct OutsideSocket {
  Gva socket;
  std::string protocol, state, local, remote; // for people
  std::uint64_t inode = 0;
  std::uint16_t local_port = 0, remote_port = 0;
  std::uint32_t net_namespace = 0;
  std::optional<Actor> actor;
};
struct OutsideLook {
  std::map<std::int32_t, OutsideProcess> processes; // by pid; those that live
  std::map<Gva, OutsideModule> modules;             // those that are in use
  std::map<std::uint64_t, OutsideSocket> sockets;   // by inode
  std::uint32_t first_pid_namespace = 0;
};

// When the answer was made.
enum class AnswerTime : std::uint8_t {
  between, // between the two looks: we asked for it
  later,   // after the first look, and once: so what the guest adds may have come and gone
  earlier, // before the first look: only what is older than the answer can be compared, and only processes tell that
};

// What the guest leaves out: it was there before and after the answer, as the same. What it tells otherwise. And, with
// `between`, what it adds: it was there neither before nor after. That is a lie only where the guest tells the same
// thing in the next answer too; its subject names the very process, module or socket, so that answers can be compared
// by it.
void compare_answer(const OutsideLook &before, const GuestAnswer &answer, const OutsideLook &after, AnswerTime time,
                    Findings &findings);

class LieDetector {
public:
  // Target and system must outlive it.
  LieDetector(const Target &target, OperatingSystem &system) : target_(&target), system_(&system) {}

  // Before the guest is asked.
  [[nodiscard]] Result<void> look_before();
  // Waits, for some seconds at most, until the guest's clock tells that it is after that look: an answer that comes to
  // us by other ways is compared by the time that it tells.
  void wait_for_clock();
  // After the answer. `asked`: it was asked for after look_before(); else its own words tell when it was made.
  [[nodiscard]] Result<AnswerTime> compare(const GuestAnswer &answer, bool asked, Findings &findings);

private:
  [[nodiscard]] Result<OutsideLook> look();
  const Target *target_;
  OperatingSystem *system_;
  OutsideLook before_;
  std::optional<std::uint64_t> before_ended_ns_; // since boot; nothing: the clock did not go on
};

} // namespace lararium::detect
