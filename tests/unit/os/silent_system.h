// An operating system that tells nothing: what a test needs is overridden.
#pragma once

#include "lararium/os/common/operating_system.h"

#include <optional>

namespace lararium::test {

class SilentSystem : public OperatingSystem {
public:
  void refresh() override {}
  std::optional<std::pair<KernelSymbol, std::uint64_t>> symbolize(Gva) override { return std::nullopt; }
  Result<View<Process>> processes(const ProcessQuery &) override { return none(); }
  Result<View<ProcessMark>> process_marks() override { return none(); }
  Result<SystemInfo> info() override { return none(); }
  Result<Pulse> pulse() override { return none(); }
  Result<View<std::uint32_t>> allocated_pids(std::uint32_t, std::uint32_t) override { return none(); }
  Result<std::optional<std::uint64_t>> start_of_pid(std::int32_t) override { return none(); }
  Result<View<MemoryRegion>> memory_regions(std::int32_t) override { return none(); }
  Result<View<OpenFile>> open_files(std::optional<std::int32_t>) override { return none(); }
  Result<View<std::string>> environment(std::int32_t) override { return none(); }
  Result<View<KernelModule>> modules() override { return none(); }
  Result<View<Socket>> sockets() override { return none(); }
  Result<View<Mount>> mounts(std::optional<std::int32_t>) override { return none(); }
  Result<View<NetworkInterface>> interfaces() override { return none(); }
  Result<View<LogRecord>> kernel_log() override { return none(); }
  Result<BpfView> bpf() override { return none(); }
  ViewStatus for_each_symbol(const std::function<bool(const KernelSymbol &)> &) override { return {}; }
  std::optional<KernelSymbol> find_symbol(std::string_view) override { return std::nullopt; }
  std::size_t read_kernel(Gva, std::span<std::byte>) override { return 0; }
  Result<std::size_t> read_process(std::int32_t, Gva, std::span<std::byte>) override { return none(); }
  Result<ProcessImage> process_image(std::int32_t) override { return none(); }
  Result<CachedFile> recover_file(std::string_view,
                                  const std::function<Result<void>(std::uint64_t, Bytes)> &) override {
    return none();
  }
  std::string crash_information() override { return {}; }

protected:
  static std::unexpected<Error> none() { return fail(ErrorCode::not_found, "nothing"); }
};

} // namespace lararium::test
