// Runs whole commands on made-up VMs. What they print is compared with the files in golden/; with
// LARARIUM_UPDATE_GOLDEN=1 in the environment the files are written instead.
#include "command.h"
#include "exit_codes.h"
#include "fake_host.h"
#include "parse.h"
#include "program.h"

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <gtest/gtest.h>
#include <iterator>
#include <nlohmann/json.hpp>

namespace lararium::cli::test {
namespace {

struct Ran {
  int code = 0;
  std::string out, err;
};

Output::Sink append_to(std::string &text) {
  return [&text](std::string_view written) -> Result<void> {
    text += written;
    return {};
  };
}

Ran run(FakeWorld &world, std::vector<const char *> words, Device device = {}) {
  Ran ran;
  Output out(append_to(ran.out), device);
  Output err(append_to(ran.err), device);
  ran.code = run_program(words, [&] { return make_fake_host(world); }, out, err);
  return ran;
}

Ran run(std::vector<const char *> words, Device device = {}) {
  FakeWorld world;
  return run(world, std::move(words), device);
}

std::string read_file(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

struct Golden {
  const char *file;
  std::vector<const char *> words;
  Device device = {};
};

class GoldenOutput : public testing::TestWithParam<Golden> {};

TEST_P(GoldenOutput, IsAsRecorded) {
  const Ran ran = run(GetParam().words, GetParam().device);
  const std::string text = ran.out + (ran.err.empty() ? "" : "--- standard error\n" + ran.err) +
                           (ran.code == 0 ? "" : "--- exit code " + std::to_string(ran.code) + "\n");
  const std::string path = std::string(GOLDEN_FOLDER "/") + GetParam().file;
  if (std::getenv("LARARIUM_UPDATE_GOLDEN") != nullptr)
    std::ofstream(path, std::ios::binary) << text;
  EXPECT_EQ(text, read_file(path)) << path;
}

constexpr Device narrow{.terminal = true, .colour = true, .utf8 = true, .columns = 72};
constexpr Device ascii{.utf8 = false};

INSTANTIATE_TEST_SUITE_P(
    Commands, GoldenOutput,
    testing::Values(Golden{"vms.txt", {"vms"}}, Golden{"vms.json", {"vms", "--json"}},
                    Golden{"info.txt", {"info", "web"}}, Golden{"info.json", {"info", "web", "--json"}},
                    Golden{"ps.txt", {"ps", "web"}}, Golden{"ps.json", {"ps", "web", "--json"}},
                    Golden{"ps_terminal.txt", {"ps", "web"}, narrow}, Golden{"ps_tree.txt", {"ps", "web", "--tree"}},
                    Golden{"ps_tree_ascii.txt", {"ps", "web", "-t", "-u"}, ascii},
                    Golden{"ps_only_vm.txt", {"ps", "--pid", "1"}}, Golden{"maps.txt", {"maps", "web", "1"}},
                    Golden{"maps.json", {"--json", "maps", "web", "1"}},
                    Golden{"maps_no_process.txt", {"maps", "web", "7"}}, Golden{"files.txt", {"files", "web"}},
                    Golden{"files.json", {"files", "web", "412", "-j"}}, Golden{"env.txt", {"env", "web", "1"}},
                    Golden{"env.json", {"env", "web", "1", "--json"}}, Golden{"modules.txt", {"modules", "web"}},
                    Golden{"modules.json", {"modules", "web", "--json"}}, Golden{"sockets.txt", {"sockets", "web"}},
                    Golden{"sockets.json", {"sockets", "web", "--json"}},
                    Golden{"sockets_listening.txt", {"sockets", "web", "-lt"}}, Golden{"mounts.txt", {"mounts", "web"}},
                    Golden{"mounts.json", {"mounts", "web", "--json"}}, Golden{"interfaces.txt", {"interfaces", "web"}},
                    Golden{"interfaces.json", {"interfaces", "web", "--json"}}, Golden{"dmesg.txt", {"dmesg", "web"}},
                    Golden{"dmesg.json", {"dmesg", "web", "--json"}}, Golden{"bpf.txt", {"bpf", "web"}},
                    Golden{"bpf.json", {"bpf", "web", "--json"}}, Golden{"symbols.txt", {"symbols", "web"}},
                    Golden{"symbols.json", {"symbols", "web", "init_task", "0xffffffff81000010", "--json"}},
                    Golden{"symbols_filter.txt", {"symbols", "web", "--filter", "virt*"}},
                    Golden{"hexdump.txt", {"hexdump", "web", "phys:0x1000", "0x120"}},
                    Golden{"hexdump.json", {"hexdump", "web", "phys:0x1000", "32", "--json"}},
                    Golden{"hexdump_edge.txt", {"hexdump", "web", "_text+0xff8", "32"}},
                    Golden{"hexdump_fault.txt", {"hexdump", "web", "0x1000"}},
                    Golden{"read.json", {"read", "web", "phys:0x1000", "8", "--json"}},
                    Golden{"dump.txt", {"dump", "web", "out.elf"}},
                    Golden{"procmem.json", {"procmem", "web", "1", "-o", "x", "-j"}},
                    Golden{"profile_no_types.json", {"profile", "web", "--json"}}, Golden{"help.txt", {"--help"}},
                    Golden{"help_ps.txt", {"ps", "--help"}}, Golden{"recover.txt", {"recover", "web", "/etc/passwd"}}),
    [](const auto &golden) {
      std::string name = golden.param.file;
      std::ranges::replace(name, '.', '_');
      return name;
    });

TEST(Program, EveryCommandWithJsonPrintsOneDocument) {
  const std::vector<std::vector<const char *>> commands = {{"vms"},
                                                           {"info", "web"},
                                                           {"ps", "web"},
                                                           {"ps", "web", "--threads"},
                                                           {"maps", "web", "1"},
                                                           {"files", "web"},
                                                           {"env", "web", "1"},
                                                           {"modules", "web"},
                                                           {"sockets", "web"},
                                                           {"mounts", "web"},
                                                           {"bpf", "web"},
                                                           {"symbols", "web"},
                                                           {"interfaces", "web"},
                                                           {"dmesg", "web"},
                                                           {"dump", "web", "f"},
                                                           {"version"},
                                                           {"ps", "nothing"},
                                                           {"maps", "web", "7"},
                                                           {"profile", "web"},
                                                           {"frobnicate"},
                                                           {"maps", "web"},
                                                           {"read", "web", "0x0", "16"},
                                                           {"top", "web", "--once", "--interval", "0.01"}};
  for (auto words : commands) {
    words.push_back("--json");
    const Ran ran = run(words);
    const auto document = nlohmann::json::parse(ran.out, nullptr, false);
    ASSERT_FALSE(document.is_discarded()) << words.front() << ": " << ran.out;
    if (ran.code == 0) {
      EXPECT_TRUE(document.contains("view")) << ran.out;
      EXPECT_TRUE(document.contains("items") || document.contains("item")) << ran.out;
    } else {
      EXPECT_EQ(document["error"]["exit_code"], ran.code);
      EXPECT_FALSE(ran.err.empty());
    }
  }
}

TEST(Program, UsageErrorsSayWhatIsWrong) {
  const auto says = [](std::vector<const char *> words, std::string_view part) {
    const Ran ran = run(std::move(words));
    EXPECT_EQ(ran.code, exit_code_of(ErrorCode::usage));
    EXPECT_NE(ran.err.find(part), ran.err.npos) << ran.err;
    EXPECT_TRUE(ran.out.empty()) << ran.out;
  };
  says({}, "which command?");
  says({"pss"}, "do you mean ps?");
  says({"ps", "web", "extra"}, "what is extra?");
  says({"ps", "--frob"}, "no option is called --frob");
  says({"maps", "web", "one"}, "PID is not a number: one");
  says({"maps"}, "PID is missing");
  says({"ps", "--color", "pink"}, "pink is none of auto, always, never");
  says({"ps", "--pid", "x"}, "not a whole number");
  says({"read", "web", "phys:zz", "1"}, "not an address");
  says({"procmem", "web", "1"}, "-o FILE");
}

TEST(Program, TakesTheOnlyVmAndListsSeveral) {
  FakeWorld world;
  const Ran only = run(world, {"maps", "1"});
  EXPECT_EQ(only.code, 0);
  EXPECT_NE(only.err.find("VM web (pid 4711), the only one"), only.err.npos);
  world.vms.push_back(world.vms.front());
  world.vms.back().identity.name = "db\x1b";
  world.vms.back().identity.pid = 4712;
  const Ran several = run(world, {"ps"});
  EXPECT_EQ(several.code, exit_code_of(ErrorCode::ambiguous));
  EXPECT_NE(several.err.find("web (pid 4711), db\\x1b (pid 4712)"), several.err.npos) << several.err;
  world.vms.clear();
  EXPECT_EQ(run(world, {"ps"}).code, exit_code_of(ErrorCode::not_found));
}

TEST(Program, AVmMayBeCalledLikeACommand) {
  FakeWorld world;
  world.vms.front().identity.name = "top";
  EXPECT_EQ(run(world, {"ps", "top"}).code, 0);
}

TEST(Program, PausesAndResumesWithinTheCommand) {
  FakeWorld world;
  const Ran ran = run(world, {"ps", "web", "--pause", "--json"});
  EXPECT_EQ(ran.code, 0);
  EXPECT_EQ(world.pauses, 1U);
  EXPECT_EQ(world.resumes, 1U);
  const Ran failed = run(world, {"maps", "web", "7", "--pause"});
  EXPECT_NE(failed.code, 0);
  EXPECT_EQ(world.resumes, 2U);
  world.has_run_control = false;
  EXPECT_EQ(run(world, {"ps", "web", "--pause"}).code, exit_code_of(ErrorCode::unsupported));
}

TEST(Program, PhysicalMemoryAndDumpsNeedNoOperatingSystem) {
  FakeWorld world;
  world.knows_system = false;
  EXPECT_EQ(run(world, {"hexdump", "web", "phys:0x1000", "16"}).code, 0);
  EXPECT_EQ(run(world, {"read", "web", "phys:0x1000", "16"}).out.substr(0, 8), "Lararium");
  EXPECT_EQ(world.attach_calls, 0U);
  const Ran dump = run(world, {"dump", "web", "file"});
  EXPECT_EQ(dump.code, 0);
  EXPECT_NE(dump.err.find("is not understood"), dump.err.npos);
  const Ran ps = run(world, {"ps", "web"});
  EXPECT_EQ(ps.code, exit_code_of(ErrorCode::unknown_os));
  EXPECT_NE(ps.err.find("web: no operating system"), ps.err.npos) << ps.err;
}

TEST(Program, NothingOfAGuestGoesRawToATerminal) {
  const Device terminal{.terminal = true};
  EXPECT_EQ(run({"read", "web", "phys:0", "16"}, terminal).code, exit_code_of(ErrorCode::usage));
  EXPECT_EQ(run({"recover", "web", "/etc/passwd"}, terminal).code, exit_code_of(ErrorCode::usage));
}

TEST(Program, ReadStopsWhereMemoryEnds) {
  const Ran ran = run({"read", "web", "phys:0x3ff0", "32"});
  EXPECT_EQ(ran.code, exit_code_of(ErrorCode::memory_fault));
  EXPECT_EQ(ran.out.size(), 16U);
  EXPECT_NE(ran.err.find("only 16 of 32 bytes"), ran.err.npos) << ran.err;
}

TEST(Program, RacesAndLimitsAreSaid) {
  FakeWorld world;
  world.status.raced = world.status.truncated = true;
  world.status.retries = 3;
  world.status.warn("task list: loops at 0xffff\x1b");
  const Ran ran = run(world, {"ps", "web"});
  EXPECT_EQ(ran.code, 0);
  EXPECT_NE(ran.err.find("(3 retries)"), ran.err.npos);
  EXPECT_NE(ran.err.find("a limit was reached"), ran.err.npos);
  EXPECT_NE(ran.err.find("loops at 0xffff\\x1b"), ran.err.npos);
  const auto document = nlohmann::json::parse(run(world, {"ps", "web", "-j"}).out);
  EXPECT_EQ(document["status"]["raced"], true);
  EXPECT_EQ(document["status"]["retries"], 3);
}

TEST(Program, ATreeOfLiesIsShownWhole) {
  FakeWorld world;
  world.processes.clear();
  for (std::int32_t pid = 1; pid <= 5000; ++pid) {
    Process process;
    process.pid = process.tgid = pid;
    process.ppid = pid - 1; // one deep chain
    process.comm = "deep";
    world.processes.push_back(process);
  }
  Process ring = world.processes.front();
  ring.pid = ring.tgid = 6000;
  ring.ppid = 6001;
  world.processes.push_back(ring);
  ring.pid = ring.tgid = 6001;
  ring.ppid = 6000;
  world.processes.push_back(ring);
  const Ran ran = run(world, {"ps", "web", "--tree"});
  EXPECT_EQ(ran.code, 0);
  EXPECT_EQ(std::ranges::count(ran.out, '\n'), 5003);
}

TEST(Program, AReaderThatLeavesEndsItQuietly) {
  FakeWorld world;
  std::string err_text;
  Output out([](std::string_view) -> Result<void> { return std::unexpected(reader_went_away()); }, {});
  Output err(append_to(err_text), {});
  const std::vector<const char *> words = {"ps", "web"};
  EXPECT_EQ(run_program(words, [&] { return make_fake_host(world); }, out, err), exit_reader_went_away);
  EXPECT_EQ(err_text, "");
}

TEST(Program, AFullDiskIsAnError) {
  FakeWorld world;
  std::string err_text;
  Output out([](std::string_view) -> Result<void> { return fail_errno("cannot write the output", ENOSPC); }, {});
  Output err(append_to(err_text), {});
  const std::vector<const char *> words = {"ps", "web"};
  EXPECT_EQ(run_program(words, [&] { return make_fake_host(world); }, out, err), exit_code_of(ErrorCode::io));
  EXPECT_NE(err_text.find("No space left"), err_text.npos);
}

TEST(Program, TenThousandProcessesTakeMilliseconds) {
  FakeWorld world;
  const Process pattern = world.processes.front();
  while (world.processes.size() < 10'000)
    world.processes.push_back(pattern);
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_GT(run(world, {"ps", "web", "--json"}).out.size(), 5'000'000U);
  EXPECT_GT(run(world, {"ps", "web"}).out.size(), 500'000U);
  // Generous, for sanitizers and busy machines; `make bench` has the numbers.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
}

// The manual page is written by hand; this keeps it whole.
TEST(Manual, NamesEveryCommandOptionAndExitCode) {
  const std::string manual = read_file(MANUAL_PAGE);
  ASSERT_FALSE(manual.empty());
  std::string plain; // without the \- and \fB of roff
  for (std::size_t i = 0; i < manual.size(); ++i) {
    if (manual[i] == '\\' && i + 2 < manual.size() && manual[i + 1] == 'f')
      i += 2;
    else if (manual[i] != '\\')
      plain += manual[i];
  }
  GlobalOptions options;
  bool flag = false;
  std::vector<Syntax> all = {global_syntax(options, flag, flag)};
  std::vector<std::unique_ptr<Command>> commands;
  for (const CommandEntry *entry : all_commands()) {
    EXPECT_NE(plain.find(std::string("\n.SS ") + entry->name), plain.npos) << entry->name;
    commands.push_back(entry->make());
    commands.back()->describe(all.emplace_back());
  }
  for (const Syntax &syntax : all)
    for (const OptionSpec &option : syntax.options) {
      const std::string name = option.names.substr(option.names.find("--"));
      EXPECT_NE(plain.find(name), plain.npos) << name;
    }
  for (int code = 0; code <= exit_code_of(ErrorCode::timeout); ++code)
    EXPECT_NE(plain.find("\n.B " + std::to_string(code) + "\n"), plain.npos) << code;
}

} // namespace
} // namespace lararium::cli::test
