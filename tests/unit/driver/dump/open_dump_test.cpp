#include "samples.h"

#include "lararium/driver/dump.h"

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>

namespace lararium {
namespace {

using namespace samples;

std::string message_of(const Image &image) {
  const auto target = open_dump_image(image, "x");
  return target ? "it opened" : target.error().message;
}

TEST(OpenDump, FlatImages) {
  Image image(1 << 20);
  const Image some = page(9);
  std::ranges::copy(some, image.begin() + 7 * page_size);
  const auto target = open_dump_image(image, "x");
  ASSERT_TRUE(target);
  EXPECT_EQ(target->identity.memory_access, "flat image");
  EXPECT_TRUE(has_page(*target->memory, 7 * page_size, 9));
  EXPECT_TRUE(unreadable(*target->memory, 1 << 20));
}

TEST(OpenDump, LargeFlatImagesWarnOfTheHole) {
  const std::string path = testing::TempDir() + "lararium_flat_test";
  std::ofstream(path).close();
  std::filesystem::resize_file(path, std::uint64_t{3} << 30);
  const auto target = open_dump(path);
  std::filesystem::remove(path);
  ASSERT_TRUE(target) << target.error().describe();
  EXPECT_TRUE(mentions(*target, "hole below 4 GiB"));
  EXPECT_TRUE(has_zeros(*target->memory, 0x1000, page_size));
  EXPECT_TRUE(target->memory->populated(Gpa{0}, UINT64_MAX).empty()); // all of the file is a hole
}

TEST(OpenDump, SaysWhatAFileIs) {
  EXPECT_EQ(message_of({}), "x: the file is empty");
  Image zip = page(1);
  std::memcpy(zip.data(), "\x1f\x8b", 2);
  EXPECT_EQ(message_of(zip), "x: compressed with gzip; decompress it first");
  Image saved = page(1);
  std::memcpy(saved.data(), "LibvirtQemudSave", 16);
  EXPECT_NE(message_of(saved).find("virsh dump --memory-only"), std::string::npos);
  EXPECT_EQ(message_of(page(1)), "x: not a memory dump: no known format, and no flat image of whole pages");
  Image odd(1 << 20);
  odd.emplace_back();
  EXPECT_NE(message_of(odd).find("not a memory dump"), std::string::npos);
}

TEST(OpenDump, FilesThatCannotBeOpened) {
  EXPECT_EQ(open_dump("/does/not/exist").error().code, ErrorCode::not_found);
  EXPECT_EQ(open_dump("/dev/null").error().code, ErrorCode::usage);
  EXPECT_EQ(open_dump("/tmp").error().code, ErrorCode::usage);
}

} // namespace
} // namespace lararium
