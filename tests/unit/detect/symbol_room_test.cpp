#include "symbol_room.h"

#include <gtest/gtest.h>

namespace lararium::detect {
namespace {

using enum SymbolBase;

std::shared_ptr<const Profile> profile_of(std::vector<ProfileSource::InputSymbol> symbols) {
  ProfileSource source;
  source.symbols = std::move(symbols);
  auto profile = Profile::build(source);
  return profile ? *profile : nullptr;
}

TEST(SymbolRoom, EndsAtTheNextSymbolOfAnotherValue) {
  const auto profile = profile_of({{"last", 0x900, image, 'd'},
                                   {"table", 0x100, image, 'd'},
                                   {"alias", 0x100, image, 'D'},
                                   {"next", 0x1f8, image, 'd'}});
  ASSERT_TRUE(profile);
  EXPECT_EQ(room_of(*profile, "table"), 0xf8u);
  EXPECT_EQ(room_of(*profile, "alias"), 0xf8u);
  EXPECT_EQ(room_of(*profile, "next"), 0x708u);
}

TEST(SymbolRoom, IsNoneWhereNothingFollows) {
  const auto profile = profile_of({{"first", 0x100, image, 'd'}, {"last", 0x200, image, 'd'}});
  ASSERT_TRUE(profile);
  EXPECT_EQ(room_of(*profile, "last"), 0u);
  EXPECT_EQ(room_of(*profile, "absent"), 0u);
}

// Offsets into per-CPU areas (before 6.15) and addresses are two scales.
TEST(SymbolRoom, KeepsToItsOwnBase) {
  const auto profile = profile_of({{"text", 0x150, image, 't'},
                                   {"end", 0x300, image, 'd'},
                                   {"per_cpu", 0x100, absolute, 'A'},
                                   {"per_cpu_next", 0x240, absolute, 'A'}});
  ASSERT_TRUE(profile);
  EXPECT_EQ(room_of(*profile, "per_cpu"), 0x140u);
  EXPECT_EQ(room_of(*profile, "per_cpu_next"), 0u);
  EXPECT_EQ(room_of(*profile, "end"), 0u) << "the next symbol is of the other scale";
  EXPECT_EQ(room_of(*profile, "text"), 0x1b0u);
}

} // namespace
} // namespace lararium::detect
