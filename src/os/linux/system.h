// Linux behind the interface of an operating system: delegates to one function per view.
#pragma once

#include "lararium/os/common/operating_system.h"
#include "lararium/os/linux/kernel.h"
#include "lararium/vm/target.h"

#include <memory>
#include <optional>

namespace lararium::linux_guest {

class LinuxSystem final : public OperatingSystem {
public:
  LinuxSystem(const Target &target, std::unique_ptr<Kernel> kernel) : target_(target), kernel_(std::move(kernel)) {}

  [[nodiscard]] const Kernel &kernel() const { return *kernel_; }

  void refresh() override;
  [[nodiscard]] Result<SystemInfo> info() override;
  [[nodiscard]] Result<Pulse> pulse() override;
  [[nodiscard]] Result<View<std::uint32_t>> allocated_pids(std::uint32_t begin, std::uint32_t end) override;
  [[nodiscard]] Result<std::optional<std::uint64_t>> start_of_pid(std::int32_t pid) override;
  [[nodiscard]] Result<View<Process>> processes(const ProcessQuery &query) override;
  [[nodiscard]] Result<View<ProcessMark>> process_marks() override;
  [[nodiscard]] Result<View<MemoryRegion>> memory_regions(std::int32_t pid) override;
  [[nodiscard]] Result<View<OpenFile>> open_files(std::optional<std::int32_t> pid) override;
  [[nodiscard]] Result<View<std::string>> environment(std::int32_t pid) override;
  [[nodiscard]] Result<View<KernelModule>> modules() override;
  [[nodiscard]] Result<View<Socket>> sockets() override;
  [[nodiscard]] Result<View<Mount>> mounts(std::optional<std::int32_t> pid) override;
  [[nodiscard]] Result<View<NetworkInterface>> interfaces() override;
  [[nodiscard]] Result<View<LogRecord>> kernel_log() override;
  [[nodiscard]] Result<BpfView> bpf() override;
  ViewStatus for_each_symbol(const std::function<bool(const KernelSymbol &)> &visitor) override;
  [[nodiscard]] std::optional<KernelSymbol> find_symbol(std::string_view name) override;
  [[nodiscard]] std::optional<std::pair<KernelSymbol, std::uint64_t>> symbolize(Gva address) override;
  [[nodiscard]] std::size_t read_kernel(Gva address, std::span<std::byte> out) override;
  [[nodiscard]] Result<std::size_t> read_process(std::int32_t pid, Gva address, std::span<std::byte> out) override;
  [[nodiscard]] Result<ProcessImage> process_image(std::int32_t pid) override;
  [[nodiscard]] Result<CachedFile> recover_file(std::string_view path,
                                                const std::function<Result<void>(std::uint64_t, Bytes)> &sink) override;
  [[nodiscard]] std::string crash_information() override;

private:
  // Whose memory was read last: a core of a process is thousands of reads. Kept until refresh(); a process that ends
  // meanwhile is read as what its page tables have become, as it would be between finding it and reading it.
  struct LastProcess {
    std::int32_t pid = 0;
    x86_64::PageTableRoot root;
  };

  const Target &target_;
  std::unique_ptr<Kernel> kernel_;
  std::optional<LastProcess> last_process_;
};

} // namespace lararium::linux_guest
