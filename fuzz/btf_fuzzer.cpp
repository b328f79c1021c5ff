// BTF from a guest: parse, then ask everything of every type. The first two bytes cut a module's BTF off the end.
#include "lararium/symbols/btf.h"

#include <algorithm>
#include <cstdlib>
#include <string>

using namespace lararium;

namespace {

void ask(const Types &types) {
  const std::uint32_t last = std::min<std::uint32_t>(types.count(), 300);
  for (TypeId id = 0; id <= last + 1; ++id) {
    const auto info = types.info(id);
    (void)types.strip(id);
    (void)types.size_of(id);
    if (!info)
      continue;
    if (types.find(info->name) && info->name.empty())
      std::abort();
    for (const auto &enumerator : types.enumerators(id))
      if (!enumerator.name.empty() && !types.enumerator(enumerator.name))
        std::abort(); // every enumerator that is shown can be looked up
    for (const auto &member : types.members(id)) {
      (void)types.field(id, member.name);
      (void)types.field(id, std::string(member.name) + "[1]");
      for (const auto &inner : types.members(types.strip(member.type))) {
        (void)types.field(id, std::string(member.name) + "." + std::string(inner.name));
        break;
      }
    }
    (void)types.field(id, "not.there");
  }
  (void)types.find("task_struct");
  (void)types.enumerator("PIDTYPE_PID");
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t *data, std::size_t size) {
  const Bytes input = std::as_bytes(std::span(data, size));
  const auto cut = load<std::uint16_t>(input, 0);
  if (!cut)
    return 0;
  const Bytes all = input.subspan(2);
  const Bytes base = all.first(std::min<std::size_t>(*cut, all.size()));
  const Bytes module = all.subspan(base.size());
  if (const auto types = parse_btf(base)) {
    ask(**types);
    if (const auto split = parse_split_btf(module, *types, base))
      ask(**split);
  }
  if (const auto found = find_btf(all))
    if (!parse_btf(found->bytes))
      std::abort();
  return 0;
}
