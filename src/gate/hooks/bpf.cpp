// BPF programs that are loaded.
#include "lararium/gate/hook.h"

#include <fmt/format.h>

namespace lararium::gate {
namespace {

constexpr std::uint16_t attribute_bytes = 64; // of union bpf_attr: type, length, licence, flags, name

Result<std::vector<HookPoint>> points(const linux_guest::Kernel &kernel) {
  const auto command = kernel.types().enumerator("BPF_PROG_LOAD");
  if (!command)
    return fail(ErrorCode::unsupported, "the kernel does not have BPF_PROG_LOAD");
  const auto value = static_cast<std::uint64_t>(*command);
  return points_at(kernel, {{"security_bpf",
                             {1, 0xffffffff, value, value},
                             {{KeepKind::bytes, 2, {}, KeepRole::none, 0, attribute_bytes}}}});
}

// The name of an enumerator of enum bpf_prog_type: BPF_PROG_TYPE_KPROBE.
std::string type_name(const linux_guest::Kernel &kernel, std::uint64_t value) {
  const auto id = kernel.types().find("bpf_prog_type");
  constexpr std::string_view prefix = "BPF_PROG_TYPE_";
  if (id)
    for (const auto &each : kernel.types().enumerators(*id))
      if (static_cast<std::uint64_t>(each.value) == value && each.name.starts_with(prefix)) {
        std::string name(each.name.substr(prefix.size()));
        for (char &c : name)
          c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
        return name;
      }
  return fmt::format("type {}", value);
}

// security_bpf(cmd, attr, size): attr is the kernel's copy.
Meaning tell(const CallReader &reader, const HookedCall &call) {
  const Gva attributes = call.pointer(2);
  const std::string type = type_name(reader.kernel(), reader.number(attributes, "bpf_attr", "prog_type").value_or(0));
  const auto name_field = reader.kernel().types().field("bpf_attr", "prog_name");
  std::array<std::byte, 16> name_bytes{}; // BPF_OBJ_NAME_LEN
  const std::string name = name_field && reader.bytes(attributes + name_field->offset, name_bytes)
                               ? std::string(c_string(name_bytes, 0))
                               : std::string();
  const std::uint64_t count = reader.number(attributes, "bpf_attr", "insn_cnt").value_or(0);
  Meaning meaning{
      fmt::format("loads a BPF program{}{} ({}, {} instructions)", name.empty() ? "" : " ", name, type, count)};
  meaning.with("program_type", type).with("program_name", name).with("instructions", count);
  return meaning;
}

LARARIUM_HOOK(
    bpf_hook, "bpf", "a BPF program is loaded",
    "By bpf(2). Classic filters of sockets and seccomp are not seen. Rules match `program_type` (kprobe, xdp, lsm, "
    "...) and `program_name`.",
    true, points, tell)

} // namespace
} // namespace lararium::gate
