#include "lararium/base/mapping.h"

#include "lararium/base/unique_fd.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

namespace lararium {
namespace {

TEST(Mapping, TruncatedFileReadsAsZerosInsteadOfKilling) {
  const UniqueFd file(::memfd_create("mapping_test", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(file.get(), 4 * page_size), 0);
  const char text[] = "here";
  ASSERT_EQ(::pwrite(file.get(), text, sizeof text, 2 * page_size), static_cast<ssize_t>(sizeof text));
  auto mapping = Mapping::map_file(file.get(), 0, 4 * page_size);
  ASSERT_TRUE(mapping);
  EXPECT_EQ(c_string(mapping->bytes(), 2 * page_size), "here");

  const auto lost_before = Mapping::lost_pages();
  ASSERT_EQ(::ftruncate(file.get(), page_size), 0);
  EXPECT_EQ(c_string(mapping->bytes(), 2 * page_size), "");
  EXPECT_EQ(Mapping::lost_pages(), lost_before + 1);
}

TEST(Mapping, MissingFileNamesItself) {
  const auto mapping = map_whole_file("/nonexistent/file");
  ASSERT_FALSE(mapping);
  EXPECT_EQ(mapping.error().code, ErrorCode::not_found);
  EXPECT_NE(mapping.error().message.find("/nonexistent/file"), std::string::npos);
}

} // namespace
} // namespace lararium
