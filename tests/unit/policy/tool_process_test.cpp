#include "lararium/policy/tool_process.h"

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <gtest/gtest.h>
#include <stdexcept>
#include <thread>
#include <unistd.h>

namespace lararium::policy {
namespace {

using namespace std::chrono_literals;

class ToolProcessTest : public testing::Test {
protected:
  void SetUp() override {
    if (::geteuid() != 0)
      GTEST_SKIP() << "only root can start a process as another user";
  }
  // User nobody may have no way to the folder that this was built in.
  static void SetUpTestSuite() {
    std::string name = std::filesystem::temp_directory_path() / "lararium-tool-XXXXXX";
    if (::mkdtemp(name.data()) == nullptr)
      throw std::runtime_error("no temporary folder");
    folder = name;
    std::filesystem::permissions(folder, std::filesystem::perms(0755));
    std::filesystem::copy_file(TEST_TOOL, program());
  }
  static void TearDownTestSuite() { std::filesystem::remove_all(folder); }
  static std::string program() { return folder / "test_tool"; }

  static std::unique_ptr<ToolProcess> start(const char *mode) {
    auto tool = ToolProcess::start(
        {.command = {program(), mode}, .limit = 300ms, .default_verdict = EPERM, .to_json = [](const Record &) {
           return std::string("{}");
         }});
    if (!tool)
      throw std::runtime_error(tool.error().describe());
    return std::move(*tool);
  }
  static inline std::filesystem::path folder;
  static constexpr gate::HookEntry hook{"exec", "", "", true, nullptr, nullptr};
};

TEST_F(ToolProcessTest, Decides) {
  const auto tool = start("deny");
  const auto verdict = tool->decide(hook, {});
  EXPECT_EQ(verdict.error, EACCES);
  EXPECT_EQ(verdict.decided_by, "the security tool: no");
}

TEST_F(ToolProcessTest, HasNoRights) {
  const auto tool = start("rights");
  EXPECT_EQ(tool->decide(hook, {}).decided_by, "the security tool: nothing");
}

TEST_F(ToolProcessTest, WhatGivesNoVerdictIsEndedAndStartedAgain) {
  for (const char *mode : {"hang", "die", "nonsense", "flood"}) {
    const auto tool = start(mode);
    const auto begin = std::chrono::steady_clock::now();
    const auto verdict = tool->decide(hook, {});
    EXPECT_EQ(verdict.error, EPERM) << mode;
    EXPECT_TRUE(verdict.decided_by.starts_with("default: ")) << mode << ": " << verdict.decided_by;
    EXPECT_LT(std::chrono::steady_clock::now() - begin, 5s) << mode;
    EXPECT_EQ(tool->take_news().size(), 1) << mode;
    // At once: it is not there. Later: it is.
    EXPECT_EQ(tool->decide(hook, {}).decided_by, "default: the security tool is not there") << mode;
    std::this_thread::sleep_for(1100ms);
    static_cast<void>(tool->decide(hook, {}));
    EXPECT_EQ(tool->counts().starts, 2) << mode;
  }
}

TEST_F(ToolProcessTest, AKilledToolLeavesTheDefaultVerdict) {
  const auto tool = start("deny");
  ::kill(tool->pid(), SIGKILL);
  std::this_thread::sleep_for(50ms);
  const auto verdict = tool->decide(hook, {});
  EXPECT_EQ(verdict.error, EPERM);
  EXPECT_TRUE(verdict.decided_by.starts_with("default: "));
}

TEST_F(ToolProcessTest, WhatIsNoToolIsRefused) {
  const auto refused = [](std::vector<std::string> command, std::string user = "nobody") {
    return !ToolProcess::start({.command = std::move(command), .user = std::move(user), .to_json = {}});
  };
  EXPECT_TRUE(refused({}));
  EXPECT_TRUE(refused({"relative"}));
  EXPECT_TRUE(refused({"/nonexistent"}));
  EXPECT_TRUE(refused({"/bin/true"}));
  EXPECT_TRUE(refused({program(), "deny"}, "root"));
  EXPECT_TRUE(refused({program(), "deny"}, "no such user"));
}

} // namespace
} // namespace lararium::policy
