#include "lawful_writes.h"

#include "small_kernel.h"

#include <gtest/gtest.h>

namespace lararium::gate {
namespace {

using test::code;
using test::SmallKernel;

class LawfulWritesTest : public ::testing::Test {
protected:
  // Judges the first byte of what is written at a place.
  Judgement write(std::uint64_t place, const std::vector<std::byte> &bytes, std::uint64_t judged_at) {
    const auto before = guest.get(judged_at, 8);
    guest.put(place, bytes);
    guest.kernel->space().flush();
    lawful.read_moments();
    return lawful.judge(SmallKernel::base + judged_at, before);
  }
  Judgement write(std::uint64_t place, const std::vector<std::byte> &bytes) { return write(place, bytes, place); }

  SmallKernel guest;
  LawfulWrites lawful{*guest.kernel};
};

TEST_F(LawfulWritesTest, StaticCallToAFunction) {
  const auto at = SmallKernel::static_call;
  const auto judgement = write(at, SmallKernel::branch(0xe8, at, SmallKernel::other_function));
  EXPECT_TRUE(judgement.lawful);
  EXPECT_FALSE(judgement.passing);
  EXPECT_EQ(judgement.reason, "static call");
  EXPECT_EQ(judgement.length, 5U);
  EXPECT_TRUE(write(at, code({0x0f, 0x1f, 0x44, 0, 0})).lawful);
  EXPECT_TRUE(write(at, code({0x2e, 0x2e, 0x2e, 0x31, 0xc0})).lawful);
}

TEST_F(LawfulWritesTest, StaticCallOutOfTheKernel) {
  const auto at = SmallKernel::static_call;
  const auto judgement = write(at, SmallKernel::branch(0xe8, at, 0x40000000));
  EXPECT_FALSE(judgement.lawful);
  EXPECT_FALSE(write(at, SmallKernel::branch(0xe8, at, SmallKernel::rodata)).lawful) << "data is no code";
  EXPECT_FALSE(write(at, code({0x90, 0x90, 0x90, 0x90, 0x90})).lawful);
}

TEST_F(LawfulWritesTest, BreakpointIsPassingWhereTheKernelPatchesAlone) {
  const auto judgement = write(SmallKernel::static_call, code({0xcc}));
  EXPECT_TRUE(judgement.lawful);
  EXPECT_TRUE(judgement.passing);
  EXPECT_FALSE(write(SmallKernel::other_function, code({0xcc})).lawful);
}

TEST_F(LawfulWritesTest, BytesBehindASiteAreNotItsOwn) {
  EXPECT_FALSE(write(SmallKernel::static_call + 5, code({0x90})).lawful);
  EXPECT_FALSE(write(SmallKernel::static_call - 1, code({0x90})).lawful);
}

TEST_F(LawfulWritesTest, SiteAcrossPages) {
  const auto at = SmallKernel::next_page_call;
  const auto bytes = SmallKernel::branch(0xe8, at, SmallKernel::other_function);
  EXPECT_TRUE(write(at, bytes, at + 4).lawful);
  EXPECT_FALSE(write(at, SmallKernel::branch(0xe8, at, 0x40000000), at + 4).lawful);
}

TEST_F(LawfulWritesTest, TrampolineAndLockPrefix) {
  const auto at = SmallKernel::trampoline;
  EXPECT_TRUE(write(at, SmallKernel::branch(0xe9, at, SmallKernel::other_function)).lawful);
  EXPECT_FALSE(write(at, SmallKernel::branch(0xe9, at, 0x40000000)).lawful);
  EXPECT_TRUE(write(SmallKernel::lock, code({0x3e})).lawful);
  EXPECT_FALSE(write(SmallKernel::lock, code({0x90})).lawful);
}

// A probe that becomes a jump, and goes; each byte is judged as where it is only compared now and then.
TEST_F(LawfulWritesTest, ProbeThatIsOptimisedLater) {
  const auto at = SmallKernel::other_function;
  const auto original = code({0x48, 0x00, 0x11, 0x00, 0x22});
  guest.put(at, original);
  guest.set_probe(at, original);
  EXPECT_TRUE(write(at, code({0xcc})).lawful);
  EXPECT_TRUE(write(at, SmallKernel::branch(0xe9, at, 0x80)).lawful);
  guest.set_probe(std::nullopt);
  EXPECT_TRUE(write(at, original).lawful);
  for (std::uint64_t i = 1; i < original.size(); ++i)
    EXPECT_TRUE(lawful.judge(SmallKernel::base + at + i, guest.get(at + i, 4)).lawful) << i;
  EXPECT_FALSE(write(at + 2, code({0x12})).lawful);
}

} // namespace
} // namespace lararium::gate
