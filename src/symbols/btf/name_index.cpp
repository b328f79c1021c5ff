#include "lararium/symbols/name_index.h"

#include <chrono>
#include <cstring>
#include <sys/random.h>

namespace lararium {
namespace {

__extension__ using Wide = unsigned __int128;

// Both halves of the 128-bit product: every bit of the input reaches every bit of the result.
std::uint64_t fold(std::uint64_t a, std::uint64_t b) {
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

constexpr std::uint64_t golden = 0x9e3779b97f4a7c15; // 2^64 / the golden ratio
constexpr std::uint64_t odd = 0xd6e8feb86659fd93;

} // namespace

std::uint32_t hash_name(std::string_view name, std::uint64_t seed) {
  std::uint64_t state = seed ^ (golden * name.size());
  const char *text = name.data();
  std::size_t left = name.size();
  for (; left >= 8; left -= 8, text += 8) {
    std::uint64_t word;
    std::memcpy(&word, text, 8);
    state = fold(state ^ word, odd ^ seed) + golden;
  }
  std::uint64_t tail = 0;
  if (left != 0)
    std::memcpy(&tail, text, left);
  state = fold(state ^ tail, odd);
  return static_cast<std::uint32_t>(fold(state, golden ^ seed) >> 32);
}

std::uint64_t random_seed() {
  std::uint64_t seed = 0;
  if (::getrandom(&seed, sizeof seed, GRND_NONBLOCK) != static_cast<ssize_t>(sizeof seed)) // early boot, or a sandbox
    seed = static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count()) * golden;
  return seed;
}

} // namespace lararium
