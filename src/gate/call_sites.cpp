#include "call_sites.h"

#include "lararium/arch/x86_64_code_step.h"
#include "lararium/os/linux/code_sites.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace lararium::gate {
namespace {

using linux_guest::Kernel;

constexpr std::uint64_t largest_text = 256 << 20;
constexpr std::uint64_t longest_function = 256 << 10;
constexpr std::size_t site_limit = 4096;
constexpr std::uint64_t call_length = 5;
// What call depth tracking puts before a function, and what a call leads to then: `sarq $5, %gs:...` (callthunks.c,
// e81dc127ef69, 6.2).
constexpr std::uint64_t longest_padding = 16;
constexpr std::array<std::byte, 3> accounting{std::byte{0x65}, std::byte{0x48}, std::byte{0xc1}};

// The kernel's text as it is where no kprobe stands on it.
class Text {
public:
  static Result<Text> read(const Kernel &kernel, Gva begin, std::uint64_t size) {
    Text text;
    text.begin_ = begin;
    // The image is contiguous in physical memory.
    const auto &location = kernel.location();
    text.physical_ = location.physical_base + (begin - location.base);
    text.bytes_.resize(size);
    if (!kernel.memory().read(text.physical_, text.bytes_))
      return fail(ErrorCode::memory_fault, "the kernel's text cannot be read");
    linux_guest::CodeSites moments;
    moments.read_moments(kernel);
    for (const linux_guest::Probe &probe : moments.kprobes) {
      const std::size_t length = probe.is_optimised ? probe.original.size() : 1;
      if (probe.address < begin || probe.address - begin > size - length)
        continue;
      const auto offset = static_cast<std::ptrdiff_t>(probe.address - begin);
      if (probe.is_optimised || text.bytes_[probe.address - begin] == std::byte{0xcc})
        std::copy_n(probe.original.begin(), length, text.bytes_.begin() + offset);
      text.probes_.push_back({probe.address, length});
    }
    return text;
  }
  [[nodiscard]] Bytes bytes() const { return bytes_; }
  [[nodiscard]] Gva begin() const { return begin_; }
  [[nodiscard]] Gpa physical() const { return physical_; }
  [[nodiscard]] bool has_probe(Gva address, std::uint64_t length) const {
    return std::ranges::any_of(probes_, [&](const auto &probe) {
      return probe.first < address + length && address < probe.first + probe.second;
    });
  }

private:
  Gva begin_;
  Gpa physical_;
  std::vector<std::byte> bytes_;
  std::vector<std::pair<Gva, std::size_t>> probes_;
};

// Whether stepping from the symbol before it meets the site.
bool is_instruction(const Kernel &kernel, const Text &text, Gva site) {
  const auto symbol = kernel.profile().nearest(site - kernel.location().base);
  if (!symbol)
    return false;
  const Gva begin = kernel.location().base + symbol->value;
  if (site - begin > longest_function)
    return false;
  if (begin < text.begin())
    return false;
  const Bytes code = text.bytes().subspan(begin - text.begin());
  std::size_t at = 0;
  while (at < site - begin) {
    const auto step = x86_64::step_at(code.subspan(at));
    if (step.length == 0)
      return false;
    at += step.length;
  }
  return at == site - begin;
}

} // namespace

bool leads_to_function(const Kernel &kernel, Gva target, Gva function) {
  if (target == function)
    return true;
  std::array<std::byte, 3> code{};
  return target < function && function - target <= longest_padding && kernel.space().read(target, code) &&
         code == accounting;
}

Result<CallSites> find_call_sites(const Kernel &kernel, std::span<const Gva> functions) {
  const auto begin = kernel.symbol("_stext"), end = kernel.symbol("_etext");
  if (!begin || !end || *end <= *begin || *end - *begin > largest_text)
    return fail(ErrorCode::not_found, "the kernel's symbols do not say where its text lies");
  std::vector<std::pair<Gva, std::size_t>> wanted;
  for (std::size_t i = 0; i < functions.size(); ++i)
    wanted.emplace_back(functions[i], i);
  std::ranges::sort(wanted);
  TRY_ASSIGN(const Text whole, Text::read(kernel, *begin, *end - *begin));
  const Bytes text = whole.bytes();

  CallSites result;
  for (std::size_t at = 0; at + 5 <= text.size(); ++at) {
    if ((text[at] & std::byte{0xfe}) != std::byte{0xe8})
      continue;
    std::int32_t distance = 0;
    std::memcpy(&distance, text.data() + at + 1, sizeof distance);
    const Gva target = *begin + (at + 5) + static_cast<std::uint64_t>(std::int64_t{distance});
    // The first function at or behind it.
    const auto found = std::ranges::lower_bound(wanted, target, {}, &std::pair<Gva, std::size_t>::first);
    if (found == wanted.end() || found->first - target > longest_padding ||
        !leads_to_function(kernel, target, found->first))
      continue;
    const Gva site = *begin + at;
    if (!is_instruction(kernel, whole, site)) {
      ++result.unverified;
      continue;
    }
    if (result.sites.size() + result.probed.size() == site_limit)
      return fail(ErrorCode::corrupt, "the kernel's text calls the watched functions from too many places");
    auto &list = whole.has_probe(site, call_length) ? result.probed : result.sites;
    list.push_back({site, whole.physical() + at, distance, text[at] == std::byte{0xe9}, target, found->second});
  }
  return result;
}

} // namespace lararium::gate
