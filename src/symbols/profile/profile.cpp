#include "lararium/symbols/profile.h"

#include "image.h"
#include "lararium/base/unique_fd.h"
#include "lararium/symbols/btf.h"
#include "lararium/symbols/name_index.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

namespace lararium {

using namespace profile_image;

namespace profile_image {

std::optional<Header> read_header(Bytes head) {
  const auto header = load<Header>(head, 0);
  if (!header || header->magic != magic || header->version != version || header->header_size != sizeof(Header) ||
      header->build_id_size > header->build_id.size() || header->total_size < sizeof(Header) ||
      header->total_size > size_limit || header->image_symbol_count > header->symbol_count ||
      header->symbol_count > symbol_limit)
    return std::nullopt;
  return header;
}

BuildId build_id_of(const Header &header) {
  BuildId id;
  id.bytes = header.build_id;
  id.size = static_cast<std::uint8_t>(header.build_id_size);
  return id;
}

std::uint64_t checksum_of(Bytes image) {
  // Eight lanes keep the multiplier busy: it runs at the speed of memory.
  constexpr std::uint64_t prime = 0x9e3779b185ebca87;
  std::array<std::uint64_t, 8> lanes{1, 2, 3, 4, 5, 6, 7, 8};
  const auto mix = [&](const std::byte *block) {
    std::array<std::uint64_t, 8> words;
    std::memcpy(words.data(), block, sizeof words);
    for (std::size_t i = 0; i < words.size(); ++i)
      lanes[i] = std::rotl((lanes[i] ^ words[i]) * prime, 29);
  };
  std::array<std::byte, sizeof(Header)> head;
  std::memcpy(head.data(), image.data(), sizeof head);
  std::memset(head.data() + offsetof(Header, checksum), 0, sizeof(Header::checksum));
  static_assert(sizeof(Header) % 64 == 0);
  for (std::size_t at = 0; at < sizeof head; at += 64)
    mix(head.data() + at);
  std::size_t at = sizeof head;
  for (; image.size() - at >= 64; at += 64)
    mix(image.data() + at);
  std::array<std::byte, 64> tail{};
  std::memcpy(tail.data(), image.data() + at, image.size() - at);
  mix(tail.data());
  std::uint64_t sum = image.size();
  for (const std::uint64_t lane : lanes)
    sum = std::rotl((sum ^ lane) * prime, 31);
  return sum ^ sum >> 32;
}

} // namespace profile_image

namespace {

template <class T> Bytes raw(const std::vector<T> &values) { return std::as_bytes(std::span(values)); }

template <class T> std::span<const T> typed(Bytes bytes) {
  // Sections are aligned to 8 bytes, and the image to more.
  return {reinterpret_cast<const T *>(bytes.data()), bytes.size() / sizeof(T)};
}

} // namespace

struct Profile::Content {
  Mapping mapping;              // of an image from a file
  std::vector<std::byte> owned; // of one that was built
  Bytes image;
  Header header{};
  BuildId build_id;
  std::string_view banner;
  std::span<const SymbolRecord> symbols;
  std::string_view names;
  std::span<const std::uint32_t> symbol_slots;
  Bytes btf;
  BtfTypes types;

  // Checks every section's place, and makes the views on them.
  Result<void> attach(Bytes bytes) {
    image = bytes;
    const auto read = read_header(image);
    if (!read)
      return fail(ErrorCode::unsupported, "not a profile of this version");
    header = *read;
    if (header.total_size != image.size())
      return fail(ErrorCode::corrupt, "the profile is cut off");
    for (const auto &[offset, size] : header.sections)
      if (offset % 8 != 0 || offset > image.size() || size > image.size() - offset)
        return fail(ErrorCode::corrupt, "a section of the profile lies outside of it");
    build_id = build_id_of(header);
    banner = text(section(Section::banner));
    symbols = typed<SymbolRecord>(section(Section::symbols));
    if (symbols.size() != header.symbol_count)
      return fail(ErrorCode::corrupt, "the profile's count of symbols is wrong");
    names = text(section(Section::symbol_names));
    symbol_slots = typed<std::uint32_t>(section(Section::symbol_slots));
    btf = section(Section::btf);
    if (btf.empty())
      return {};
    TRY_ASSIGN(const auto sections, btf_sections(btf));
    types = BtfTypes(sections, {typed<std::uint32_t>(section(Section::type_offsets)),
                                typed<std::uint32_t>(section(Section::type_slots)),
                                typed<std::uint32_t>(section(Section::enumerator_slots)),
                                header.name_seed,
                                {header.signed_enumerations != 0, header.odd_integers != 0}});
    return {};
  }

