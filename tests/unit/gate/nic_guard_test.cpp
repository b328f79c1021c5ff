#include "lararium/gate/nic_guard.h"

#include "no_system.h"
#include "small_kernel.h"

#include <gtest/gtest.h>

namespace lararium::gate {
namespace {

using namespace std::chrono_literals;
using test::NoSystem;
using test::SmallKernel;

class NicGuardTest : public ::testing::Test {
protected:
  std::vector<Record> look(NicGuard &guard) {
    std::vector<Record> records;
    guard.look(nics, now, records);
    now = guard.due();
    return records;
  }
  static std::string action(const Record &record) {
    for (const RecordField &field : record.fields)
      if (field.name == "action")
        return std::get<std::string>(field.value);
    return "";
  }

  SmallKernel guest;
  NoSystem system{*guest.kernel};
  NicGuard::Clock::time_point now{};
  std::vector<Nic> nics{{"net0", "52:54:00:12:34:56", "52:54:00:12:34:56", false},
                        {"net1", "52:54:00:12:34:57", "", std::nullopt}};
};

TEST_F(NicGuardTest, TellsOnceAndWhenItIsTakenBack) {
  NicGuard guard(system, false);
  EXPECT_TRUE(look(guard).empty());
  nics[0].promiscuous = true;
  nics[1].mac = "52:54:00:00:00:01"; // it is not known which it was given
  EXPECT_TRUE(look(guard).empty());
  const auto told = look(guard);
  ASSERT_EQ(told.size(), 1U);
  EXPECT_EQ(told[0].finding->subject, "NIC net0");
  EXPECT_EQ(action(told[0]), "reported");
  EXPECT_TRUE(look(guard).empty());
  nics[0].promiscuous = false;
  const auto back = look(guard);
  ASSERT_EQ(back.size(), 1U);
  EXPECT_EQ(back[0].kind, RecordKind::event);
  EXPECT_TRUE(guard.take_orders().empty());
}

TEST_F(NicGuardTest, EachNewAddress) {
  NicGuard guard(system, false);
  nics[0].mac = "52:54:00:00:00:01";
  look(guard);
  EXPECT_EQ(look(guard).size(), 1U);
  nics[0].mac = "52:54:00:00:00:02";
  look(guard);
  EXPECT_EQ(look(guard).size(), 1U);
  nics[0].mac = nics[0].configured_mac;
  EXPECT_EQ(look(guard).size(), 1U);
}

TEST_F(NicGuardTest, PullsTheCableUntilAllIsTakenBack) {
  NicGuard guard(system, true);
  nics[0].promiscuous = true;
  look(guard);
  EXPECT_TRUE(look(guard).empty()) << "told of when it is done";
  auto orders = guard.take_orders();
  ASSERT_EQ(orders.size(), 1U);
  EXPECT_FALSE(orders[0].up);
  std::vector<Record> records;
  guard.finish(std::move(orders[0]), {}, records);
  ASSERT_EQ(records.size(), 1U);
  EXPECT_EQ(action(records[0]), "link down");
  EXPECT_EQ(guard.pulled(), std::vector<std::string>{"net0"});
  nics[0].mac = "52:54:00:00:00:01";
  look(guard);
  nics[0].promiscuous = false;
  EXPECT_EQ(look(guard).size(), 2U) << "the address, and no more promiscuous";
  EXPECT_TRUE(guard.take_orders().empty());
  nics[0].mac = nics[0].configured_mac;
  look(guard);
  orders = guard.take_orders();
  ASSERT_EQ(orders.size(), 1U);
  EXPECT_TRUE(orders[0].up);
  guard.finish(std::move(orders[0]), fail(ErrorCode::timeout, "it is busy"), records);
  EXPECT_NE(action(records.back()).find("link up could not be had"), std::string::npos);
  EXPECT_EQ(guard.pulled().size(), 1U);
}

TEST_F(NicGuardTest, InterfaceThatIsDownIsNotJudged) {
  NicGuard guard(system, false);
  system.network.emplace(1);
  system.network->front().mac = nics[0].mac;
  nics[0].promiscuous = true;
  for (int i = 0; i < 5; ++i)
    EXPECT_TRUE(look(guard).empty());
  system.network->front().up = true;
  look(guard);
  EXPECT_EQ(look(guard).size(), 1U);
}

} // namespace
} // namespace lararium::gate
