// A profile: the symbols and types of one guest kernel, independent of where KASLR put it.
//
// It is one flat, position-independent image: built once from a kernel's memory (kallsyms and BTF) or from a Volatility
// ISF file, written to the cache as it is, and from then on mapped, not parsed. Cache files are foreign bytes too:
// open() checks a checksum and the place of every section, look-ups check the offsets that they meet.
#pragma once

#include "lararium/base/bytes.h"
#include "lararium/base/mapping.h"
#include "lararium/base/result.h"
#include "lararium/symbols/build_id.h"
#include "lararium/symbols/types.h"

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace lararium {

enum class SymbolBase : std::uint8_t {
  image,    // `value` is the distance from the kernel's first byte, `_text`; add the running kernel's base
  absolute, // `value` is the value itself: per-CPU offsets of kernels before 6.15, and constants
};

struct ProfileSymbol {
  std::string_view name;
  std::uint64_t value = 0;
  SymbolBase base = SymbolBase::image;
  char type = '?'; // as nm and /proc/kallsyms print it
};

// What a profile is built from. Names are copied.
struct ProfileSource {
  BuildId build_id;
  std::uint64_t build_id_offset = 0; // where in the image (from `_text`) the build id's bytes lie; 0: unknown
  std::string banner;                // linux_banner: "Linux version ..."; may be empty (ISF without it)
  struct InputSymbol {
    std::string_view name;
    std::uint64_t value = 0;
    SymbolBase base = SymbolBase::image;
    char type = '?';
  };
  std::vector<InputSymbol> symbols; // any order; those without a name or with one of more than 2048 bytes are left out
  Bytes btf;                        // the kernel's BTF, maybe live; may be empty: then the profile has no types
};

class Profile {
public:
  [[nodiscard]] static Result<std::shared_ptr<const Profile>> build(const ProfileSource &source);
  // A file of another version or one that is damaged is an error: build the profile again.
  [[nodiscard]] static Result<std::shared_ptr<const Profile>> open(const std::filesystem::path &file);
  [[nodiscard]] static Result<std::shared_ptr<const Profile>> open(int descriptor);

  Profile(const Profile &) = delete;
  Profile &operator=(const Profile &) = delete;
  ~Profile();

  [[nodiscard]] const BuildId &build_id() const;
  [[nodiscard]] std::uint64_t build_id_offset() const;
  [[nodiscard]] std::string_view banner() const;

  [[nodiscard]] std::optional<ProfileSymbol> symbol(std::string_view name) const; // the first of that name
  // The last image symbol at or below `offset` (from `_text`); of several at one value the first in the source's order,
  // which in kallsyms is the one that the kernel itself would print.
  [[nodiscard]] std::optional<ProfileSymbol> nearest(std::uint64_t offset) const;
  [[nodiscard]] std::size_t symbol_count() const;
  [[nodiscard]] ProfileSymbol symbol_at(std::size_t index) const; // image symbols by value, then absolute ones by value

  [[nodiscard]] bool has_types() const;
  [[nodiscard]] const Types &types() const; // empty where there are none
  [[nodiscard]] Bytes btf() const;          // the raw BTF, for the types of modules, which build on it

  [[nodiscard]] Bytes image() const; // what the cache stores

private:
  Profile();
  struct Content;
  std::unique_ptr<Content> content_;
};

// The directory of cached profiles: $LARARIUM_CACHE, else for root /var/cache/lararium, for others
// $XDG_CACHE_HOME/lararium or ~/.cache/lararium. Files are named by build id; a profile is written to a temporary name
// and renamed, so that readers and several writers never meet a half-written one. Files that others than root or this
// user may write to are not used.
struct ProfileCacheLimits {
  std::size_t files = 256; // a profile is 5 to 10 MB
  std::uint64_t bytes = 2ULL << 30;
};

class ProfileCache {
public:
  explicit ProfileCache(std::filesystem::path directory, ProfileCacheLimits limits = {})
      : directory_(std::move(directory)), limits_(limits) {}
  [[nodiscard]] static ProfileCache default_location();

  struct Candidate {
    BuildId build_id;
    std::uint64_t build_id_offset = 0; // compare the guest's bytes there: a match needs no search
    std::filesystem::path file;
  };
  // The cached profiles, last used first, at most `limit`; only the head of each file is read. Take one with find().
  [[nodiscard]] std::vector<Candidate> candidates(std::size_t limit = 256) const;
  [[nodiscard]] Result<std::shared_ptr<const Profile>> find(const BuildId &build_id) const;
  // A failure is no reason to stop: say it and go on. What was not used for longest goes when the limits are reached.
  [[nodiscard]] Result<void> store(const Profile &profile) const;

private:
  std::filesystem::path directory_;
  ProfileCacheLimits limits_;
};

} // namespace lararium
