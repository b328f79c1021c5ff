#include "lararium/base/result.h"

#include <cerrno>
#include <gtest/gtest.h>

namespace lararium {
namespace {

Result<int> half(int value) {
  if (value % 2 != 0)
    return fail(ErrorCode::usage, "odd");
  return value / 2;
}
Result<int> quarter(int value) {
  TRY_ASSIGN(const int first, half(value));
  TRY_ASSIGN(const int second, half(first));
  return second;
}

TEST(Result, TryAssignUnwrapsOrReturnsTheError) {
  EXPECT_EQ(quarter(8), 2);
  ASSERT_FALSE(quarter(6));
  EXPECT_EQ(quarter(6).error().message, "odd");
}

TEST(Error, DescribesAddressAndSpace) {
  const Error error = fault(Gva{0xffff888000001000}).error();
  EXPECT_EQ(error.describe(), "not readable (guest-virtual 0xffff888000001000)");
  const Error wrapped = wrap(fail_errno("cannot read", EPERM).error(), "VM demo").error();
  EXPECT_EQ(wrapped.code, ErrorCode::permission_denied);
  EXPECT_EQ(wrapped.describe(), "VM demo: cannot read: Operation not permitted");
}

} // namespace
} // namespace lararium
