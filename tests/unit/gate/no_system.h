// An operating system that tells next to nothing.
#pragma once

#include "../os/silent_system.h"
#include "lararium/os/linux/kernel.h"

#include <optional>
#include <vector>

namespace lararium::test {

class NoSystem final : public SilentSystem {
public:
  explicit NoSystem(const linux_guest::Kernel &kernel) : kernel_(kernel) {}
  void refresh() override { kernel_.space().flush(); }
  std::optional<std::pair<KernelSymbol, std::uint64_t>> symbolize(Gva address) override {
    const auto symbol = kernel_.profile().nearest(address - kernel_.location().base);
    if (!symbol)
      return std::nullopt;
    return std::pair(KernelSymbol{kernel_.location().base + symbol->value, std::string(symbol->name), 'T', {}},
                     address - kernel_.location().base - symbol->value);
  }
  Result<View<NetworkInterface>> interfaces() override {
    if (!network)
      return none();
    View<NetworkInterface> view;
    view.items = *network;
    return view;
  }

  std::optional<std::vector<NetworkInterface>> network;

private:
  const linux_guest::Kernel &kernel_;
};

} // namespace lararium::test
