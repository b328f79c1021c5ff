// Prints what the QEMU driver has of a VM's registers for system calls, as JSON, a line each time that a line comes in:
// `vcpu_registers PID`. The milliseconds are of processor time.
#include "lararium/driver/qemu.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fmt/format.h>
#include <iostream>
#include <string>

using namespace lararium;

namespace {

double cpu_milliseconds() {
  timespec time{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) / 1e6;
}

std::string json_of(const VcpuRegisters &vcpu) {
  std::string text = fmt::format(R"({{"index": {}, "efer": {}, "cr0": {})", vcpu.index, vcpu.efer, vcpu.cr0);
  if (vcpu.msrs)
    text += fmt::format(
        R"(, "star": {}, "lstar": {}, "cstar": {}, "fmask": {}, "sysenter_cs": {}, "sysenter_esp": {}, )"
        R"("sysenter_eip": {}, "kernel_gs_base": {})",
        vcpu.msrs->star, vcpu.msrs->lstar.value, vcpu.msrs->cstar.value, vcpu.msrs->fmask, vcpu.msrs->sysenter_cs,
        vcpu.msrs->sysenter_esp.value, vcpu.msrs->sysenter_eip.value, vcpu.msrs->kernel_gs_base.value);
  return text + "}";
}

} // namespace

int main(int count, char **arguments) {
  if (count != 2)
    return 2;
  const auto vm = qemu::find(arguments[1]);
  auto target = vm ? qemu::attach(*vm) : Result<Target>(std::unexpected(vm.error()));
  if (!target || !target->vcpus) {
    std::cerr << (target ? "the VM has no registers" : target.error().describe()) << '\n';
    return 1;
  }
  for (std::string line; std::getline(std::cin, line);) {
    const double before = cpu_milliseconds();
    const auto vcpus = target->vcpus->registers_with_msrs();
    const double took = cpu_milliseconds() - before;
    std::string list;
    if (vcpus)
      for (const VcpuRegisters &vcpu : *vcpus)
        list += (list.empty() ? "" : ", ") + json_of(vcpu);
    std::string error = vcpus ? "" : vcpus.error().describe();
    std::ranges::replace(error, '"', '\'');
    std::cout << fmt::format(R"({{"milliseconds": {:.3f}, "error": "{}", "vcpus": [{}]}})", took, error, list)
              << std::endl;
  }
  return 0;
}
