// Writes the tables of kallsyms as scripts/kallsyms.c of a given kernel would, into a made-up kernel image: the other
// half of a round trip, for the tests and the fuzzer.
#pragma once

#include "lararium/symbols/kallsyms.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

namespace lararium::test {

// One era of the format.
struct KallsymsEra {
  const char *name = "";
  bool addresses_last = false;
  KallsymsAddresses addresses = KallsymsAddresses::base_relative_percpu;
  std::uint8_t marker_size = 4;
  bool two_byte_lengths = false;
  std::uint8_t sequence_size = 0; // seqs_of_names: 0 bytes a symbol (there is none), 3 or 4
  std::uint8_t alignment = 8;
};

inline constexpr std::array kallsyms_eras = {
    KallsymsEra{"v4_4_absolute", false, KallsymsAddresses::absolute, 8, false, 0, 8},
    KallsymsEra{"v4_6", false, KallsymsAddresses::base_relative_percpu, 8, false, 0, 8},
    KallsymsEra{"v4_6_other_architectures", false, KallsymsAddresses::base_relative, 8, false, 0, 8},
    KallsymsEra{"v4_20", false, KallsymsAddresses::base_relative_percpu, 4, false, 0, 8},
    KallsymsEra{"v4_20_absolute", false, KallsymsAddresses::absolute, 4, false, 0, 8},
    KallsymsEra{"v6_1", false, KallsymsAddresses::base_relative_percpu, 4, true, 0, 8},
    KallsymsEra{"v6_1_stable", false, KallsymsAddresses::base_relative_percpu, 4, true, 3, 8},
    KallsymsEra{"v6_2", false, KallsymsAddresses::base_relative_percpu, 4, true, 3, 8},
    KallsymsEra{"v6_2_first_form", false, KallsymsAddresses::base_relative_percpu, 4, true, 4, 8},
    KallsymsEra{"v6_4", true, KallsymsAddresses::base_relative_percpu, 4, true, 3, 8},
    KallsymsEra{"v6_4_absolute", true, KallsymsAddresses::absolute, 4, true, 3, 8},
    KallsymsEra{"v6_15", true, KallsymsAddresses::base_relative, 4, true, 3, 8},
    KallsymsEra{"v7_0", true, KallsymsAddresses::place_relative, 4, true, 3, 4},
};

struct PlainSymbol {
  std::string name;
  std::uint64_t value = 0;
  bool absolute = false;
  char type = 'T';
  bool operator==(const PlainSymbol &) const = default;
};

struct KallsymsImage {
  std::vector<std::byte> bytes;
  Gva base;
  std::vector<PlainSymbol> symbols;
  KallsymsLayout layout;  // where each table was put
  std::size_t tables = 0; // where the first of them starts
  std::size_t tables_end = 0;
};

class KallsymsEncoder {
public:
  static constexpr Gva base{0xffffffff9a400000};
  static constexpr std::size_t text_size = 64 * 1024;

  explicit KallsymsEncoder(KallsymsEra era) : era_(era) {
    // Codes of characters stand for themselves; the others for common parts of names, as many as there are.
    const std::array parts = {"__", "init", "sys_", "d_", "t_", "get", "_put", "__x64_sys_", "ev", "lock", "e_", "re"};
    std::size_t next = 0;
    for (unsigned code = 0; code < 256; ++code) {
      const bool is_character = code < 128 && (std::isalnum(static_cast<int>(code)) != 0 || code == '_' || code == '.');
      tokens_[code] = is_character ? std::string(1, static_cast<char>(code))
                                   : parts[next % parts.size()] + std::string(next / parts.size(), 'x');
      if (!is_character && next++ < parts.size())
        pairs_.push_back(code);
    }
  }

  // A table like a kernel's. `data`: with CONFIG_KALLSYMS_ALL.
  [[nodiscard]] std::vector<PlainSymbol> invent(std::size_t count, bool data) const {
    std::vector<PlainSymbol> symbols;
    const bool per_cpu =
        era_.addresses != KallsymsAddresses::base_relative && era_.addresses != KallsymsAddresses::place_relative;
    if (data && per_cpu)
      for (std::uint64_t i = 0; i < 16; ++i)
        symbols.push_back({"per_cpu_" + std::to_string(i), i * 0x1000, true, 'A'});
    symbols.push_back({"_text", base.value, false, 'T'});
    symbols.push_back({"_stext", base.value, false, 'T'});
    for (std::uint64_t i = 0; symbols.size() < count; ++i) {
      const char *const stem = i % 3 == 0 ? "__x64_sys_" : i % 3 == 1 ? "init_lock_" : "ext4_";
      // Two of three functions have an address of their own.
      symbols.push_back({stem + std::to_string(i * 2654435761U % 1000003), base.value + (i - i % 3 / 2) * 32, false,
                         i % 5 == 0 ? 't' : 'T'});
      if (data && i % 2 == 1)
        symbols.back().type = i % 4 == 1 ? 'd' : 'B';
    }
    return symbols;
  }

