#include "lararium/symbols/profile.h"

#include "image.h"
#include "lararium/base/unique_fd.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <ctime>
#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

namespace lararium {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view suffix = ".profile";
constexpr std::size_t entries_looked_at = 4096; // in a directory that somebody filled

std::string file_name(const BuildId &id) { return id.hex() + std::string(suffix); }

// A file that root or this user owns and nobody else may write to. Symbolic links are not followed: the answer is about
// the very file that is read.
UniqueFd open_trusted(int directory, const char *name, struct stat &status) {
  UniqueFd file(::openat(directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!file || ::fstat(file.get(), &status) != 0)
    return {};
  const bool ours = status.st_uid == 0 || status.st_uid == ::geteuid();
  if (!S_ISREG(status.st_mode) || !ours || (status.st_mode & (S_IWGRP | S_IWOTH)) != 0)
    return {};
  return file;
}

UniqueFd open_directory(const fs::path &path) {
  return UniqueFd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

Result<void> make_directories(const fs::path &path) {
  // A profile tells a kernel's layout, not its addresses; but what a user watches is their own affair.
  const mode_t mode = ::geteuid() == 0 ? 0755 : 0700;
  fs::path part;
  for (const auto &name : path) {
    part /= name;
    if (::mkdir(part.c_str(), mode) != 0 && errno != EEXIST && errno != EROFS && errno != EACCES && errno != EPERM)
      return fail_errno(fmt::format("cannot create {}", part.string()), errno);
  }
  return {};
}

Result<void> write_all(int file, Bytes bytes) {
  while (!bytes.empty()) {
    const auto written = ::write(file, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR)
      continue;
    if (written <= 0)
      return fail_errno("cannot write the profile", written < 0 ? errno : ENOSPC);
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
  return {};
}

// A profile of whatever version, or what a store that was cut off left of one.
bool is_cache_file(std::string_view name, bool &unfinished) {
  unfinished = name.starts_with('.'); // ".BUILDID.profile.PID.SERIAL"
  const std::size_t end = name.find(suffix, 1);
  if (unfinished)
    name.remove_prefix(1);
  else if (!name.ends_with(suffix))
    return false;
  const std::string_view id = name.substr(0, name.find(suffix));
  return end != std::string_view::npos && !id.empty() &&
         std::ranges::all_of(id, [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

// Two that trim at once remove the same files; nobody needs a file to stay that he has opened.
void trim(const fs::path &path, const ProfileCacheLimits &limits, std::string_view just_stored) {
  UniqueFd directory = open_directory(path);
  DIR *stream = directory ? ::fdopendir(directory.get()) : nullptr;
  if (stream == nullptr)
    return;
  const int descriptor = directory.release(); // the stream's from now on
  struct Kept {
    time_t used;
    std::uint64_t size;
    std::string name;
  };
  std::vector<Kept> kept;
  constexpr time_t abandoned_after = 3600;
  const time_t now = ::time(nullptr);
  std::size_t looked_at = 0;
  while (const dirent *entry = ::readdir(stream)) {
    if (++looked_at > entries_looked_at)
      break;
    bool unfinished = false;
    struct stat status{};
    if (!is_cache_file(entry->d_name, unfinished) || entry->d_name == just_stored ||
        ::fstatat(descriptor, entry->d_name, &status, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(status.st_mode))
      continue;
    if (!unfinished)
      kept.push_back({status.st_mtim.tv_sec, static_cast<std::uint64_t>(status.st_size), entry->d_name});
    else if (now - status.st_mtim.tv_sec > abandoned_after)
      ::unlinkat(descriptor, entry->d_name, 0);
  }
  std::ranges::sort(kept, std::ranges::greater{}, &Kept::used);
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < kept.size(); ++i) {
    bytes += kept[i].size;
    if (i + 1 >= limits.files || bytes > limits.bytes)
      ::unlinkat(descriptor, kept[i].name.c_str(), 0);
  }
  ::closedir(stream);
}

// Says by the file's time that it is in use. Whose directory it is not cannot, and then it is the owner who uses it.
void mark_used(int file, const struct stat &status) {
  constexpr time_t often_enough = 3600;
  if (::time(nullptr) - status.st_mtim.tv_sec > often_enough)
    static_cast<void>(::futimens(file, nullptr));
}

// No fsync: a file that a power failure tore fails its checksum, and is built again.
Result<void> write_and_rename(int directory, const std::string &temporary, const std::string &name, Bytes image) {
  const UniqueFd file(
      ::openat(directory, temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644));
  if (!file)
    return fail_errno("cannot create the profile", errno);
  // Whatever the umask: readers refuse what others may write to.
  auto done = ::fchmod(file.get(), 0644) == 0 ? write_all(file.get(), image) : fail_errno("cannot protect it", errno);
  if (done && ::renameat(directory, temporary.c_str(), directory, name.c_str()) != 0)
    done = fail_errno("cannot rename the profile", errno);
  if (!done)
    ::unlinkat(directory, temporary.c_str(), 0);
  return done;
}

} // namespace

ProfileCache ProfileCache::default_location() {
  // secure_getenv: a set-uid program does not let its caller choose.
  if (const char *chosen = ::secure_getenv("LARARIUM_CACHE"); chosen != nullptr && *chosen != '\0')
    return ProfileCache(chosen);
  // Root's XDG_CACHE_HOME and HOME are often a user's, kept by sudo; root does not trust what lies there.
  if (::geteuid() == 0)
    return ProfileCache("/var/cache/lararium");
  if (const char *base = ::secure_getenv("XDG_CACHE_HOME"); base != nullptr && *base == '/')
    return ProfileCache(fs::path(base) / "lararium");
  if (const char *home = ::secure_getenv("HOME"); home != nullptr && *home == '/')
    return ProfileCache(fs::path(home) / ".cache" / "lararium");
  return ProfileCache("/var/cache/lararium");
}

std::vector<ProfileCache::Candidate> ProfileCache::candidates(std::size_t limit) const {
  UniqueFd directory = open_directory(directory_);
  if (!directory)
    return {};
  DIR *stream = ::fdopendir(directory.get());
  if (stream == nullptr)
    return {};
  const int descriptor = directory.release(); // the stream's from now on
  struct Dated {
    timespec time;
    Candidate candidate;
  };
  std::vector<Dated> found;
  std::size_t looked_at = 0;
  while (const dirent *entry = ::readdir(stream)) {
    if (++looked_at > entries_looked_at)
      break;
    const std::string_view name = entry->d_name;
    if (name.starts_with('.') || !name.ends_with(suffix))
      continue;
    struct stat status{};
    const UniqueFd file = open_trusted(descriptor, entry->d_name, status);
    if (!file)
      continue;
    std::array<std::byte, sizeof(profile_image::Header)> head{};
    if (::pread(file.get(), head.data(), head.size(), 0) != static_cast<ssize_t>(head.size()))
      continue;
    const auto header = profile_image::read_header(head);
    if (!header || header->total_size != static_cast<std::uint64_t>(status.st_size))
      continue;
    const BuildId id = profile_image::build_id_of(*header);
    if (name == file_name(id))
      found.push_back({status.st_mtim, {id, header->build_id_offset, directory_ / name}});
  }
  ::closedir(stream);
  std::ranges::sort(found, [](const Dated &a, const Dated &b) {
    return std::tie(a.time.tv_sec, a.time.tv_nsec) > std::tie(b.time.tv_sec, b.time.tv_nsec);
  });
  std::vector<Candidate> result;
  for (auto &dated : found) {
    if (result.size() == limit)
      break;
    result.push_back(std::move(dated.candidate));
  }
  return result;
}

Result<std::shared_ptr<const Profile>> ProfileCache::find(const BuildId &build_id) const {
  const UniqueFd directory = open_directory(directory_);
  const auto name = file_name(build_id);
  struct stat status{};
  const UniqueFd file = directory ? open_trusted(directory.get(), name.c_str(), status) : UniqueFd();
  if (!file || build_id.size == 0)
    return fail(ErrorCode::not_found, "no profile of this kernel is cached");
  auto profile = Profile::open(file.get());
  if (!profile)
    return wrap(std::move(profile).error(), (directory_ / name).string());
  if ((*profile)->build_id() != build_id)
    return fail(ErrorCode::corrupt, fmt::format("{} is the profile of another kernel", (directory_ / name).string()));
  mark_used(file.get(), status);
  return profile;
}

Result<void> ProfileCache::store(const Profile &profile) const {
  if (profile.build_id().size == 0)
    return fail(ErrorCode::usage, "a profile without a build id cannot be cached");
  TRY(make_directories(directory_));
  const UniqueFd directory = open_directory(directory_);
  if (!directory)
    return fail_errno(fmt::format("cannot open {}", directory_.string()), errno);
  static std::atomic<unsigned> serial{0};
  const auto name = file_name(profile.build_id());
  const auto temporary = fmt::format(".{}.{}.{}", name, ::getpid(), serial.fetch_add(1));
  auto done = write_and_rename(directory.get(), temporary, name, profile.image());
  if (!done)
    return wrap(std::move(done).error(), (directory_ / name).string());
  trim(directory_, limits_, name);
  return {};
}

} // namespace lararium
