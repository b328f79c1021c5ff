#include "../context.h"
#include "../table.h"
#include "../text.h"

#include <filesystem>
#include <fmt/format.h>

namespace lararium::cli {
namespace {

constexpr std::size_t most_listed = 65536;

class ProfileCommand final : public Command {
public:
  void describe(Syntax &syntax) override {
    syntax.option("--isf", "FILE", "write the profile as ISF, which Volatility 3 reads", isf_);
    syntax.flag("-l,--list", "list the profiles in the cache instead; takes no VM", list_);
    syntax.flag("--clear", "empty the cache instead; takes no VM", clear_);
  }

  Result<void> run(Context &context) override {
    if (list_ || clear_) {
      if (!context.vm_name().empty() || !isf_.empty())
        return fail(ErrorCode::usage, "--list and --clear are about the cache: they take neither a VM nor --isf");
      const std::string &directory = context.options.guest.cache_directory;
      const ProfileCache cache = directory.empty() ? ProfileCache::default_location() : ProfileCache(directory);
      return clear_ ? clear(context, cache) : list(context, cache);
    }
    TRY_ASSIGN(Target *const target, context.target());
    TRY_ASSIGN(const auto profile, context.host.profile(*target, context.options.guest));
    TRY(context.release_pause());
    if (!isf_.empty())
      TRY(context.host.export_isf(*profile, isf_));
    std::string_view banner = profile->banner();
    banner = banner.substr(0, banner.find_last_not_of('\n') + 1);
    if (context.options.json) {
      JsonWriter json = context.begin_document("profile", nullptr);
      json.key("item").begin_object();
      json.text_or_null("build_id", profile->build_id().hex());
      json.text_or_null("banner", banner);
      json.member("symbols", profile->symbol_count())
          .member("types", profile->has_types() ? profile->types().count() : 0)
          .member("image_bytes", profile->image().size());
      json.text_or_null("isf_file", isf_);
      json.end_object();
      return context.end_document(json);
    }
    context.out.buffer() +=
        fmt::format("build id  {}\nbanner    {}\nsymbols   {}\ntypes     {}\nsize      {}\n", profile->build_id().hex(),
                    visible(banner), profile->symbol_count(), profile->has_types() ? profile->types().count() : 0,
                    long_bytes(profile->image().size()));
    if (!isf_.empty())
      context.note(fmt::format("written as ISF to {}", visible(isf_)));
    return {};
  }

private:
  static Result<void> list(Context &context, const ProfileCache &cache) {
    struct Entry {
      ProfileCache::Candidate candidate;
      std::uint64_t bytes = 0;
      std::string banner;
    };
    std::vector<Entry> entries;
    for (ProfileCache::Candidate &candidate : cache.candidates(most_listed)) {
      Entry entry{std::move(candidate), 0, {}};
      if (const auto profile = Profile::open(entry.candidate.file)) {
        entry.bytes = (*profile)->image().size();
        entry.banner = (*profile)->banner().substr(0, (*profile)->banner().find_last_not_of('\n') + 1);
      }
      entries.push_back(std::move(entry));
    }
    if (context.options.json)
      return context.json_list("profile", entries, nullptr, [](JsonWriter &json, const Entry &entry) {
        json.begin_object()
            .member("build_id", entry.candidate.build_id.hex())
            .member("file", entry.candidate.file.string())
            .member("image_bytes", entry.bytes)
            .text_or_null("banner", entry.banner)
            .end_object();
      });
    Table table{{"BUILD ID"}, {"SIZE", Align::right}, {"KERNEL"}};
    for (const Entry &entry : entries)
      table.text(entry.candidate.build_id.hex()).text(short_bytes(entry.bytes)).guest(entry.banner);
    return table.print(context.out);
  }

  static Result<void> clear(Context &context, const ProfileCache &cache) {
    std::uint64_t removed = 0;
    for (const ProfileCache::Candidate &candidate : cache.candidates(most_listed)) {
      std::error_code error;
      std::filesystem::remove(candidate.file, error);
      if (error)
        return fail_errno(fmt::format("cannot remove {}", candidate.file.string()), error.value());
      ++removed;
    }
    if (context.options.json) {
      JsonWriter json = context.begin_document("profile", nullptr);
      json.key("item").begin_object().member("removed", removed).end_object();
      return context.end_document(json);
    }
    context.note(fmt::format("{} {} removed", removed, removed == 1 ? "profile" : "profiles"));
    return {};
  }

  std::string isf_;
  bool list_ = false, clear_ = false;
};

LARARIUM_COMMAND(ProfileCommand, "profile", program, vm, "the profile of a guest's kernel, its export, and the cache")

} // namespace
} // namespace lararium::cli
