#include "progress.h"

#include "text.h"

#include <algorithm>
#include <fmt/format.h>

namespace lararium::cli {

bool ProgressBar::update(std::uint64_t done, std::uint64_t total) {
  constexpr auto interval = std::chrono::milliseconds(100);
  constexpr std::size_t cells = 24;
  const auto now = Clock::now();
  const bool complete = done >= total;
  if (context_.err.device().terminal && (complete || now - last_drawn_ >= interval)) {
    const double part = total == 0 ? 1 : static_cast<double>(std::min(done, total)) / static_cast<double>(total);
    const double seconds = std::chrono::duration<double>(now - begin_).count();
    const auto filled = static_cast<std::size_t>(part * cells);
    const bool utf8 = context_.err.device().utf8;
    std::string bar;
    for (std::size_t i = 0; i < cells; ++i)
      bar += i < filled ? (utf8 ? "█" : "#") : (utf8 ? "░" : ".");
    const auto rate = static_cast<std::uint64_t>(seconds > 0 ? static_cast<double>(done) / seconds : 0);
    context_.err.buffer() += fmt::format("\r{} {} {:3.0f} %  {} of {}  {}/s\x1b[K", what_, bar, part * 100,
                                         long_bytes(done), long_bytes(total), long_bytes(rate));
    static_cast<void>(context_.err.flush());
    last_drawn_ = now;
    drawn_ = true;
  }
  return !SignalGuard::pending();
}

ProgressBar::~ProgressBar() {
  if (drawn_)
    context_.err.buffer() += "\r\x1b[K";
}

} // namespace lararium::cli
