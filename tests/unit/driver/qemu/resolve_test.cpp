#include "lararium/driver/qemu.h"

#include <gtest/gtest.h>

namespace lararium::qemu {
namespace {

VmSummary vm(std::string name, pid_t pid, std::string uuid, std::string socket) {
  VmSummary result;
  result.name = std::move(name);
  result.pid = pid;
  result.uuid = std::move(uuid);
  MonitorRoute route;
  route.path = "/proc/" + std::to_string(pid) + "/root" + socket;
  route.bound = std::move(socket);
  result.routes = {route};
  return result;
}

TEST(Resolve, ByNamePidUuidAndSocket) {
  const std::vector<VmSummary> vms = {vm("web", 100, "abcdef01-1111-0000-0000-000000000000", "/run/web.qmp"),
                                      vm("db", 200, "abcdef01-2222-0000-0000-000000000000", "/run/db.qmp"),
                                      vm("db", 300, "", "/run/other.qmp"), vm("100", 400, "", "/run/x.qmp")};
  EXPECT_EQ(resolve(vms, "web")->pid, 100);
  EXPECT_EQ(resolve(vms, "200")->pid, 200);
  EXPECT_EQ(resolve(vms, "ABCDEF01-2")->pid, 200);
  EXPECT_EQ(resolve(vms, "/run/other.qmp")->pid, 300);
  EXPECT_EQ(resolve(vms, "abcdef01").error().code, ErrorCode::ambiguous);
  EXPECT_EQ(resolve(vms, "100").error().code, ErrorCode::ambiguous);
  EXPECT_EQ(resolve(vms, "abcdef").error().code, ErrorCode::not_found); // too short to name one
  const auto two = resolve(vms, "db");
  ASSERT_FALSE(two);
  EXPECT_EQ(two.error().code, ErrorCode::ambiguous);
  EXPECT_NE(two.error().message.find("db (pid 300)"), std::string::npos);
  const auto none = resolve(vms, "mail");
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, ErrorCode::not_found);
  EXPECT_NE(none.error().message.find("web (pid 100)"), std::string::npos);
  EXPECT_EQ(resolve({}, "x").error().code, ErrorCode::not_found);
}

} // namespace
} // namespace lararium::qemu
