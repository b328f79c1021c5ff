// Code that is loaded into the kernel, and kernels that are loaded.
#include "lararium/gate/hook.h"

#include <fmt/format.h>

namespace lararium::gate {
namespace {

// security_kernel_read_file(file, id, contents) and security_kernel_load_data(id, contents): files that the kernel
// reads by itself, and data that a program hands over. `id` is of enum kernel_read_file_id and kernel_load_data_id.
Result<std::vector<HookPoint>> points_for(const linux_guest::Kernel &kernel, std::string_view reading,
                                          std::string_view also_reading, std::string_view loading) {
  const auto read = kernel.types().enumerator(reading), load = kernel.types().enumerator(loading);
  const auto also_read = kernel.types().enumerator(also_reading);
  constexpr std::uint64_t int_mask = 0xffffffff;
  if (!read || !load)
    return fail(ErrorCode::unsupported, fmt::format("the kernel does not have {}", read ? loading : reading));
  const auto value = static_cast<std::uint64_t>(*read);
  return points_at(kernel, {{"security_kernel_read_file",
                             {2, int_mask, value, also_read ? static_cast<std::uint64_t>(*also_read) : value},
                             {keep_path_of_file(1)}},
                            {"security_kernel_load_data",
                             {1, int_mask, static_cast<std::uint64_t>(*load), static_cast<std::uint64_t>(*load)}}});
}

Meaning tell(const CallReader &reader, const HookedCall &call, std::string_view what) {
  const bool from_file = call.function == "security_kernel_read_file";
  const std::string path = from_file ? reader.path_of_file(call.pointer(1)) : std::string();
  Meaning meaning{from_file ? fmt::format("loads {} from {}", what, path)
                            : fmt::format("loads {} from its memory", what)};
  meaning.with("path", path).with("from_memory", !from_file);
  return meaning;
}

Result<std::vector<HookPoint>> module_points(const linux_guest::Kernel &kernel) {
  return points_for(kernel, "READING_MODULE", "READING_MODULE_COMPRESSED", "LOADING_MODULE");
}
Meaning tell_module(const CallReader &reader, const HookedCall &call) { return tell(reader, call, "a kernel module"); }

LARARIUM_HOOK(
    module_hook, "module", "a kernel module is loaded",
    "By finit_module(2), with the file's path, or by init_module(2), from memory. Before anything of it is read.", true,
    module_points, tell_module)

Result<std::vector<HookPoint>> kexec_points(const linux_guest::Kernel &kernel) {
  return points_for(kernel, "READING_KEXEC_IMAGE", "READING_KEXEC_INITRAMFS", "LOADING_KEXEC_IMAGE");
}
Meaning tell_kexec(const CallReader &reader, const HookedCall &call) {
  return tell(reader, call, "a kernel to boot into");
}

LARARIUM_HOOK(kexec_hook, "kexec", "a kernel is loaded to be booted by kexec",
              "By kexec_file_load(2), with the file's path, or by kexec_load(2), from memory.", true, kexec_points,
              tell_kexec)

} // namespace
} // namespace lararium::gate
