#include "lararium/symbols/profile.h"

#include "btf_builder.h"
#include "lararium/base/unique_fd.h"

#include <array>
#include <fcntl.h>
#include <fstream>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

namespace lararium {
namespace {

namespace fs = std::filesystem;

class TemporaryDirectory {
public:
  TemporaryDirectory() {
    std::string pattern = (fs::temp_directory_path() / "profile_test.XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory &) = delete;
  TemporaryDirectory &operator=(const TemporaryDirectory &) = delete;
  [[nodiscard]] const fs::path &path() const { return path_; }

private:
  fs::path path_;
};

BuildId build_id(std::uint8_t last) {
  BuildId id;
  id.size = 20;
  id.bytes[19] = last;
  return id;
}

ProfileSource source() {
  ProfileSource source;
  source.build_id = build_id(7);
  source.build_id_offset = 0x1234;
  source.banner = "Linux version 6.1.0-test";
  source.symbols = {{"cpu_number", 0x1000, SymbolBase::absolute, 'D'},
                    {"late", 0x3000, SymbolBase::image, 't'},
                    {"_text", 0, SymbolBase::image, 'T'},
                    {"alias_b", 0x2000, SymbolBase::image, 'T'},
                    {"alias_a", 0x2000, SymbolBase::image, 'T'},
                    {"twice", 0x2500, SymbolBase::image, 'd'},
                    {"twice", 0x2400, SymbolBase::image, 'd'},
                    {"", 0x2600, SymbolBase::image, 'd'},
                    {"far", 0x900000000, SymbolBase::image, 'd'}};
  return source;
}

std::vector<std::byte> some_btf() {
  test::BtfBuilder builder;
  const auto number = builder.integer("int", 4);
  builder.structure("thing", 8, {{"a", number, 0}, {"b", number, 32}});
  builder.enumeration("", {{"ONE", 1}});
  return builder.bytes();
}

void expect_content(const Profile &profile) {
  EXPECT_EQ(profile.build_id(), build_id(7));
  EXPECT_EQ(profile.build_id_offset(), 0x1234U);
  EXPECT_EQ(profile.banner(), "Linux version 6.1.0-test");
  EXPECT_EQ(profile.symbol_count(), 8U);
  EXPECT_EQ(profile.symbol("late")->value, 0x3000U);
  EXPECT_EQ(profile.symbol("late")->type, 't');
  EXPECT_EQ(profile.symbol("twice")->value, 0x2400U) << "the first by value";
  EXPECT_EQ(profile.symbol("cpu_number")->base, SymbolBase::absolute);
  EXPECT_FALSE(profile.symbol("nothing"));
  EXPECT_FALSE(profile.symbol(""));
  EXPECT_EQ(profile.nearest(0x2000)->name, "alias_b") << "the first in the source's order";
  EXPECT_EQ(profile.nearest(0x23ff)->name, "alias_b");
  EXPECT_EQ(profile.nearest(0x1fff)->name, "_text");
  EXPECT_EQ(profile.nearest(UINT64_MAX)->name, "far");
  EXPECT_EQ(profile.symbol_at(0).name, "_text");
  EXPECT_EQ(profile.symbol_at(7).name, "cpu_number");
  EXPECT_EQ(profile.symbol_at(8).name, "");
  EXPECT_TRUE(profile.has_types());
  EXPECT_EQ(profile.types().field("thing", "b")->offset, 4U);
  EXPECT_EQ(profile.types().enumerator("ONE"), 1);
  const auto btf = some_btf();
  EXPECT_TRUE(std::ranges::equal(profile.btf(), btf));
}

void write_file(const fs::path &path, Bytes bytes) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char *>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

TEST(Profile, IsTheSameBuiltAndOpened) {
  const TemporaryDirectory directory;
  auto from = source();
  const auto btf = some_btf();
  from.btf = btf;
  const auto built = Profile::build(from);
  ASSERT_TRUE(built) << built.error().message;
  expect_content(**built);
  write_file(directory.path() / "p", (*built)->image());
  const auto opened = Profile::open(directory.path() / "p");
  ASSERT_TRUE(opened) << opened.error().message;
  expect_content(**opened);
}

TEST(Profile, NeedsNeitherSymbolsNorTypes) {
  const auto profile = Profile::build({});
  ASSERT_TRUE(profile);
  EXPECT_FALSE((*profile)->has_types());
  EXPECT_EQ((*profile)->types().count(), 0U);
  EXPECT_FALSE((*profile)->types().field("task_struct", "comm"));
  EXPECT_FALSE((*profile)->symbol("x"));
  EXPECT_FALSE((*profile)->nearest(0));
}

TEST(Profile, RefusesBadBtf) {
  auto from = source();
  const std::vector<std::byte> nonsense(100);
  from.btf = nonsense;
  ASSERT_FALSE(Profile::build(from));
  EXPECT_EQ(Profile::build(from).error().code, ErrorCode::corrupt);
}

TEST(Profile, RefusesDamagedFiles) {
  const TemporaryDirectory directory;
  auto from = source();
  const auto btf = some_btf();
  from.btf = btf;
  const auto built = Profile::build(from);
  ASSERT_TRUE(built);
  const std::vector<std::byte> good((*built)->image().begin(), (*built)->image().end());
  const auto path = directory.path() / "p";
  for (std::size_t i = 0; i < good.size(); ++i) {
    auto bad = good;
    bad[i] ^= std::byte{0x10};
    write_file(path, bad);
    EXPECT_FALSE(Profile::open(path)) << i;
  }
  for (const std::size_t length : {std::size_t{0}, std::size_t{8}, good.size() / 2, good.size() - 1}) {
    write_file(path, Bytes(good).first(length));
    EXPECT_FALSE(Profile::open(path)) << length;
  }
  EXPECT_EQ(Profile::open(directory.path() / "missing").error().code, ErrorCode::not_found);
  EXPECT_FALSE(Profile::open(directory.path()));
}

TEST(ProfileCache, StoresAndFinds) {
  const TemporaryDirectory directory;
  const ProfileCache cache(directory.path() / "a" / "b");
  EXPECT_TRUE(cache.candidates().empty());
  EXPECT_EQ(cache.find(build_id(7)).error().code, ErrorCode::not_found);
  auto from = source();
  const auto btf = some_btf();
  from.btf = btf;
  const auto built = Profile::build(from);
  ASSERT_TRUE(cache.store(**built));
  ASSERT_TRUE(cache.store(**built)) << "replaces";
  const auto found = cache.find(build_id(7));
  ASSERT_TRUE(found) << found.error().message;
  expect_content(**found);

  from.build_id = build_id(8);
  ASSERT_TRUE(cache.store(**Profile::build(from)));
  const timespec old[2] = {{1000, 0}, {1000, 0}};
  ::utimensat(AT_FDCWD, (directory.path() / "a" / "b" / (build_id(8).hex() + ".profile")).c_str(), old, 0);
  const auto candidates = cache.candidates();
  ASSERT_EQ(candidates.size(), 2U);
  EXPECT_EQ(candidates[0].build_id, build_id(7)) << "newest first";
  EXPECT_EQ(candidates[0].build_id_offset, 0x1234U);
  EXPECT_EQ(candidates[1].build_id, build_id(8));
  EXPECT_EQ(cache.candidates(1).size(), 1U);
  EXPECT_EQ(std::distance(fs::directory_iterator(directory.path() / "a" / "b"), {}), 2) << "nothing temporary stays";
}

TEST(ProfileCache, DoesNotUseWhatOthersMayWriteTo) {
  const TemporaryDirectory directory;
  const ProfileCache cache(directory.path());
  const auto built = Profile::build(source());
  ASSERT_TRUE(cache.store(**built));
  const auto path = directory.path() / (build_id(7).hex() + ".profile");
  ASSERT_TRUE(cache.find(build_id(7)));
  for (const mode_t mode : {0664, 0646}) {
    ASSERT_EQ(::chmod(path.c_str(), mode), 0);
    EXPECT_FALSE(cache.find(build_id(7)));
    EXPECT_TRUE(cache.candidates().empty());
  }
  ASSERT_EQ(::chmod(path.c_str(), 0644), 0);
  EXPECT_TRUE(cache.find(build_id(7)));

  fs::rename(path, directory.path() / "elsewhere");
  fs::create_symlink("elsewhere", path);
  EXPECT_FALSE(cache.find(build_id(7))) << "a symbolic link";
  EXPECT_TRUE(cache.candidates().empty());
  fs::remove(path);
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  EXPECT_FALSE(cache.find(build_id(7))) << "a pipe, which must not block";
  if (::geteuid() == 0) {
    fs::remove(path);
    fs::rename(directory.path() / "elsewhere", path);
    ASSERT_EQ(::chown(path.c_str(), 12345, 12345), 0);
    EXPECT_FALSE(cache.find(build_id(7))) << "another user's";
  }
}

TEST(ProfileCache, DoesNotMistakeOneKernelForAnother) {
  const TemporaryDirectory directory;
  const ProfileCache cache(directory.path());
  ASSERT_TRUE(cache.store(**Profile::build(source())));
  fs::rename(directory.path() / (build_id(7).hex() + ".profile"), directory.path() / (build_id(9).hex() + ".profile"));
  EXPECT_EQ(cache.find(build_id(9)).error().code, ErrorCode::corrupt);
  EXPECT_TRUE(cache.candidates().empty());
  EXPECT_EQ(cache.store(**Profile::build({})).error().code, ErrorCode::usage) << "no build id";
}

TEST(ProfileCache, ForgetsWhatWasNotUsedForLongest) {
  const TemporaryDirectory directory;
  const ProfileCache cache(directory.path(), {.files = 3, .bytes = 1 << 20});
  const auto path_of = [&](std::uint8_t n) { return directory.path() / (build_id(n).hex() + ".profile"); };
  const auto use_at = [&](const fs::path &path, time_t seconds) {
    const timespec times[2] = {{seconds, 0}, {seconds, 0}};
    ASSERT_EQ(::utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
  };
  const auto store = [&](const ProfileCache &in, std::uint8_t n) {
    auto from = source();
    from.build_id = build_id(n);
    ASSERT_TRUE(in.store(**Profile::build(from)));
  };
  for (const std::uint8_t n : {1, 2, 3}) {
    store(cache, n);
    use_at(path_of(n), 1000 + n);
  }
  ASSERT_TRUE(cache.find(build_id(1))) << "which is a use";
  const auto foreign = directory.path() / "mine.profile", cut_off = directory.path() / ".0a.profile.77.0",
             under_way = directory.path() / ".0b.profile.78.0", old_version = directory.path() / "00ff.profile";
  for (const auto &path : {foreign, cut_off, under_way, old_version})
    std::ofstream(path) << "x";
  use_at(foreign, 1);
  use_at(cut_off, 1);
  use_at(old_version, 1);
  store(cache, 4);
  EXPECT_TRUE(fs::exists(path_of(1)));
  EXPECT_FALSE(fs::exists(path_of(2)));
  EXPECT_TRUE(fs::exists(path_of(3)));
  EXPECT_TRUE(fs::exists(path_of(4)));
  EXPECT_TRUE(fs::exists(foreign));
  EXPECT_TRUE(fs::exists(under_way));
  EXPECT_FALSE(fs::exists(cut_off));
  EXPECT_FALSE(fs::exists(old_version));

  store(ProfileCache(directory.path(), {.files = 256, .bytes = 1}), 5);
  EXPECT_EQ(cache.candidates().size(), 1U) << "what was stored last stays";
}

TEST(ProfileCache, LocationFollowsTheEnvironment) {
  const TemporaryDirectory directory;
  ::setenv("LARARIUM_CACHE", directory.path().c_str(), 1);
  ASSERT_TRUE(ProfileCache::default_location().store(**Profile::build(source())));
  EXPECT_TRUE(fs::exists(directory.path() / (build_id(7).hex() + ".profile")));
  ::unsetenv("LARARIUM_CACHE");
}

} // namespace
} // namespace lararium
