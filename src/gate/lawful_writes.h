// What a kernel may write into its own code while it runs, told from what it may not: by the tables that it keeps of
// such places, and by what stands there afterwards.
#pragma once

#include "lararium/os/linux/code_map.h"
#include "lararium/os/linux/code_sites.h"
#include "lararium/os/linux/kernel.h"

#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string_view>
#include <vector>

namespace lararium::gate {

struct Judgement {
  bool lawful = false;
  bool passing = false;      // int3 stands there for the moment: look again
  std::string_view reason{}; // "jump label"; of an unlawful one what is wrong
  std::uint64_t length = 1;  // bytes from the one that was asked about that this explains
};

class LawfulWrites {
public:
  explicit LawfulWrites(const linux_guest::Kernel &kernel) : kernel_(&kernel) { learn(); }

  // Reads all tables anew: modules came or went.
  void learn();
  // Reads those anew that change all the time. Before each round of judge().
  void read_moments() { sites_.read_moments(*kernel_); }
  // Whether the kernel says that it changes that place now.
  [[nodiscard]] bool is_being_patched(Gva address) const {
    return linux_guest::CodeSites::has(sites_.patching, address);
  }
  // Of a byte of code that changed. `before` is what stood there and behind it, up to the end of its page at most; what
  // stands there now is read.
  [[nodiscard]] Judgement judge(Gva address, Bytes before);

private:
  enum class Kind : std::uint8_t { tracer, static_call, jump_label, patchable, lock_prefix };
  struct Site {
    Gva begin, target; // target: of a jump label
    Kind kind = Kind::tracer;
    std::uint8_t length = 5; // a jump label may have 2, as what stands there tells
  };
  using Code = std::array<std::byte, 6>;
  struct Probed {
    Code code{};
    std::uint8_t known = 0; // bytes of it
  };

  void add(Kind kind, const std::vector<Gva> &places);
  [[nodiscard]] Judgement judge_site(const Site &site, Gva address);
  [[nodiscard]] std::optional<Judgement> judge_probe(Gva address, Bytes before);
  void remember(Gva place, Bytes original);
  void remember(const linux_guest::Probe &probe);
  [[nodiscard]] bool is_known_code(Gva target);
  [[nodiscard]] Code code_at(Gva address) const;

  const linux_guest::Kernel *kernel_;
  linux_guest::CodeSites sites_; // without its tables: those are in all_
  std::vector<Site> all_;        // by begin
  std::vector<Gva> tracer_entries_;
  std::map<Gva, Probed> probed_; // what stood where a probe was put
  std::optional<linux_guest::CodeMap> code_;
  std::chrono::steady_clock::time_point code_read_;
};

} // namespace lararium::gate