  [[nodiscard]] Bytes section(Section which) const {
    return image.subspan(header.sections[which].offset, header.sections[which].size);
  }
  [[nodiscard]] static std::string_view text(Bytes bytes) {
    return {reinterpret_cast<const char *>(bytes.data()), bytes.size()};
  }
  [[nodiscard]] std::string_view name_of(const SymbolRecord &record) const {
    return record.name > names.size() ? std::string_view() : names.substr(record.name, record.name_length);
  }
  [[nodiscard]] ProfileSymbol symbol(std::size_t index) const {
    const SymbolRecord record = symbols[index];
    return {name_of(record), record.value, index < header.image_symbol_count ? SymbolBase::image : SymbolBase::absolute,
            record.type};
  }
};

namespace {

// Appends section after section behind the header.
class ImageWriter {
public:
  explicit ImageWriter(std::size_t expected) {
    image_.reserve(expected);
    image_.resize(sizeof(Header));
  }

  // What was appended, until the next call.
  Bytes append(Section which, Bytes bytes) {
    image_.resize((image_.size() + 7) / 8 * 8);
    header.sections[which] = {image_.size(), bytes.size()};
    image_.insert(image_.end(), bytes.begin(), bytes.end());
    return Bytes(image_).last(bytes.size());
  }

  // Room for a section, as zeros, to be filled in place(); it may move with the next call.
  void make_room(Section which, std::size_t size) {
    const std::size_t offset = (image_.size() + 7) / 8 * 8;
    header.sections[which] = {offset, size};
    image_.resize(offset + size);
  }
  template <class T> std::span<T> place(Section which) {
    const auto &[offset, size] = header.sections[which];
    return {reinterpret_cast<T *>(image_.data() + offset), size / sizeof(T)};
  }

  Result<std::vector<std::byte>> finish() {
    image_.resize((image_.size() + 7) / 8 * 8);
    if (image_.size() > size_limit)
      return fail(ErrorCode::corrupt, "the profile is too large");
    header.magic = magic;
    header.version = version;
    header.header_size = sizeof(Header);
    header.total_size = image_.size();
    std::memcpy(image_.data(), &header, sizeof header);
    header.checksum = checksum_of(image_);
    std::memcpy(image_.data(), &header, sizeof header);
    return std::move(image_);
  }

  Header header{};

private:
  std::vector<std::byte> image_;
};

Result<void> write_symbols(ImageWriter &image, const ProfileSource &source) {
  std::vector<std::uint32_t> order;
  order.reserve(source.symbols.size());
  std::size_t name_bytes = 0, image_symbols = 0;
  for (const SymbolBase base : {SymbolBase::image, SymbolBase::absolute}) {
    const std::size_t first = order.size();
    for (std::uint32_t i = 0; i < source.symbols.size(); ++i) {
      const auto &symbol = source.symbols[i];
      if (symbol.base != base || symbol.name.empty() || symbol.name.size() > symbol_name_limit)
        continue;
      name_bytes += symbol.name.size();
      order.push_back(i);
    }
    // Of several symbols at one place, kallsyms lists first the one that the kernel itself would print.
    const auto key = [&](std::uint32_t i) { return std::pair(source.symbols[i].value, i); };
    const auto part = std::ranges::subrange(order.begin() + static_cast<std::ptrdiff_t>(first), order.end());
    if (!std::ranges::is_sorted(part, {}, key)) // kallsyms is sorted
      std::ranges::sort(part, {}, key);
    if (base == SymbolBase::image)
      image_symbols = order.size();
  }

  image.make_room(Section::symbols, order.size() * sizeof(SymbolRecord));
  image.make_room(Section::symbol_names, name_bytes);
  image.make_room(Section::symbol_slots, name_index::slots_for(order.size()) * sizeof(std::uint32_t));
  const auto records = image.place<SymbolRecord>(Section::symbols);
  const auto names = image.place<char>(Section::symbol_names);
  const auto slots = image.place<std::uint32_t>(Section::symbol_slots);
  std::vector<std::uint32_t> hashes(order.size());
  std::size_t at = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    const auto &symbol = source.symbols[order[i]];
    records[i] = {symbol.value, static_cast<std::uint32_t>(at), static_cast<std::uint16_t>(symbol.name.size()),
                  symbol.type, 0};
    std::ranges::copy(symbol.name, names.begin() + static_cast<std::ptrdiff_t>(at));
    at += symbol.name.size();
    hashes[i] = hash_name(symbol.name, image.header.name_seed);
  }
  const auto name_of = [&](std::uint32_t i) {
    return std::string_view(names.data() + records[i].name, records[i].name_length);
  };
  for (std::uint32_t i = 0; i < order.size(); ++i)
    if (!name_index::insert(slots, hashes[i], i, [&](std::uint32_t other) {
          return hashes[other] == hashes[i] && name_of(other) == name_of(i);
        }))
      return fail(ErrorCode::corrupt, "the table of symbols is clogged");