  [[nodiscard]] KallsymsImage encode(std::vector<PlainSymbol> symbols) {
    KallsymsImage image;
    image.base = base;
    out_ = &image.bytes;
    fill(text_size);
    if (std::ranges::any_of(symbols, [](const PlainSymbol &symbol) { return symbol.type == 'd'; })) {
      symbols.push_back({"linux_banner", base.value + text_size + 256, false, 'D'});
      fill(256);
      text("Linux version 6.6.6 (builder@host) (gcc) #1 SMP\n");
    }
    std::ranges::sort(symbols, {}, [](const PlainSymbol &s) { return std::tuple(!s.absolute, s.value, s.name); });
    image.symbols = symbols;
    for (unsigned i = 0; i < 600; ++i) // a decoy: digits as in the console's font maps
      number(static_cast<std::uint16_t>(i));
    fill(300);
    align(8);

    image.tables = out_->size();
    auto &layout = image.layout;
    layout.addresses_last = era_.addresses_last;
    layout.addresses = era_.addresses;
    layout.marker_size = era_.marker_size;
    if (!era_.addresses_last)
      addresses(symbols, layout);
    align(era_.alignment);
    layout.count = out_->size();
    number_of_marker_size(symbols.size());
    names(symbols, layout);
    if (era_.sequence_size != 0 && !era_.addresses_last)
      sequences(symbols.size());
    token_table(layout);
    if (era_.addresses_last) {
      addresses(symbols, layout);
      sequences(symbols.size());
    }
    image.tables_end = out_->size();
    fill(5000);
    return image;
  }

private:
  template <class T> void number(T value) {
    const auto bytes = std::as_bytes(std::span<const T, 1>(&value, 1));
    out_->insert(out_->end(), bytes.begin(), bytes.end());
  }
  void number_of_marker_size(std::uint64_t value) {
    era_.marker_size == 8 ? number(value) : number(static_cast<std::uint32_t>(value));
  }
  void text(std::string_view value) {
    const auto bytes = bytes_of(value);
    out_->insert(out_->end(), bytes.begin(), bytes.end());
    out_->push_back(std::byte{0});
  }
  void align(std::size_t to) {
    while (out_->size() % to != 0)
      out_->push_back(std::byte{0});
  }
  void fill(std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      noise_ = noise_ * 6364136223846793005U + 1442695040888963407U;
      out_->push_back(static_cast<std::byte>(noise_ >> 56));
    }
  }

  void addresses(const std::vector<PlainSymbol> &symbols, KallsymsLayout &layout) {
    align(era_.alignment);
    layout.address_table = out_->size();
    for (const auto &symbol : symbols)
      switch (era_.addresses) {
      case KallsymsAddresses::absolute: number(symbol.value); break;
      case KallsymsAddresses::base_relative: number(static_cast<std::uint32_t>(symbol.value - base.value)); break;
      case KallsymsAddresses::base_relative_percpu:
        number(static_cast<std::uint32_t>(symbol.absolute ? symbol.value : base.value - symbol.value - 1));
        break;
      case KallsymsAddresses::place_relative:
        number(static_cast<std::uint32_t>(symbol.value - (base.value + out_->size())));
        break;
      }
    if (era_.addresses == KallsymsAddresses::base_relative ||
        era_.addresses == KallsymsAddresses::base_relative_percpu) {
      align(8);
      layout.relative_base = base.value;
      number(base.value);
    }
  }

  void names(const std::vector<PlainSymbol> &symbols, KallsymsLayout &layout) {
    align(era_.alignment);
    layout.names = out_->size();
    std::vector<std::size_t> markers;
    for (std::size_t i = 0; i < symbols.size(); ++i) {
      if (i % 256 == 0)
        markers.push_back(out_->size() - layout.names);
      const std::string codes = compress(symbols[i].type + symbols[i].name);
      if (codes.size() >= 128 && era_.two_byte_lengths) {
        out_->push_back(static_cast<std::byte>((codes.size() & 0x7f) | 0x80));
        out_->push_back(static_cast<std::byte>(codes.size() >> 7));
      } else {
        out_->push_back(static_cast<std::byte>(codes.size()));
      }
      text(codes);
      out_->pop_back(); // text() ended it with a NUL
    }
    align(era_.alignment);
    layout.markers = out_->size();
    for (const auto marker : markers)
      number_of_marker_size(marker);
  }

  void sequences(std::size_t count) {
    align(era_.alignment);
    for (std::uint32_t i = 0; i < count; ++i) {
      const auto sequence = static_cast<std::uint32_t>(i * 48271ULL % count);
      if (era_.sequence_size == 4)
        number(sequence);
      else
        for (const unsigned shift : {16U, 8U, 0U})
          out_->push_back(static_cast<std::byte>(sequence >> shift));
    }
  }

  void token_table(KallsymsLayout &layout) {
    align(era_.alignment);
    layout.token_table = out_->size();
    std::array<std::uint16_t, 256> index{};
    for (unsigned code = 0; code < 256; ++code) {
      index[code] = static_cast<std::uint16_t>(out_->size() - layout.token_table);
      text(tokens_[code]);
    }
    align(era_.alignment);
    layout.token_index = out_->size();
    for (const auto offset : index)
      number(offset);
  }

  // The longest token that fits, at each place.
  std::string compress(const std::string &plain) const {
    std::string codes;
    for (std::size_t at = 0; at < plain.size();) {
      unsigned best = static_cast<unsigned char>(plain[at]);
      for (const unsigned code : pairs_)
        if (tokens_[code].size() > tokens_[best].size() && plain.compare(at, tokens_[code].size(), tokens_[code]) == 0)
          best = code;
      codes += static_cast<char>(best);
      at += tokens_[best].size();
    }
    return codes;
  }

  KallsymsEra era_;
  std::array<std::string, 256> tokens_;
  std::vector<unsigned> pairs_; // codes of those tokens that names contain
  std::vector<std::byte> *out_ = nullptr;
  std::uint64_t noise_ = 1;
};

inline std::vector<PlainSymbol> all_symbols(const Kallsyms &kallsyms) {
  std::vector<PlainSymbol> symbols;
  for (std::size_t i = 0; i < kallsyms.size(); ++i) {
    const auto symbol = kallsyms[i];
    symbols.push_back({std::string(symbol.name), symbol.value, symbol.absolute, symbol.type});
  }
  return symbols;
}

} // namespace lararium::test
