#include "lineage.h"

#include <gtest/gtest.h>

namespace lararium::detect {
namespace {

constexpr std::uint64_t all = (std::uint64_t{1} << 41) - 1, net_raw = 1 << 13, set_user = 1 << 7;

CredentialSet user(std::uint32_t uid) {
  CredentialSet set;
  set.uid = set.euid = set.suid = set.fsuid = uid;
  set.user_namespace = Gva{0xffffffff82a00000};
  return set;
}
CredentialSet root() {
  CredentialSet set = user(0);
  set.permitted = set.effective = all;
  return set;
}
constexpr Start by_user{1000, 1000, false}, by_root{0, 0, false}, setuid_file{1000, 0, true},
    capable_file{1000, 1000, true};

TEST(LineageTest, StartFromTheVector) {
  const std::uint64_t wide[] = {33, 0x7fff0000, 11, 1000, 12, 1000, 23, 1, 0, 0};
  const auto start = start_of(wide);
  ASSERT_TRUE(start);
  EXPECT_EQ(start->uid, 1000u);
  EXPECT_TRUE(start->gained);
  const auto pair = [](std::uint64_t key, std::uint64_t value) { return value << 32 | key; };
  const std::uint64_t narrow[] = {pair(32, 0xf7f00000), pair(11, 5), pair(12, 6), pair(23, 0), 0};
  const auto other = start_of(narrow);
  ASSERT_TRUE(other);
  EXPECT_EQ(other->euid, 6u);
  EXPECT_FALSE(other->gained);
}

TEST(LineageTest, NoStart) {
  EXPECT_FALSE(start_of({}));
  const std::uint64_t zeros[46] = {}, cut[] = {33, 1, 11}, incomplete[] = {33, 1, 11, 0, 0, 0, 12, 0, 23, 0};
  EXPECT_FALSE(start_of(zeros));
  EXPECT_FALSE(start_of(cut));
  EXPECT_FALSE(start_of(incomplete));
}

TEST(LineageTest, LawfulWays) {
  EXPECT_TRUE(breaches_of(root(), by_root, all).empty());
  EXPECT_TRUE(breaches_of(user(1000), by_user, all).empty());
  EXPECT_TRUE(breaches_of(user(1000), by_root, all).empty());
  EXPECT_TRUE(breaches_of(root(), setuid_file, all).empty());
  EXPECT_TRUE(breaches_of(root(), std::nullopt, all).empty());
  CredentialSet set = user(1000);
  set.permitted = set.effective = net_raw;
  EXPECT_TRUE(breaches_of(set, capable_file, all).empty());
  EXPECT_TRUE(breaches_of(set, by_root, all).empty()); // kept
  set.ambient = set.inheritable = net_raw;
  EXPECT_TRUE(breaches_of(set, by_user, all).empty());
  set.ambient = 0;
  EXPECT_TRUE(breaches_of(set, by_user, all).empty());
  set.permitted = set.effective = all;
  set.secure_bits = 1 << 4;
  EXPECT_TRUE(breaches_of(set, by_root, all).empty());
  set = user(0); // user 0 of no capabilities, in the way of Docker's
  EXPECT_TRUE(breaches_of(set, by_root, all).empty());
  set = root(); // a daemon that acts as a user
  set.euid = set.fsuid = 1000;
  set.effective = 0;
  EXPECT_TRUE(breaches_of(set, by_root, all).empty());
}

TEST(LineageTest, UnlawfulWays) {
  using enum Breach;
  EXPECT_EQ(breaches_of(root(), by_user, all), std::vector{root_without_start});
  CredentialSet set = user(1000);
  set.fsuid = 0;
  EXPECT_EQ(breaches_of(set, by_user, all), std::vector{root_without_start});
  set = user(1000);
  set.permitted = net_raw;
  EXPECT_EQ(breaches_of(set, by_user, all), std::vector{capabilities_without_start});
  set.effective = net_raw | 1;
  EXPECT_EQ(breaches_of(set, by_user, all), (std::vector{effective_beyond_permitted, capabilities_without_start}));
  set.permitted = set.effective = all;
  EXPECT_EQ(breaches_of(set, by_root, all), std::vector{all_capabilities});
  // Of a kernel that knows no capabilities nothing is said.
  EXPECT_TRUE(breaches_of(set, by_root, 0).empty());
}

TEST(LineageTest, Growth) {
  EXPECT_EQ(growth_of(user(1000), user(1000)), Growth::none);
  EXPECT_EQ(growth_of(root(), user(1000)), Growth::none);
  EXPECT_EQ(growth_of(user(1000), user(0)), Growth::root);
  CredentialSet set = user(1000);
  set.permitted = set_user;
  EXPECT_EQ(growth_of(user(1000), set), Growth::capabilities);
  CredentialSet became = user(0);
  EXPECT_EQ(growth_of(set, became), Growth::none);
  set.user_namespace = Gva{0xffff888001000000}; // its own
  EXPECT_EQ(growth_of(user(1000), set), Growth::none);
}

} // namespace
} // namespace lararium::detect