  image.header.symbol_count = static_cast<std::uint32_t>(order.size());
  image.header.image_symbol_count = static_cast<std::uint32_t>(image_symbols);
  return {};
}

Result<void> write_types(ImageWriter &image, Bytes btf) {
  TRY_ASSIGN(const auto outside, btf_sections(btf));
  // From here on the copy alone counts: the BTF may lie in a live guest's memory.
  const Bytes copy = image.append(Section::btf, btf.first(outside.size));
  TRY_ASSIGN(const auto sections, btf_sections(copy));
  TRY_ASSIGN(const auto index, index_btf(sections, image.header.name_seed));
  image.header.signed_enumerations = index.flags.signed_enumerations;
  image.header.odd_integers = index.flags.odd_integers;
  image.append(Section::type_offsets, raw(index.offsets));
  image.append(Section::type_slots, raw(index.names));
  image.append(Section::enumerator_slots, raw(index.enumerators));
  return {};
}

} // namespace

Profile::Profile() : content_(std::make_unique<Content>()) {}
Profile::~Profile() = default;

Result<std::shared_ptr<const Profile>> Profile::build(const ProfileSource &source) {
  if (source.symbols.size() > symbol_limit)
    return fail(ErrorCode::corrupt, fmt::format("{} symbols are too many", source.symbols.size()));
  if (source.build_id.size > source.build_id.bytes.size())
    return fail(ErrorCode::usage, "the build id is longer than one can be");
  ImageWriter image(sizeof(Header) + source.symbols.size() * 48 + source.btf.size() + source.btf.size() / 4);
  image.header.build_id = source.build_id.bytes;
  image.header.build_id_size = source.build_id.size;
  image.header.build_id_offset = source.build_id_offset;
  image.header.name_seed = random_seed();
  image.append(Section::banner, bytes_of(std::string_view(source.banner).substr(0, banner_limit)));
  TRY(write_symbols(image, source));
  if (!source.btf.empty())
    TRY(write_types(image, source.btf));

  const std::shared_ptr<Profile> profile(new Profile);
  auto &content = *profile->content_;
  TRY_ASSIGN(content.owned, image.finish());
  TRY(content.attach(content.owned));
  return profile;
}

Result<std::shared_ptr<const Profile>> Profile::open(const std::filesystem::path &file) {
  const UniqueFd descriptor(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!descriptor)
    return fail_errno(fmt::format("cannot open {}", file.string()), errno);
  auto profile = open(descriptor.get());
  if (!profile)
    return wrap(std::move(profile).error(), file.string());
  return profile;
}

Result<std::shared_ptr<const Profile>> Profile::open(int descriptor) {
  struct stat status{};
  if (::fstat(descriptor, &status) != 0)
    return fail_errno("cannot examine the profile", errno);
  if (!S_ISREG(status.st_mode) || static_cast<std::uint64_t>(status.st_size) > size_limit)
    return fail(ErrorCode::corrupt, "not a file that a profile can be");
  const std::shared_ptr<Profile> profile(new Profile);
  auto &content = *profile->content_;
  TRY_ASSIGN(content.mapping, Mapping::map_file(descriptor, 0, static_cast<std::size_t>(status.st_size)));
  TRY(content.attach(content.mapping.bytes()));
  if (checksum_of(content.image) != content.header.checksum)
    return fail(ErrorCode::corrupt, "the profile's checksum is wrong");
  return profile;
}

const BuildId &Profile::build_id() const { return content_->build_id; }
std::uint64_t Profile::build_id_offset() const { return content_->header.build_id_offset; }
std::string_view Profile::banner() const { return content_->banner; }

std::optional<ProfileSymbol> Profile::symbol(std::string_view name) const {
  const auto &content = *content_;
  const auto index =
      name_index::find(content.symbol_slots, hash_name(name, content.header.name_seed), [&](std::uint32_t number) {
        return number < content.symbols.size() && content.name_of(content.symbols[number]) == name;
      });
  return index ? std::optional(content.symbol(*index)) : std::nullopt;
}

std::optional<ProfileSymbol> Profile::nearest(std::uint64_t offset) const {
  const auto &content = *content_;
  const auto image_symbols = content.symbols.first(content.header.image_symbol_count);
  const auto after = std::ranges::upper_bound(image_symbols, offset, {}, &SymbolRecord::value);
  if (after == image_symbols.begin())
    return std::nullopt;
  const auto first = std::ranges::lower_bound(image_symbols, std::prev(after)->value, {}, &SymbolRecord::value);
  const auto index = static_cast<std::size_t>(first - image_symbols.begin());
  return index < image_symbols.size() ? std::optional(content.symbol(index)) : std::nullopt;
}

std::size_t Profile::symbol_count() const { return content_->symbols.size(); }

ProfileSymbol Profile::symbol_at(std::size_t index) const {
  return index < content_->symbols.size() ? content_->symbol(index) : ProfileSymbol{};
}

bool Profile::has_types() const { return content_->types.count() != 0; }
const Types &Profile::types() const { return content_->types; }
Bytes Profile::btf() const { return content_->btf; }
Bytes Profile::image() const { return content_->image; }

} // namespace lararium
