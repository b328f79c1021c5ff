#include "miner_signs.h"
#include "preload_places.h"

#include <gtest/gtest.h>

namespace lararium::detect {
namespace {

using namespace std::string_literals;
using Arguments = std::vector<std::string>;

TEST(MinerSigns, NamesArgumentsAndPools) {
  EXPECT_EQ(miner_sign("/tmp/xmrig", Arguments{"/tmp/xmrig"}), "the program xmrig");
  EXPECT_TRUE(miner_sign("/opt/x/XMRig-6.21", Arguments{"a"}));
  EXPECT_TRUE(miner_sign("/tmp/a", Arguments{"xmrig", "-c", "config.json"})); // by what it calls itself
  EXPECT_TRUE(miner_sign("/tmp/a", Arguments{"a", "-o", "stratum+tcp://pool.example:3333"}));
  EXPECT_TRUE(miner_sign("/tmp/a", Arguments{"a", "--url=stratum+ssl://pool.example:443"}));
  EXPECT_TRUE(miner_sign("/tmp/a", Arguments{"a", "--donate-level=1"}));
}

TEST(MinerSigns, OthersAreNone) {
  EXPECT_FALSE(miner_sign("", {}));
  EXPECT_FALSE(miner_sign("/usr/bin/bash", Arguments{"bash", "-c", "echo hello"}));
  EXPECT_FALSE(miner_sign("/usr/bin/grep", Arguments{"grep", "stratum+tcp://", "/var/log/syslog"}));
  EXPECT_FALSE(miner_sign("/bin/busybox", Arguments{"grep", "stratum+tcp://", "/var/log/syslog"}));
  EXPECT_FALSE(miner_sign("/usr/bin/mail", Arguments{"mail", "-s", "seen: stratum+tcp:// in the log"}));
  EXPECT_FALSE(miner_sign("/usr/bin/minerva", Arguments{"minerva"}));
  EXPECT_FALSE(miner_sign("/usr/bin/t-rexes", Arguments{"t-rexes"}));
  EXPECT_FALSE(miner_sign("/usr/bin/a", Arguments{"a", "--donate-levels"}));
}

TEST(MinerSigns, TheSignIsShort) {
  const auto sign = miner_sign("/tmp/a", Arguments{"a", "stratum+tcp://" + std::string(100000, 'x')});
  ASSERT_TRUE(sign);
  EXPECT_LT(sign->size(), 128u);
}

TEST(MinerSigns, OnlyTheSizeThatRandomXPrescribes) {
  constexpr std::uint64_t mebibyte = 1 << 20;
  EXPECT_TRUE(is_randomx_dataset(2080 * mebibyte));
  EXPECT_TRUE(is_randomx_dataset(2336 * mebibyte));
  EXPECT_FALSE(is_randomx_dataset(2080 * mebibyte - 4096));
  EXPECT_FALSE(is_randomx_dataset(2080 * mebibyte + 4096));
  EXPECT_FALSE(is_randomx_dataset(0));
}

TEST(PreloadPlaces, FindsWhatIsSet) {
  const std::string environment = "A=1\0LD_PRELOAD=/tmp/x.so\0XLD_PRELOAD=no\0LD_AUDIT=/a.so\0LD_PRELOAD=\0"s;
  const auto found = preload_settings(environment);
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].variable, "LD_PRELOAD");
  EXPECT_EQ(found[0].value, "/tmp/x.so");
  EXPECT_EQ(found[1].variable, "LD_AUDIT");
  EXPECT_TRUE(preload_settings("").empty());
  EXPECT_TRUE(preload_settings("LD_PRELOAD").empty());
  EXPECT_TRUE(preload_settings("LD_PRELOAD_X=/tmp/x.so").empty());
}

TEST(PreloadPlaces, AnEnvironmentThatEndsTooEarlyIsReadToItsEnd) {
  const auto found = preload_settings("LD_PRELOAD=/tmp/x.s");
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].value, "/tmp/x.s");
}

TEST(PreloadPlaces, NoMoreThanAFew) {
  std::string environment;
  for (int i = 0; i < 1000; ++i)
    environment += "LD_PRELOAD=/tmp/x.so\0"s;
  EXPECT_EQ(preload_settings(environment).size(), 16u);
}

TEST(PreloadPlaces, TheWorstPlaceDecides) {
  EXPECT_EQ(preload_severity("libjemalloc.so.2"), Severity::low);
  EXPECT_EQ(preload_severity("/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"), Severity::low);
  EXPECT_EQ(preload_severity("/home/u/lib/x.so"), Severity::medium);
  EXPECT_EQ(preload_severity("/usr/lib/a.so:/tmp/x.so"), Severity::high);
  EXPECT_EQ(preload_severity("/usr/lib/a.so /dev/shm/x.so"), Severity::high);
  EXPECT_EQ(preload_severity("/usr/lib/../../tmp/x.so"), Severity::high);
  EXPECT_EQ(preload_severity("./x.so"), Severity::high);
  EXPECT_EQ(preload_severity(" : "), Severity::low);
}

} // namespace
} // namespace lararium::detect
