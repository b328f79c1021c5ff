#include "name_table.h"

#include "lararium/symbols/kallsyms.h"

#include <algorithm>
#include <utility>

namespace lararium::kallsyms {
namespace {

constexpr std::size_t block = 256; // symbols to a marker
constexpr std::size_t min_block_bytes = block * 2;
constexpr std::size_t max_block_bytes = block * (512 + 2); // KSYM_NAME_LEN codes, and their length
constexpr std::size_t min_markers = 4;                     // no kernel has fewer than 769 symbols
constexpr std::size_t max_markers = Kallsyms::max_symbols / block;
// Between markers and token table lies at most seqs_of_names, 3 bytes a symbol (4 in its first form).
constexpr std::size_t max_distance = Kallsyms::max_symbols * std::size_t{4} + max_markers * 8 + 16;

class Finder {
public:
  Finder(Bytes image, std::size_t token_table, std::uint64_t &work)
      : image_(image), token_table_(token_table), work_(work) {}

  // Markers start with 0 and then grow by what 256 names can take: hardly anything else does, so the search goes back
  // from the token table until such a run is met for which names and a count are found, too.
  std::optional<NameTable> run() {
    const std::size_t first = token_table_ - std::min(token_table_, max_distance);
    for (std::size_t at = token_table_ & ~std::size_t{3}; at >= first + 4 && work_ > 0;) {
      at -= 4;
      if (load<std::uint32_t>(image_, at) != 0U)
        continue;
      if (auto table = with_markers<std::uint32_t>(at))
        return table;
      if (at % 8 == 0)
        if (auto table = with_markers<std::uint64_t>(at))
          return table;
    }
    return std::nullopt;
  }

private:
  template <class Marker> [[nodiscard]] std::optional<Marker> marker(std::size_t markers, std::size_t index) const {
    const std::size_t at = markers + index * sizeof(Marker);
    return at < token_table_ ? load<Marker>(image_, at) : std::nullopt;
  }

  template <class Marker> std::optional<NameTable> with_markers(std::size_t markers) {
    std::uint64_t last = 0;
    std::size_t run = 1;
    for (; run < max_markers; ++run) {
      const auto value = marker<Marker>(markers, run);
      if (!value || *value < last + min_block_bytes || *value > last + max_block_bytes)
        break;
      last = *value;
    }
    if (run < min_markers)
      return std::nullopt;
    spend(run);
    // What follows the markers (seqs_of_names) may by chance go on like them for a word.
    for (std::size_t count = run; count >= std::max(min_markers, run - 1) && work_ > 0; --count)
      if (const auto value = marker<Marker>(markers, count - 1))
        if (auto table = with_names<Marker>(markers, count, *value))
          return table;
    return std::nullopt;
  }

  // Names end where the markers start, save for padding, and start such that the last marker leaves 1 to 256 of them.
  // Before them is the count, which must need just as many markers.
  template <class Marker>
  std::optional<NameTable> with_names(std::size_t markers, std::size_t marker_count, std::uint64_t last) {
    const std::uint64_t least = last + 2, most = last + max_block_bytes + 8;
    if (least + 8 > markers)
      return std::nullopt;
    const std::size_t first = most + 8 > markers ? 8 : markers - most;
    for (std::size_t names = (markers - least) & ~std::size_t{3}; names >= first && work_ > 0; names -= 4) {
      spend(1);
      for (const std::size_t distance : {8U, 4U}) {
        const auto count = load<std::uint32_t>(image_, names - distance);
        if (!count || *count > Kallsyms::max_symbols || (*count + block - 1) / block != marker_count)
          continue;
        for (const bool two_byte_lengths : {true, false}) {
          if (!walk<Marker>(image_.subspan(names, markers - names), image_.subspan(markers), *count, two_byte_lengths))
            continue;
          // The image may be changing: from here on only a copy counts, and it must hold by itself.
          NameTable table{*count, sizeof(Marker), two_byte_lengths, {}, names - distance, names, markers};
          const Bytes all = image_.subspan(names, markers - names + marker_count * sizeof(Marker));
          table.names.assign(all.begin(), all.end());
          if (!walk<Marker>(Bytes(table.names).first(markers - names), Bytes(table.names).subspan(markers - names),
                            *count, two_byte_lengths))
            continue;
          table.names.resize(markers - names);
          return table;
        }
      }
    }
    return std::nullopt;
  }

  // Whether `count` names fill the table, up to padding, and the markers tell where every 256th starts.
  template <class Marker> bool walk(Bytes names, Bytes markers, std::uint32_t count, bool two_byte_lengths) {
    std::size_t at = 0;
    for (std::uint32_t i = 0; i < count; ++i) {
      if (i % block == 0) {
        spend(block);
        if (load<Marker>(markers, i / block * sizeof(Marker)) != at || work_ == 0)
          return false;
      }
      const auto name = codes_at(names, at, two_byte_lengths, Kallsyms::max_name);
      if (!name)
        return false;
      at = name->next;
    }
    const Bytes padding = names.subspan(at);
    return padding.size() < 8 && std::ranges::all_of(padding, [](std::byte byte) { return byte == std::byte{0}; });
  }

  void spend(std::uint64_t amount) { work_ -= std::min(work_, amount); }

  Bytes image_;
  std::size_t token_table_;
  std::uint64_t &work_;
};

} // namespace

std::optional<NameTable> find_name_table(Bytes image, std::size_t token_table, std::uint64_t &work) {
  return Finder(image, token_table, work).run();
}

} // namespace lararium::kallsyms
