// What gives a miner of cryptocurrency away.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace lararium::detect {

// What of a command line is a miner's, for people: "the program xmrig", "the argument stratum+tcp://..."; nothing: it
// is not. `exe` is the path of what runs. Programs that search for such words are none.
[[nodiscard]] std::optional<std::string> miner_sign(std::string_view exe, std::span<const std::string> arguments);

// Whether anonymous memory of this size is the dataset of RandomX, with or without its cache: 2080 and 256 MiB, which
// the algorithm prescribes.
[[nodiscard]] bool is_randomx_dataset(std::uint64_t bytes);

} // namespace lararium::detect
