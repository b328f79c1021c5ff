// One function for each format of dump. Each takes a file whose magic was recognised and gives a target.
#pragma once

#include "dump_file.h"

#include "lararium/vm/target.h"

#include <memory>

namespace lararium::dump {

[[nodiscard]] bool is_elf(const DumpFile &file);
[[nodiscard]] Result<Target> open_elf(std::shared_ptr<const DumpFile> file);

[[nodiscard]] bool is_kdump(const DumpFile &file);
[[nodiscard]] Result<Target> open_kdump(std::shared_ptr<const DumpFile> file);

[[nodiscard]] bool is_lime(const DumpFile &file);
[[nodiscard]] Result<Target> open_lime(std::shared_ptr<const DumpFile> file);

[[nodiscard]] bool is_avml(const DumpFile &file);
[[nodiscard]] Result<Target> open_avml(std::shared_ptr<const DumpFile> file);

// Any file can be a flat image; the caller has asked all others first.
[[nodiscard]] Result<Target> open_flat(std::shared_ptr<const DumpFile> file);

// ---- shared by them

// Registers as notes tell them.
class FixedVcpus final : public Vcpus {
public:
  explicit FixedVcpus(std::vector<VcpuRegisters> registers) : registers_(std::move(registers)) {}
  [[nodiscard]] Result<std::vector<VcpuRegisters>> registers() override { return registers_; }

private:
  std::vector<VcpuRegisters> registers_;
};

// "12 MiB", "4 KiB": for the sentences of limitations.
[[nodiscard]] std::string human_size(std::uint64_t bytes);

// Adds what every target without register notes says of itself.
void set_vcpus(Target &target, std::vector<VcpuRegisters> vcpus);

} // namespace lararium::dump
