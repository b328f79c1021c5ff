#include "lararium/gate/budget.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <fmt/format.h>

namespace lararium::gate {
namespace {

// What is told of longest comes first: rare and grave, before frequent and common.
constexpr std::array<std::string_view, 17> by_value{"module", "kexec",    "bpf",     "ptrace", "credentials", "exec",
                                                    "mount",  "io_uring", "connect", "listen", "bind",        "accept",
                                                    "fork",   "exit",     "rename",  "unlink", "open"};
constexpr double room = 0.7;  // of the budget: below it something may come back
constexpr int calm_steps = 5; // before it does

std::size_t rank(std::string_view hook) {
  return static_cast<std::size_t>(std::ranges::find(by_value, hook) - by_value.begin());
}

std::optional<double> share_of(std::string_view text) {
  const bool percent = text.ends_with('%');
  text.remove_suffix(percent ? 1 : 0);
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !(value > 0) || value > 1000)
    return std::nullopt;
  return percent ? value / 100 : value;
}

} // namespace

Result<Budget> parse_budget(std::string_view text) {
  Budget budget;
  for (std::string_view rest = text; !rest.empty();) {
    const auto part = rest.substr(0, rest.find(','));
    rest.remove_prefix(std::min(part.size() + 1, rest.size()));
    const auto equals = std::min(part.find('='), part.size());
    const auto name = part.substr(0, equals);
    const auto share = equals < part.size() ? share_of(part.substr(equals + 1)) : std::nullopt;
    if (!share || (name != "guest" && name != "host"))
      return fail(ErrorCode::usage, fmt::format("--budget is guest=SHARE, host=PROCESSORS or both, such as "
                                                "guest=2%,host=0.2; this is neither: {}",
                                                part));
    (name == "guest" ? budget.guest : budget.host) = share;
  }
  if (!budget.guest && !budget.host)
    return fail(ErrorCode::usage, "--budget is empty: guest=2%,host=0.2");
  return budget;
}

// What a hook would cost with all that it can tell.
double BudgetKeeper::when_full(const Seen &seen) const {
  return seen.calls_per_second * seen.cycles_per_call / static_cast<double>(cycles_per_second_) / cpus_;
}

std::optional<BudgetChange> BudgetKeeper::step(const std::vector<HookCost> &hooks, std::chrono::nanoseconds time,
                                               std::chrono::nanoseconds host_time) {
  const double seconds = std::max(std::chrono::duration<double>(time).count(), 1e-3);
  seen_.resize(hooks.size());
  depths_.resize(hooks.size(), Depth::full);
  guest_share_ = 0;
  host_share_ = std::chrono::duration<double>(host_time).count() / seconds;
  for (std::size_t i = 0; i < hooks.size(); ++i) {
    Seen &seen = seen_[i];
    const auto calls = static_cast<double>(hooks[i].calls - std::min(hooks[i].calls, seen.last.calls)),
               cycles = static_cast<double>(hooks[i].cycles - std::min(hooks[i].cycles, seen.last.cycles));
    seen.last = hooks[i];
    seen.calls_per_second = calls / seconds;
    seen.guest = cycles / seconds / static_cast<double>(cycles_per_second_) / cpus_;
    if (depths_[i] == Depth::full && calls > 0)
      seen.cycles_per_call = cycles / calls;
    guest_share_ += seen.guest;
  }
  const bool guest_over = budget_.guest && guest_share_ > *budget_.guest,
             host_over = budget_.host && host_share_ > *budget_.host;
  const auto over = [&] {
    return guest_over
               ? fmt::format("{:.1f} % of the guest's processors of {:.1f} %", guest_share_ * 100, *budget_.guest * 100)
               : fmt::format("{:.2f} processors of the host of {:.2f}", host_share_, *budget_.host);
  };
  if (guest_over || host_over) {
    calm_ = 0;
    // The least worth of those that cost anything to speak of.
    std::optional<std::size_t> chosen;
    for (std::size_t i = 0; i < hooks.size(); ++i)
      if (hooks[i].may_change && depths_[i] != Depth::off && seen_[i].guest > 0 &&
          (guest_over ? seen_[i].guest > guest_share_ / 20 : seen_[i].calls_per_second > 10) &&
          (!chosen || rank(hooks[i].name) > rank(hooks[*chosen].name)))
        chosen = i;
    if (!chosen)
      return std::nullopt;
    Depth &depth = depths_[*chosen];
    depth = depth == Depth::full ? Depth::brief : Depth::off;
    return BudgetChange{*chosen, depth,
                        fmt::format("the hooks cost {}: {} is told of {} from here on", over(), hooks[*chosen].name,
                                    depth == Depth::brief ? "without its arguments" : "no more")};
  }
  const bool is_calm =
      (!budget_.guest || guest_share_ < room * *budget_.guest) && (!budget_.host || host_share_ < room * *budget_.host);
  calm_ = is_calm ? calm_ + 1 : 0;
  if (calm_ < calm_steps)
    return std::nullopt;
  // The most worth first, if it fits by what it cost before.
  std::optional<std::size_t> chosen;
  for (std::size_t i = 0; i < hooks.size(); ++i)
    if (depths_[i] != Depth::full && (!chosen || rank(hooks[i].name) < rank(hooks[*chosen].name)) &&
        (!budget_.guest || guest_share_ - seen_[i].guest + when_full(seen_[i]) < room * *budget_.guest))
      chosen = i;
  if (!chosen)
    return std::nullopt;
  calm_ = 0;
  Depth &depth = depths_[*chosen];
  depth = depth == Depth::off ? Depth::brief : Depth::full;
  return BudgetChange{*chosen, depth,
                      fmt::format("there is room in the budget: {} is told of again{}", hooks[*chosen].name,
                                  depth == Depth::brief ? ", without its arguments" : "")};
}

} // namespace lararium::gate
