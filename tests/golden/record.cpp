// Records what commands read of a VM: the pages and registers, in a file on which the same commands can be run later.
// record.py beside this file calls it; see there.
//
//   record_guest VM PROFILE COMMANDS NAME RECORDING
//
// VM is paused by whoever calls this. COMMANDS is a file, each line a name and a command ("maps.json maps 123"),
// NAME what the recorded VM is to be called.
#include "lararium/driver/replay.h"
#include "program.h"
#include "session.h"

#include <fmt/format.h>
#include <fstream>
#include <sstream>

namespace lararium::cli {
namespace {

// The recorded memory, lent to the target of one command.
class LentMemory final : public PhysicalMemory {
public:
  explicit LentMemory(PhysicalMemory &memory) : memory_(memory) { set_ranges(memory.ranges()); }
  [[nodiscard]] std::vector<RamRange> populated(Gpa base, std::uint64_t size) const override {
    return memory_.populated(base, size);
  }

protected:
  [[nodiscard]] bool read_unmapped(Gpa address, std::span<std::byte> out) const override {
    return memory_.read(address, out);
  }

private:
  PhysicalMemory &memory_;
};

class LentVcpus final : public Vcpus {
public:
  explicit LentVcpus(Vcpus &vcpus) : vcpus_(vcpus) {}
  [[nodiscard]] Result<std::vector<VcpuRegisters>> registers() override { return vcpus_.registers(); }

private:
  Vcpus &vcpus_;
};

// Gives every command the one target that is recorded.
class RecordingHost final : public Host {
public:
  RecordingHost(Host &host, Target &target) : host_(host), target_(target) {}

  Result<Target> open(const std::string & /*name*/) override {
    Target lent;
    lent.identity = target_.identity;
    lent.memory = std::make_unique<LentMemory>(*target_.memory);
    if (target_.vcpus)
      lent.vcpus = std::make_unique<LentVcpus>(*target_.vcpus);
    lent.hints = target_.hints;
    lent.limitations = target_.limitations;
    return lent;
  }
  Result<Guest> attach(Target &target, const GuestOptions &options) override { return host_.attach(target, options); }

  Result<std::vector<VmListing>> vms() override { return not_recorded(); }
  Result<std::vector<VmListing>> vm_processes() override { return not_recorded(); }
  Result<std::shared_ptr<const Profile>> profile(Target &, const GuestOptions &) override { return not_recorded(); }
  Result<CoreSummary> write_machine_core(Target &, OperatingSystem *, const std::string &,
                                         const CoreOptions &) override {
    return not_recorded();
  }
  Result<CoreSummary> write_process_core(OperatingSystem &, std::int32_t, const std::string &,
                                         const CoreOptions &) override {
    return not_recorded();
  }
  Result<void> export_isf(const Profile &, const std::string &) override { return not_recorded(); }
  Result<std::string> ask_guest_agent(const std::string &, std::string_view, const AskLimits &) override {
    return not_recorded();
  }

private:
  static std::unexpected<Error> not_recorded() { return fail(ErrorCode::unsupported, "this is not recorded"); }

  Host &host_;
  Target &target_;
};

Output::Sink append_to(std::string &text) {
  return [&text](std::string_view written) -> Result<void> {
    text += written;
    return {};
  };
}

Result<void> run_command(const std::string &line, const std::string &profile, Host &host, Target &target) {
  std::vector<std::string> words;
  std::istringstream stream(line);
  for (std::string word; stream >> word;)
    words.push_back(word);
  if (words.size() < 2)
    return fail(ErrorCode::usage, fmt::format("not a name and a command: {}", line));
  words.erase(words.begin());
  words.insert(words.begin() + 1, target.identity.name);
  words.insert(words.end(), {"--json", "--no-cache", "--profile", profile});
  std::vector<const char *> pointers;
  for (const std::string &word : words)
    pointers.push_back(word.c_str());
  std::string text;
  Output out(append_to(text), {});
  Output err(append_to(text), {});
  const int code = run_program(pointers, [&] { return std::make_unique<RecordingHost>(host, target); }, out, err);
  if (code != 0)
    return fail(ErrorCode::io, fmt::format("{} ended with {}: {}", line, code, text));
  return {};
}

Result<void> record(const std::string &vm, const std::string &profile, const std::string &commands,
                    const std::string &name, const std::string &recording) {
  const auto host = make_host();
  TRY_ASSIGN(Target target, host->open(vm));
  // What is of this one run of QEMU would differ in each recording.
  const Architecture architecture = target.identity.architecture;
  target.identity = {};
  target.identity.kind = TargetKind::dump;
  target.identity.architecture = architecture;
  target.identity.name = name;
  target.identity.memory_access = "recording";
  target.limitations.clear();
  TRY_ASSIGN(const auto recorder, Recorder::start(target));

  std::ifstream lines(commands);
  std::size_t count = 0;
  for (std::string line; std::getline(lines, line); ++count)
    TRY(run_command(line, profile, *host, target));
  if (count == 0)
    return fail(ErrorCode::usage, commands + " holds no command");

  // A replay that does not find the kernel by the registers has no memory to search.
  recorder->set_enabled(false);
  GuestOptions options;
  options.profile_file = profile;
  options.use_cache = false;
  TRY_ASSIGN(const Guest guest, host->attach(target, options));
  recorder->set_hints({guest.system->crash_information()});
  TRY(recorder->save(recording));
  fmt::print("{} pages\n", recorder->page_count());
  return {};
}

} // namespace
} // namespace lararium::cli

int main(int argc, char **argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (words.size() != 5) {
    fmt::print(stderr, "usage: record_guest VM PROFILE COMMANDS NAME RECORDING\n");
    return 2;
  }
  const auto recorded = lararium::cli::record(words[0], words[1], words[2], words[3], words[4]);
  if (!recorded) {
    fmt::print(stderr, "record_guest: {}\n", recorded.error().describe());
    return 1;
  }
  return 0;
}
