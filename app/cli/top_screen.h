// How `top` shows a sample: lines for a screen of a given size, or for a file.
#pragma once

#include "output.h"
#include "top_sampler.h"

#include <cstdint>
#include <string>

namespace lararium::cli {

struct TopScreen {
  std::string vm_name;
  TopOrder order = TopOrder::cpu;
  std::size_t rows = 0;         // 0: no limit
  std::size_t tasks = SIZE_MAX; // at most so many processes
};

// Lines that end with \n, at most screen.rows of them, none wider than the device where that is a terminal.
[[nodiscard]] std::string render_top(const TopSample &sample, const TopScreen &screen, const Device &device);

} // namespace lararium::cli
